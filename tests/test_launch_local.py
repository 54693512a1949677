"""launch/local.py and its processes: none outlives it, whatever ends it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from set_diffusion_jax.launch import local
from tests import jobs

# A run of two processes: each says that it is there, and ends with 42 after SIGTERM.
PROCESS = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *given: sys.exit(42))
pathlib.Path(os.environ["JAX_PROCESS_ID"]).write_text(str(os.getpid()))
time.sleep(600)
"""
LAUNCHER = f"""
import signal, sys
from set_diffusion_jax.launch import local
for number in local.STOPS:  # a shell has those in its background ignore some
  signal.signal(number, signal.SIG_DFL)
sys.exit(local.supervise([sys.executable, "-c", {PROCESS!r}], 2, None, 5))
"""


def until(true, what: str) -> None:
  """Waits for a condition."""
  deadline = time.monotonic() + jobs.TIMEOUT
  while not true():
    assert time.monotonic() < deadline, what
    time.sleep(0.05)


def is_gone(number: int) -> bool:
  """Whether a process has ended, waited for or not."""
  try:
    status = pathlib.Path(f"/proc/{number}/stat").read_text()
  except FileNotFoundError:
    return True
  return status.rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def launcher(tmp_path):
  """The launcher as a process, and the numbers of its two."""
  process = subprocess.Popen(
    [sys.executable, "-c", LAUNCHER],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(jobs.ROOT)},
    stderr=subprocess.DEVNULL,
  )
  files = [tmp_path / "0", tmp_path / "1"]
  until(lambda: all(f.exists() and f.read_text() for f in files), "processes start")
  yield process, [int(file.read_text()) for file in files]
  process.kill()
  process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no prctl")
def test_processes_end_with_a_killed_launcher(launcher):
  process, numbers = launcher
  process.kill()
  process.wait()
  for number in numbers:
    until(lambda number=number: is_gone(number), f"{number} ends")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_let_the_run_save(launcher, name):
  process, numbers = launcher
  process.send_signal(getattr(signal, name))
  assert process.wait(jobs.TIMEOUT) == 42
  assert all(map(is_gone, numbers))


def test_a_process_that_cannot_be_started_leaves_none(monkeypatch):
  started = []

  class Popen(subprocess.Popen):
    def __init__(self, *given, **named):
      if started:
        raise OSError("no more processes")
      super().__init__(*given, **named)
      started.append(self)

  monkeypatch.setattr(subprocess, "Popen", Popen)
  with pytest.raises(OSError, match="no more processes"):
    local.Job([sys.executable, "-c", "import time; time.sleep(600)"], 2, None)
  assert started[0].wait(jobs.TIMEOUT) == -signal.SIGKILL


def test_what_cannot_be_printed_holds_up_nobody(monkeypatch):
  """Bytes that are no text, and a terminal that is gone."""

  class Gone:
    def write(self, text):
      raise OSError("gone")

    flush = write

  code = "import os; os.write(1, b'\\xff\\n' * 9)"
  monkeypatch.setattr(sys, "stderr", Gone())
  with local.Job([sys.executable, "-c", code], 2, None) as job:
    assert job.result() == 0


@pytest.fixture
def handlers():
  """Those of this process, which `supervise` replaces, are there again afterwards."""
  before = {number: signal.getsignal(number) for number in local.STOPS}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


HANGING = """
import os, pathlib, signal, sys, time
count = pathlib.Path("count-" + os.environ["JAX_PROCESS_ID"])
attempt = len(count.read_text()) if count.exists() else 0
count.write_text("x" * (attempt + 1))
if attempt == 0 and os.environ["JAX_PROCESS_ID"] == "1":
  os.kill(os.getpid(), signal.SIGSTOP)
sys.exit(CODE if attempt == 0 else 0)
"""


@pytest.mark.parametrize("code", [0, 42])
def test_a_process_that_stands_still_after_the_others_ended_well(
  handlers, tmp_path, monkeypatch, code
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(local, "FAREWELL", 0.5)
  program = [sys.executable, "-c", HANGING.replace("CODE", str(code))]
  assert local.supervise(program, 2, None, 1) == 0
  assert (tmp_path / "count-0").read_text() == "xx"


def test_who_has_not_heard_of_a_stop_is_told(handlers, tmp_path, monkeypatch):
  """One was asked to stop before it met the others: that is no failure."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(local, "HEARD", 0.2)
  program = [sys.executable, "-c", UNMET]
  assert local.supervise(program, 3, None, 0) == 0
  assert (tmp_path / "count-0").read_text() == "xx"


UNMET = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *given: sys.exit(42))
me = os.environ["JAX_PROCESS_ID"]
count = pathlib.Path("count-" + me)
attempt = len(count.read_text()) if count.exists() else 0
count.write_text("x" * (attempt + 1))
while attempt == 0 and not all(os.path.exists(f"count-{n}") for n in range(3)):
  time.sleep(0.01)
if attempt == 0 and me != "1":
  time.sleep(600)  # in the meeting
sys.exit(42 if attempt == 0 else 0)
"""
