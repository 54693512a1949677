"""What happens inside the processes of a job, and what they note down.

`enter` is called at the start of the launcher and of each process (hook/). It wraps
`Phases.phase`, by which the package says what a process is doing: each beginning of a
phase is a line of the cell's `notes`, and at the moment of the cell the event happens,
in the first attempt alone.
"""

import contextlib
import errno
import importlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time

from tests.chaos.cells import PHASES, Cell

# Names of environment variables: the folder of the cell, and the launcher's process.
FOLDER, LAUNCHER = "SET_DIFFUSION_CHAOS", "SET_DIFFUSION_CHAOS_LAUNCHER"
CELL, NOTES, TRIGGER = "cell.json", "notes.jsonl", "trigger"  # files there


def enter() -> None:
  """Takes the part of this process, if it has one in a cell."""
  folder = os.environ.get(FOLDER)
  if folder is None:
    return
  home = pathlib.Path(folder)
  plan = json.loads((home / CELL).read_text())
  if LAUNCHER not in os.environ:
    os.environ[LAUNCHER] = str(os.getpid())
    _watch_launcher(home, plan)
  elif os.environ[LAUNCHER] == str(os.getppid()):
    Victim(home, plan).enter()


def _note(home: pathlib.Path, **fields) -> None:
  """A line of the notes; with a full disk there is none."""
  fields |= {"at": time.monotonic(), "pid": os.getpid()}
  flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
  with contextlib.suppress(OSError):
    file = os.open(home / NOTES, flags, 0o644)
    try:
      os.write(file, (json.dumps(fields) + "\n").encode())
    finally:
      os.close(file)


def _watch_launcher(home: pathlib.Path, plan: dict) -> None:
  """The launcher notes with which codes its processes end, and waits for the event."""
  plain = subprocess.Popen.wait

  def wait(process, timeout=None):
    code = plain(process, timeout)
    _note(home, what="ended", of=process.pid, code=code)
    return code

  subprocess.Popen.wait = wait
  trigger = home / TRIGGER

  def watch():
    while not trigger.exists():
      time.sleep(0.02)
    trigger.unlink()
    _happen(Cell(**plan["cell"]), home, plan)

  threading.Thread(target=watch, daemon=True).start()


class Victim:
  """A process of the job.

  Args:
    home: the folder of the cell.
    plan: what job.py wrote there.
  """

  def __init__(self, home: pathlib.Path, plan: dict):
    self._home, self._plan = home, plan
    self._cell = Cell(**plan["cell"]) if plan["cell"] else None
    self._index = int(os.environ.get("JAX_PROCESS_ID", 0))
    self._begun: dict[str, int] = {}
    self._inside: list[str] = []
    self._first_step = self._step = None

  def enter(self) -> None:
    """Notes that there is this process, and wraps `Phases.phase`."""
    count = self._home / f"attempts-{self._index}"
    with count.open("a") as file:
      file.write("x")
    self._attempt = count.stat().st_size - 1
    self._say("start")
    phases = importlib.import_module("set_diffusion_jax.jobs.phases")
    plain = phases.Phases.phase

    @contextlib.contextmanager
    def phase(account, name, *arguments, **named):
      with plain(account, name, *arguments, **named):
        self._inside.append(name)
        step = named.get("step", arguments[0] if arguments else None)
        self._begins(name, step)
        try:
          yield
        finally:
          self._inside.pop()
      if name == "save" and not self._inside and sys.exc_info()[0] is None:
        self._begins("exit", None)  # the last save is over

    phases.Phases.phase = phase

  def _say(self, what: str, **fields) -> None:
    fields |= {"process": self._index, "attempt": self._attempt}
    _note(self._home, what=what, **fields)

  def _begins(self, name: str, step: int | None) -> None:
    if name == "step":
      self._first_step = self._first_step or step
      self._step = step
      name = "first step" if step == self._first_step else "step"
    if name not in PHASES:
      return
    self._begun[name] = self._begun.get(name, 0) + 1
    place = _place(name, self._step)
    self._say("phase", phase=name, step=step, place=place)
    if name == "restore" and self._attempt and self._plan.get("plant"):
      _plant(self._plan["plant"])
    cell = self._cell
    if cell is None or self._attempt or self._index != cell.process:
      return
    if name == cell.phase and cell.nth == (
      step if name == "step" else self._begun[name]
    ):
      if cell.delay:
        timer = threading.Timer(cell.delay, self._act, (place,))
        timer.daemon = True
        timer.start()
      else:
        self._act(place)

  def _act(self, place: list) -> None:
    """Has the event happen, here or to the launcher."""
    cell = self._cell
    self._say("event", place=place)
    if cell.role != "launcher":
      _happen(cell, self._home, self._plan)
    elif cell.event.startswith("SIG"):
      os.kill(os.getppid(), getattr(signal, cell.event))
    else:
      (self._home / TRIGGER).touch()


def _place(phase: str, step: int | None) -> list:
  """How far a process has come, to be compared: before, in or after the loop."""
  if phase == "exit":
    return [2, 0]
  return [0, PHASES.index(phase)] if step is None else [1, step]


def _happen(cell: Cell, home: pathlib.Path, plan: dict) -> None:
  """The event, to this process."""
  if cell.event.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, cell.event))
  elif cell.event == "exit in a thread":
    thread = threading.Thread(target=os._exit, args=(1,))
    thread.start()
    thread.join()
  elif cell.event == "full disk":
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
  elif cell.event == "unreadable file":
    _make_unreadable(plan["unreadable"], plan["records"])
  else:
    _move_clock(cell.jump)


def _make_unreadable(folder: str, records: bool) -> None:
  """Reading below a folder fails in this process from now on, or that of records."""
  reason = os.strerror(errno.EIO)

  def hook(event, arguments):
    if event != "open" or not isinstance(arguments[0], str | bytes):
      return
    path, _, flags = arguments
    reading = not flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY)
    if reading and os.path.realpath(os.fsdecode(path)).startswith(folder):
      raise OSError(errno.EIO, reason, path)

  sys.addaudithook(hook)
  if not records:  # they are read in C++
    return
  grain = importlib.import_module("grain")

  def get(source, index):
    raise RuntimeError(f"open() failed: {reason}")

  grain.sources.ArrayRecordDataSource.__getitem__ = get


def _move_clock(seconds: float) -> None:
  """The wall clock of this process is wrong from now on."""
  now, now_ns = time.time, time.time_ns
  time.time = lambda: now() + seconds
  time.time_ns = lambda: now_ns() + int(seconds * 10**9)


def _plant(fault: str) -> None:
  """A fault of the package, which the suite has to find."""
  if fault == "hang":
    os.kill(os.getppid(), signal.SIGSTOP)
    return
  run = importlib.import_module("set_diffusion_jax.training.run").Run
  plain = run.put
  # Each row of a batch is another one's.
  run.put = lambda self, batch: plain(self, {k: v[::-1] for k, v in batch.items()})
