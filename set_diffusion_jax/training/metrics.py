"""Metrics of a run: `metrics.jsonl`, TensorBoard events, and the terminal."""

import json
import pathlib
import sys
import time

import tqdm
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from set_diffusion_jax.inputs import terminal
from set_diffusion_jax.storage import disk, folders, places, refusals

_SECONDS = 30  # from one copy of the metrics to a bucket to the next, at least


class MetricsWriter:
  """Appends metrics of a work directory, both as JSON lines and as events.

  On resume both are cut back to the restored step: what came after it happens again.
  In a bucket, mounted or not, nothing can be appended to: there the files are kept on
  this disk and copied whole, every now and then and before each save, so that a run
  which goes on from a step has the rows up to it.

  Args:
    workdir: of the run, on a disk or in a bucket.
    step: what was restored.
    owed: whether the evaluation of that step happens again as well.
    active: false in all processes but one; nothing is written then.
  """

  def __init__(
    self, workdir: pathlib.Path, step: int, owed: bool = False, active: bool = True
  ):
    self._active = active
    if not active:
      return
    self._bucket, kept = None, read_metrics(workdir / "metrics.jsonl")
    if not places.renames(workdir):
      self._bucket = workdir
      self._scratch = disk.scratch()
      workdir = pathlib.Path(self._scratch.name)
    self._folder = workdir
    kept = [row for row in kept if row["step"] <= step]
    if owed:
      again = lambda row: row["step"] == step and "train/loss" not in row
      kept = [row for row in kept if not again(row)]
    path = workdir / "metrics.jsonl"
    disk.write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = path.open("a")
    events = workdir / "tensorboard"
    for old in events.glob("events.*"):
      old.unlink()
    events.mkdir(exist_ok=True)
    # Without tensorboardX's own thread, where a full disk would be noticed by nobody.
    self._events = EventsWriter(str(events.absolute() / "events"))
    for row in kept:
      self._event(row)
    self._events.flush()
    if self._bucket is not None:
      folders.remove(self._bucket / "tensorboard")
      self.publish()

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds a row; names with a slash are grouped by TensorBoard."""
    if not self._active:
      return
    row = {"step": step, "time": time.time(), **values}
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    self._event(row)
    self._events.flush()
    if self._bucket is not None and time.monotonic() - self._published > _SECONDS:
      try:
        self.publish()
      except Exception as error:
        if not refusals.passes(error):
          raise
        self._published = time.monotonic()  # these rows go with the next copy

  def keep(self, name: str, content: str) -> None:
    """Writes a file beside the metrics, in the place of one that is there."""
    if self._active:
      disk.write_whole(self._folder / name, content)

  def publish(self) -> None:
    """Copies what has been written to the bucket of the run, if it is in one."""
    if self._active and self._bucket is not None:
      folders.upload(self._folder, self._bucket)
      self._published = time.monotonic()

  def _event(self, row: dict) -> None:
    for name, value in row.items():
      if name not in ("step", "time"):
        scalar = summary.scalar(name, value)
        event = Event(wall_time=row["time"], step=row["step"], summary=scalar)
        self._events.write_event(event)

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if self._active:
      self._file.close()
      self._events.close()
      try:
        if error is None or not refusals.passes(error):
          self.publish()
      finally:
        if self._bucket is not None:
          self._scratch.cleanup()


def read_metrics(path: pathlib.Path) -> list[dict]:
  """The rows of a metrics file, up to a line that is none: a kill may cut the last."""
  rows = []
  lines = places.read_bytes(path).splitlines() if places.exists(path) else []
  for line in lines:
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      break
    if not isinstance(row, dict) or type(row.get("step")) is not int:
      break
    rows.append(row)
  return rows


class Progress:
  """A progress bar with rate and ETA on a terminal, plain lines otherwise.

  Where `active` is false, as in all processes but one, there is neither.
  """

  def __init__(
    self,
    total: int,
    done: int = 0,
    label: str = "",
    unit: str = "step",
    active: bool = True,
  ):
    self._bar = None
    self._label, self._active = label, active
    if active and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total, initial=done, desc=label, unit=unit, dynamic_ncols=True
      )

  def advance(self, count: int = 1) -> None:
    """Moves the bar."""
    if self._bar is not None:
      self._bar.update(count)

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    if not self._active:
      return
    text = terminal.line(f"{self._label}: {line}" if self._label else line)
    if self._bar is not None:
      self._bar.write(text, file=sys.stderr)
    else:
      print(text, file=sys.stderr, flush=True)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *exception) -> None:
    if self._bar is not None:
      self._bar.close()
