"""A cell is run: the launcher is started as a user starts it, and again if it must be.

Whoever had to start it again would first have freed the disk, or killed a launcher that
does nothing: so does `run`. Nothing but the first attempt is disturbed.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from set_diffusion_jax.config import Config
from set_diffusion_jax.data import prepare
from set_diffusion_jax.training.train import train
from tests import jobs
from tests.chaos import victim
from tests.chaos.cells import STEPS, Cell
from tests.test_train import settings

LIMIT = 420  # seconds, within which a launcher must have ended
ALONE = 60  # seconds, within which all processes are gone after their launcher
RESTARTS = 3  # more than any cell needs, so that one too many is seen
STUCK = 30  # seconds, --stuck-after: nothing here takes a tenth of it
HOOK = pathlib.Path(__file__).parent / "hook"


class Launch(NamedTuple):
  """One start of the launcher, to its end.

  Attributes:
    code: with which it ended, or minus the signal; None if it did not within LIMIT.
    text: what it and its processes printed.
    left: the processes that were still there ALONE seconds later.
  """

  code: int | None
  text: str
  left: list[int]


class Account(NamedTuple):
  """What came of a cell.

  Attributes:
    launches: in their order.
    notes: what processes noted down, see victim.py.
    workdir: of the run.
  """

  launches: list[Launch]
  notes: list[dict]
  workdir: pathlib.Path

  def attempts(self) -> list[dict[int, int]]:
    """The pids of each attempt, by the number of the process."""
    found: list[dict[int, int]] = []
    for note in self.notes:
      if note["what"] == "start":
        while len(found) <= note["attempt"]:
          found.append({})
        found[note["attempt"]][note["process"]] = note["pid"]
    return found

  def codes(self) -> list[dict[int, int]]:
    """Exit codes in each attempt; of those whose launcher was there to see them."""
    ended = {n["of"]: n["code"] for n in self.notes if n["what"] == "ended"}
    code = lambda pid: ended[pid] if ended[pid] >= 0 else 128 - ended[pid]
    return [
      {number: code(pid) for number, pid in sorted(pids.items()) if pid in ended}
      for pids in self.attempts()
    ]

  def seconds(self) -> float | None:
    """From the event until the job was there again, or has ended; None without one."""
    events = [note for note in self.notes if note["what"] == "event"]
    if not events or len(self.attempts()) == 1:
      return 0.0 if events else None
    (event,) = events
    later = [
      note["at"]
      for note in self.notes
      if note["what"] == "phase" and note["attempt"] and note["place"] >= event["place"]
    ]
    return min(later) - event["at"] if later else None


class Home:
  """A folder with what all cells need: a corpus, weights, undisturbed runs.

  Args:
    folder: an empty one.
    say: is told what takes a while.
  """

  def __init__(self, folder: pathlib.Path, say=lambda line: None):
    self.folder, self._say = folder, say
    self._runs: dict[tuple[int, int], pathlib.Path] = {}
    fields = settings(
      folder, train__steps=1, train__keep_latest=2, mesh__fsdp=1, mesh__tensor=1
    )
    say("preparing the corpus and the weights that runs start from")
    corpus = folder / "corpus"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
      prepare(Config.from_dict(fields.to_dict()).data, corpus)
      fields.mesh.data = -1
      fields.data.update(
        {"source": "prepared", "directory": str(corpus), "train_path": None}
      )
      train(Config.from_dict(fields.to_dict()), folder / "weights")
    fields.train.update({"steps": STEPS, "log_every": 1})
    fields.train.update({"evaluate_every": 4, "checkpoint_every": 2})
    fields.init_from = str(folder / "weights")
    self.config = Config.from_dict(fields.to_dict())
    self._file = jobs.config_file(self._made("config"), fields)

  def _made(self, name: str) -> pathlib.Path:
    path = self.folder / name
    path.mkdir()
    return path

  def undisturbed(self, processes: int, steps: int = STEPS) -> pathlib.Path:
    """The work directory of a run that nothing happens to, made only once."""
    key = processes, steps
    if key not in self._runs:
      self._say(f"an undisturbed run: {processes} processes, {steps} steps")
      folder = self._made(f"undisturbed-{processes}-{steps}")
      found = self._run(folder, None, processes, (f"--config.train.steps={steps}",))
      (only,) = found.launches
      assert only.code == 0 and len(found.attempts()) == 1, only.text
      self._runs[key] = found.workdir
    return self._runs[key]

  def run(self, name: str, cell: Cell, plant: str | None = None, limit: float = LIMIT):
    """What comes of a cell: an Account.

    Args:
      name: of its folder, which must not be there.
      cell: what happens.
      plant: a fault of the package, see victim.py.
      limit: seconds, see LIMIT.
    """
    folder = self._made(name)
    if cell.phase == "restore":
      half = self.undisturbed(cell.processes, STEPS // 2)
      shutil.copytree(half, folder / "run", symlinks=True)
    return self._run(folder, cell, cell.processes, (), plant, limit)

  def _run(
    self, folder, cell, processes, more=(), plant=None, limit: float = LIMIT
  ) -> Account:
    read = {"restore": folder / "run/checkpoints", "init": self.folder / "weights"}
    read["compile"] = jobs.CACHE.name
    phase = cell.phase if cell else None
    plan = {
      "cell": cell._asdict() if cell else None,
      "unreadable": os.path.realpath(read.get(phase, self.folder / "corpus")),
      "records": phase not in read,
      "plant": plant,
    }
    (folder / victim.CELL).write_text(json.dumps(plan))
    words = [sys.executable, str(jobs.ROOT / "launch/local.py"), "--devices=1"]
    words += [f"--processes={processes}", f"--restarts={RESTARTS}", "--", "train"]
    words += [f"--config={self._file}", f"--workdir={folder}/run", *more]
    words += ["--meeting-timeout=60", f"--stuck-after={STUCK}"]
    paths = [str(HOOK), str(jobs.ROOT), os.environ.get("PYTHONPATH", "")]
    variables = jobs.environment(1, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    variables |= {"XLA_FLAGS": jobs.QUICK_COMPILATION, victim.FOLDER: str(folder)}
    launches = [_launch(words, variables, folder, cell, limit)]
    if launches[0].code not in (0, None) and not launches[0].left:
      launches.append(_launch(words, variables, folder, None, limit))
    return Account(launches, _notes(folder), folder / "run")


def _launch(words, variables, folder, cell: Cell | None, limit: float) -> Launch:
  """Starts the launcher and waits for its end and that of its processes."""
  launcher = subprocess.Popen(
    words,
    cwd=jobs.ROOT,
    env=variables,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    stdin=subprocess.DEVNULL,
  )
  parts: list[bytes] = []
  read = lambda: parts.extend(iter(lambda: launcher.stdout.read1(), b""))
  reader = threading.Thread(target=read, daemon=True)
  reader.start()
  stopped = cell is not None and (cell.event, cell.role) == ("SIGSTOP", "launcher")
  ended = lambda: launcher.poll() is not None
  if stopped:
    ended = lambda: _has_stopped(launcher.pid) and not _others(folder, launcher.pid)
  in_time = _await(ended, limit)
  code = launcher.poll()
  if stopped and in_time:  # what its user does who finds it
    launcher.kill()
    code = launcher.wait()
  gone = in_time and _await(lambda: not _others(folder, launcher.pid), ALONE)
  left = [] if gone else _others(folder, launcher.pid)
  for pid in left:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)
  launcher.kill()
  launcher.wait()
  reader.join()  # nobody is left who could write
  launcher.stdout.close()
  return Launch(code, b"".join(parts).decode(errors="replace"), left)


def _await(condition, seconds: float) -> bool:
  """Whether something was so within a time."""
  deadline = time.monotonic() + seconds
  while not condition():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.05)
  return True


def _has_stopped(pid: int) -> bool:
  """Whether SIGSTOP holds a process."""
  text = pathlib.Path(f"/proc/{pid}/stat").read_text()
  return text.rpartition(")")[2].split()[0] == "T"


def _others(folder: pathlib.Path, launcher: int) -> list[int]:
  """The processes of a cell besides the launcher, told by their environment."""
  mark = re.compile(rf"(^|\0){victim.FOLDER}={re.escape(str(folder))}\0".encode())
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    with contextlib.suppress(OSError):  # it has just ended
      if mark.search(path.read_bytes()) and int(path.parent.name) != launcher:
        found.append(int(path.parent.name))
  return found


def _notes(folder: pathlib.Path) -> list[dict]:
  file = folder / victim.NOTES
  lines = file.read_text().splitlines() if file.exists() else []
  return [json.loads(line) for line in lines]
