"""Goodput: the share of a run's time that went into its steps, over all its starts.

A run is started, killed and started again. WORKDIR/goodput.jsonl has a line for each
start, which that start writes again and again while it lives; metrics.jsonl could not
hold it, as it is cut back to the step that a start goes on from.
"""

import json
import pathlib
import time
from typing import NamedTuple

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.records import parse_record
from set_diffusion_jax.jobs.phases import PHASES, here
from set_diffusion_jax.storage import places
from set_diffusion_jax.training.metrics import MetricsWriter, Progress

FILE = "goodput.jsonl"
# What the time of a run goes into. "start" is every phase that is not named here.
CAUSES = (
  "step",
  "input",
  "compile",
  "save",
  "evaluation",
  "restore",
  "start",
  "lost",  # steps that were computed, and had to be computed again
  "down",  # from the last line of a start to the beginning of the next
)
_LARGEST = 2**53  # of a number in the file: seconds and steps stay far below it


class Start(NamedTuple):
  """A start of a run: a line of the file.

  Attributes:
    began: seconds since 1970.
    time: when the line was written, seconds since 1970.
    first: the step that it goes on from.
    step: the last one that it has computed.
    done: whether it came to the last step of the run.
    seconds: that it spent in each phase (see `jobs.phases`).
  """

  began: float
  time: float
  first: int
  step: int
  done: bool
  seconds: dict[str, float]


def spent(starts: list[Start]) -> dict[str, float]:
  """Seconds that a run has spent on each of CAUSES.

  A step that a later start computes again is lost; it took what the steps of its start
  took on average. The time after a start that came to the last step is not counted: the
  run was finished, until somebody gave it more steps.

  Args:
    starts: all of them, in their order.
  """
  found = dict.fromkeys(CAUSES, 0.0)
  following: Start | None = None
  kept = _LARGEST  # steps up to here are not computed again
  for start in reversed(starts):
    for phase, seconds in start.seconds.items():
      found[phase if phase in CAUSES else "start"] += seconds
    lost = start.step - max(start.first, min(start.step, kept))
    if lost:
      seconds = start.seconds.get("step", 0.0) * lost / (start.step - start.first)
      found["lost"] += seconds
      found["step"] -= seconds
    if following is not None and not start.done:
      found["down"] += max(0.0, following.began - start.time)
    following, kept = start, min(kept, start.first)
  return found


def shares(starts: list[Start]) -> dict[str, float]:
  """`spent` as shares of their sum, from 0 to 1."""
  found = spent(starts)
  whole = max(sum(found.values()), 1e-9)
  return {cause: seconds / whole for cause, seconds in found.items()}


def summary(starts: list[Start]) -> str:
  """`shares` in one line."""
  whole = _duration(sum(spent(starts).values()))
  step, *others = shares(starts).items()
  times = "start" if len(starts) == 1 else "starts"
  rest = ", ".join(f"{cause} {share:.1%}" for cause, share in others)
  return f"goodput {step[1]:.1%} of {whole} in {len(starts)} {times}: {rest}"


def _duration(seconds: float) -> str:
  """With its two largest units."""
  for size, unit, part, below in (
    (86400, "d", 3600, "h"),
    (3600, "h", 60, "min"),
    (60, "min", 1, "s"),
  ):
    if seconds >= size:
      whole, rest = divmod(seconds, size)
      return f"{whole:.0f} {unit} {rest // part:.0f} {below}"
  return f"{seconds:.0f} s"


def read_starts(workdir: pathlib.Path) -> list[Start]:
  """The starts of a run so far; lines that are none are left out.

  Raises:
    UserError: the file cannot be read.
  """
  file = workdir / FILE
  try:
    lines = places.read_bytes(file).splitlines() if places.exists(file) else []
  except OSError as error:
    right = "must be a file that can be read, or not be there"
    raise UserError(f"{file}: {error.strerror or error}; {right}") from None
  found = [_start(line) for line in lines]
  return [start for start in found if start is not None]


def _start(line: bytes) -> Start | None:
  """A line of the file; None if it is no start."""
  try:
    row = parse_record(line.decode(), FILE)
    start = Start(**row)
  except (UserError, UnicodeDecodeError, TypeError):
    return None
  if type(start.seconds) is not dict or not start.seconds.keys() <= set(PHASES):
    return None
  numbers = [start.began, start.time, *start.seconds.values()]
  whole = [start.first, start.step]
  right = (
    all(type(number) in (int, float) for number in numbers)
    and all(type(number) is int for number in whole)
    and all(0 <= n < _LARGEST for n in (*numbers, *whole))
    and start.first <= start.step
    and type(start.done) is bool
  )
  return start if right else None


class Goodput:
  """The account of this start, and of those before it, as a context.

  At the end it is written for the last time, and said in a line.

  Args:
    earlier: starts of the run.
    first: the step that this one goes on from.
    total: the last step of the run.
    before: `here.seconds()` at its beginning.
    writer: of the metrics, which keeps the file.
    progress: which says the line.
  """

  def __init__(
    self,
    earlier: list[Start],
    first: int,
    total: int,
    before: dict[str, float],
    writer: MetricsWriter,
    progress: Progress,
  ):
    self._earlier, self._first, self._total = earlier, first, total
    self._before, self._writer, self._progress = before, writer, progress
    self._step = first
    self._began = time.time() - sum(self._seconds().values())

  def _seconds(self) -> dict[str, float]:
    now = here.seconds()
    return {phase: now[phase] - self._before[phase] for phase in PHASES}

  def _starts(self) -> list[Start]:
    """All of them, this one up to now."""
    done = self._step >= self._total
    row = self._began, time.time(), self._first, self._step, done, self._seconds()
    return [*self._earlier, Start(*row)]

  def reached(self, step: int) -> dict[str, float]:
    """Writes the file; returns `shares` under their names in the metrics.

    Args:
      step: the last one that was computed.
    """
    self._step = step
    starts = self._starts()
    self._write(starts)
    return {f"goodput/{cause}": share for cause, share in shares(starts).items()}

  def _write(self, starts: list[Start]) -> None:
    text = "".join(json.dumps(start._asdict()) + "\n" for start in starts)
    self._writer.keep(FILE, text)

  def __enter__(self) -> "Goodput":
    self._write(self._starts())
    return self

  def __exit__(self, kind, error, traceback) -> None:
    starts = self._starts()
    self._progress.say(summary(starts))
    try:
      self._write(starts)
    except OSError:
      if error is None:
        raise
