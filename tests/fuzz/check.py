"""What must be true of every input, and how it is watched.

The exit code is 0 or 2. A refusal is one line on standard error that starts with
"error: ", can be shown on a terminal, and names the field or the file. No exception
escapes, Rust's panics included. Nothing is written but what the case may write, nothing
is executed, no connection is made. It ends within the time and the memory allowed. What
is accepted is right: that is a function of the case itself.
"""

import contextlib
import dataclasses
import gc
import os
import pathlib
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator

from tests.fuzz.streams import Streams, captured
from tests.fuzz.watch import SECRET, watcher

ADDRESS_SPACE = 4 * 2**30  # what a run may map beyond what the process has mapped
# What reading a text has changed is said before anything else of it is looked at.
_NOTE = re.compile(r"^--input=.*: [0-9,]+ (byte-order mark|line end|carriage return)")
# Words of command lines and configurations, which a refusal may name.
_FIELD = re.compile(r"--[a-z]|\b[a-z_]+\.[a-z_]+\b|^error: [a-z_]+:")


@dataclasses.dataclass
class Case:
  """One input.

  Attributes:
    kind: its row of the table.
    what: how it was made, in a line.
    box: a folder of its own, with the input inside.
    run: gives it to the command line; returns the exit code.
    shown: the arguments, for who runs it again.
    names: a refusal has one of these, or a field.
    writes: files or folders that may be new or changed.
    right: says what is wrong about the result of exit code 0, from its output.
  """

  kind: str
  what: str
  box: pathlib.Path
  run: Callable[[], int]
  shown: list[str]
  names: tuple[str, ...] = ()
  writes: tuple[pathlib.Path, ...] = ()
  right: Callable[[str], str | None] | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one run: seconds, and bytes that the process may grow by."""

  seconds: float = 20.0
  growth: int = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended.

  Attributes:
    code: exit code; None: it did not end by itself.
    fault: None, or which rule was broken.
    group: equal for faults that are likely the same.
    detail: for who repairs it.
  """

  code: int | None
  fault: str | None = None
  group: str = ""
  detail: str = ""


class TimeUp(BaseException):
  """The time allowed is over; no handler of errors catches it."""


ALLOWED = Limits()


def check(case: Case, limits: Limits = ALLOWED) -> Outcome:
  """Runs a case and looks at everything that it must not do."""
  before = tree(case.box)
  with captured() as streams:
    ended = _run(case, limits)
    streams.read()
  code, fault, group, detail = ended
  if fault is None:
    fault, detail = _said(case, code, streams)
  if fault is None:
    fault, detail = _left(case, before, tree(case.box), code)
  if fault is None and SECRET in streams.out + streams.err + _written(case):
    fault, detail = "outside read", "what lies outside the input is in the result"
  if fault is None and code == 0 and case.right is not None:
    wrong = _wrong(case, streams.out)
    fault, detail = ("wrong result", wrong) if wrong else (None, "")
  if fault is None:
    return Outcome(code)
  group = group or f"{fault}: {re.sub('[0-9]+|/[^ :]*', '#', detail)[:100]}"
  return Outcome(code, fault, group, detail)


def _run(case: Case, limits: Limits) -> tuple[int | None, str | None, str, str]:
  """Exit code, fault, group and detail of the run alone."""
  watch = watcher()
  watch.box, watch.executed, watch.outside = case.box, [], []
  code, escaped = None, None
  resident = _restart_peak()
  start = time.monotonic()
  try:
    with _limited(limits.seconds):
      code = case.run()
  except SystemExit as end:  # of argparse's --help
    code = 0 if end.code is None else end.code
  except BaseException as error:
    escaped = error
  seconds, grown = time.monotonic() - start, _peak() - resident
  watch.box = None
  if code == 130:
    raise KeyboardInterrupt
  if watch.executed:
    return code, "executed", "", watch.executed[0]
  if watch.outside:
    return code, "outside", "", watch.outside[0]
  if isinstance(escaped, TimeUp) or seconds > limits.seconds:
    place = _place(escaped) if escaped else ""
    return code, "time", f"time: {place}", f"{seconds:.1f} s, {place}"
  if grown > limits.growth:
    return code, "memory", f"memory: {case.kind}", f"grew by {grown / 2**20:.0f} MB"
  if escaped is not None:
    name = type(escaped).__name__
    text = "".join(traceback.format_exception(escaped))
    return code, "traceback", f"{name} at {_place(escaped)}", text
  return code, None, "", ""


def _said(case: Case, code, streams: Streams) -> tuple[str | None, str]:
  """Whether exit code and standard error are as they must be."""
  if code not in (0, 2):
    return "exit code", f"{code}; {streams.err[:500]}"
  if code == 0:
    return None, ""
  lines = [one for one in streams.err.split("\n") if not _NOTE.search(one)]
  if len(lines) != 2 or lines[1] or not lines[0].startswith("error: "):
    return "not one line", streams.err[:1000]
  line = lines[0]
  longest = max(map(len, case.shown), default=0)
  if not line.isprintable() or len(line) > 2000 + longest:
    return "unreadable line", repr(line[:1000])
  if not (_FIELD.search(line) or any(name in line for name in case.names)):
    return "names nothing", line
  return None, ""


def _wrong(case: Case, output: str) -> str | None:
  """What is wrong with the result; a check that fails is not right either."""
  with captured():
    try:
      return case.right(output)
    except KeyboardInterrupt:
      raise
    except BaseException as error:
      return f"{type(error).__name__} at {_place(error)} when it is read again"


def _left(case: Case, before: dict, after: dict, code) -> tuple[str | None, str]:
  """Whether only what may change has changed; nothing at all after a refusal."""
  changed = [p for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
  allowed = [str(path.relative_to(case.box)) for path in case.writes]
  for path in sorted(changed):
    inside = any(path == one or path.startswith(f"{one}/") for one in allowed)
    if not inside:
      kind = "gone" if path not in after else "new" if path not in before else "changed"
      return "outside", f"{path} is {kind}"
    if code == 2 and before.get(path) is None:
      return "left over", f"{path} is there after a refusal"
  return None, ""


def _written(case: Case) -> str:
  """The bytes of all that the case wrote."""
  found = []
  for path in case.writes:
    if not os.path.lexists(path):  # its name may be longer than names can be
      continue
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    found += [f.read_bytes() for f in files if f.is_file() and not f.is_symlink()]
  return b"\n".join(found).decode("latin-1")


def tree(folder: pathlib.Path) -> dict[str, tuple]:
  """Everything below a folder: what it is, its size and when it was changed."""
  found = {}
  pending = [str(folder)]
  while pending:
    for entry in os.scandir(pending.pop()):
      is_folder = entry.is_dir(follow_symlinks=False)
      facts = entry.stat(follow_symlinks=False)
      link = os.readlink(entry.path) if entry.is_symlink() else None
      times = () if is_folder else (facts.st_size, facts.st_mtime_ns, facts.st_ino)
      found[os.path.relpath(entry.path, folder)] = (facts.st_mode, link, *times)
      if is_folder:
        pending.append(entry.path)
  return found


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
  """An alarm after so many seconds; no more address space than ADDRESS_SPACE more."""

  def alarm(*_):
    raise TimeUp

  handler = signal.signal(signal.SIGALRM, alarm)
  limits = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESS_SPACE, limits[1]))
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def _status(name: str) -> int:
  """A line of /proc/self/status, in bytes."""
  text = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024


def _restart_peak() -> int:
  """Forgets the highest resident size so far; returns the present one."""
  gc.collect(0)
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  return _status("VmRSS")


def _peak() -> int:
  return _status("VmHWM")


def _place(error: BaseException) -> str:
  """The innermost line of the package that an exception passed through."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [f for f in frames if "set_diffusion_jax" in f.filename] or list(frames)
  if not own:
    return "nowhere"
  last = own[-1]
  return f"{pathlib.Path(last.filename).name}:{last.lineno} {last.name}"
