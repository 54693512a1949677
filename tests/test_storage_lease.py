"""One run at a time in a work directory: leases, taken over from what is gone."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from set_diffusion_jax.cli import main
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import lease as module
from set_diffusion_jax.storage.lease import Lease, holds
from set_diffusion_jax.training.reporting import Journal
from set_diffusion_jax.training.train import train
from tests import jobs
from tests.test_train import config, settings

HOLDER = """
import pathlib, sys, time
from set_diffusion_jax.storage.lease import Lease
lease = Lease(pathlib.Path(sys.argv[1]))
lease.take()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def elsewhere(tmp_path):
  """A process of its own that holds the lease of tmp_path/run."""
  words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
  process = subprocess.Popen(words, cwd=jobs.ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def current(workdir) -> pathlib.Path:
  (file,) = (workdir / ".lease").glob("*.json")
  return file


def change(workdir, age=0.0, **fields) -> None:
  """Changes what the lease says, as if it had been last touched `age` seconds ago."""
  file = current(workdir)
  file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
  os.utime(file, (time.time() - age,) * 2)


def test_given_back_and_taken_again(tmp_path):
  for _ in range(2):
    lease = Lease(tmp_path / "run")
    assert lease.take() is None
    assert holds(tmp_path / "run", lease.nonce)
    lease.check()
    with pytest.raises(
      UserError, match=f"is held by another run, process {os.getpid()}"
    ):
      Lease(tmp_path / "run").take()
    lease.check()
    lease.release()
    assert not holds(tmp_path / "run", lease.nonce)
  assert [path.name for path in (tmp_path / "run").iterdir()] == [".lease"]
  assert len(list((tmp_path / "run" / ".lease").iterdir())) == 1


def test_another_process_holds_it_until_it_is_killed(tmp_path, elsewhere):
  """A killed process, too, that its parent has not yet asked for (a zombie)."""
  run = tmp_path / "run"
  os.utime(current(run), (1, 1))  # on the same machine age does not count
  right = f"process {elsewhere.pid} on .* wait for its end, or stop it$"
  with pytest.raises(UserError, match=right):
    Lease(run).take()
  elsewhere.send_signal(signal.SIGKILL)
  os.waitid(os.P_PID, elsewhere.pid, os.WEXITED | os.WNOWAIT)
  lease = Lease(run)
  line = lease.take()
  assert line.startswith(f"WARNING: --workdir={run}: taken over from process ")
  assert line.endswith("which is gone")
  lease.release()


def test_a_number_of_a_process_that_another_has_by_now(tmp_path, elsewhere):
  run = tmp_path / "run"
  change(run, started=json.loads(current(run).read_text())["started"] - 1)
  lease = Lease(run)
  assert "which is gone" in lease.take()
  lease.release()


def test_another_machine_holds_it_until_it_is_silent(tmp_path, elsewhere):
  """Whatever process has that number here."""
  run = tmp_path / "run"
  other = {"machine": "another boot", "host": "far", "pid": 1}
  change(run, age=590, **other)
  with pytest.raises(UserError, match=r"process 1 on far, last heard of 59. s ago"):
    Lease(run).take()
  with pytest.raises(UserError, match="after 700 s without a sign of life"):
    Lease(run, 700).take()
  change(run, age=610, **other)
  lease = Lease(run)
  assert "which has not been heard of for 61" in lease.take()
  lease.release()


def test_a_lease_that_is_only_half_there(tmp_path):
  lease = Lease(tmp_path)
  lease.take()
  current(tmp_path).write_text('{"host": "h')
  with pytest.raises(UserError, match=r"process \? on an unknown host"):
    Lease(tmp_path).take()
  lease.release()


@pytest.mark.parametrize(
  "names",
  [
    ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("SET_DIFFUSION_JOB", "SET_DIFFUSION_ATTEMPT"),
  ],
)
def test_the_next_start_of_a_job_takes_over(tmp_path, monkeypatch, names):
  """Though its machine is another and the lease is fresh; the same start does not."""
  job, attempt = names
  monkeypatch.setenv(job, "17")
  first = Lease(tmp_path)
  first.take()
  change(tmp_path, machine="another boot")
  for other in ({attempt: "0"}, {attempt: "1", job: "18"}, {attempt: "x"}):
    with monkeypatch.context() as patch:
      for name, value in other.items():
        patch.setenv(name, value)
      with pytest.raises(UserError, match="is held by another run"):
        Lease(tmp_path).take()
  monkeypatch.setenv(attempt, "1")
  second = Lease(tmp_path)
  assert f"which was an earlier start of this job ({job}=17)" in second.take()
  second.check()
  with pytest.raises(UserError, match="another run has taken it over from this one"):
    first.check()
  first.release()  # which must not give back what is the second's
  second.check()
  assert holds(tmp_path, second.nonce)
  second.release()


def test_a_holder_shows_itself(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "HEARTBEAT", 0.02)
  lease = Lease(tmp_path)
  lease.take()
  os.utime(current(tmp_path), (1, 1))
  deadline = time.monotonic() + 30
  while current(tmp_path).stat().st_mtime < 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  lease.release()


RACE = """
import errno, os, pathlib, sys, time
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage.lease import Lease
folder, links = pathlib.Path(sys.argv[1]), sys.argv[2] == "True"
if not links:
  def os_link(*_):
    raise OSError(errno.EPERM, "no links here")
  os.link = os_link
both = taken = 0
while taken < 20:
  lease = Lease(folder)
  try:
    lease.take()
  except UserError as error:
    assert "is held by another run" in str(error), error
    time.sleep(0.002)
    continue
  taken += 1
  try:
    (folder / "inside").touch(exist_ok=False)
    (folder / "inside").unlink()
  except OSError:
    both += 1
  lease.release()
print(both)
"""


@pytest.mark.parametrize("links", [True, False])
def test_never_two_at_once(tmp_path, links):
  """Four processes take it and give it back; on file systems without links as well."""
  words = [sys.executable, "-c", RACE, str(tmp_path), str(links)]
  processes = [
    subprocess.Popen(words, cwd=jobs.ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(4)
  ]
  try:
    said = [process.communicate(timeout=jobs.TIMEOUT)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert said == ["0\n"] * 4


def test_a_second_run_is_refused_in_one_line(tmp_path, capsys):
  """By the command line, with 2; what the first run has is as it was."""
  run = tmp_path / "run"
  file = jobs.config_file(tmp_path, settings(tmp_path))
  lease = Lease(run)
  lease.take()
  assert main(["train", f"--config={file}", f"--workdir={run}"]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith(f"error: --workdir={run}: is held by another run, process ")
  assert [path.name for path in run.iterdir()] == [".lease"]
  lease.release()


@pytest.mark.slow
def test_a_run_ends_before_it_saves_what_another_has(tmp_path, monkeypatch):
  """It takes the directory over at step 3; steps 4 and 6 were to be saved."""
  run = tmp_path / "run"
  add, others = Journal.add, []

  def taken(self, step, *more):
    if step == 3:
      change(run, pid=2**22 + 1)  # as one that is gone
      others.append(Lease(run))
      others[0].take()
    add(self, step, *more)

  with monkeypatch.context() as patch:
    patch.setattr(Journal, "add", taken)
    with pytest.raises(UserError, match="another run has taken it over from this one"):
      train(config(tmp_path), run)
  assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2"]
  others[0].check()
  others[0].release()
  train(config(tmp_path), run)  # which has given it back
  Lease(run).take()


SEEN_FROM = """
import os, sys
os.chdir(sys.argv.pop(1))  # what the rest of the command calls /proc/self/cwd
from set_diffusion_jax.cli import main
from set_diffusion_jax.training import home
home.SHOWS_AFTER = 3.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.jobs
def test_a_directory_that_hosts_do_not_share_is_found_before_training(tmp_path):
  """Two processes for which one path is two directories; then they share it."""
  fields = settings(tmp_path, mesh__fsdp=2, mesh__tensor=1)
  file = jobs.config_file(tmp_path, fields)
  hosts = [tmp_path / "host-0", tmp_path / "host-1"]
  for host in hosts:
    host.mkdir()

  def run(folders):
    """The exit codes, and what the processes print."""
    address = f"127.0.0.1:{jobs.free_port()}"
    processes = []
    for index, folder in enumerate(folders):
      words = [sys.executable, "-c", SEEN_FROM, str(folder), "train"]
      words += [f"--config={file}", "--workdir=/proc/self/cwd/run"]
      words += [f"--coordinator={address}", "--processes=2", f"--process={index}"]
      environment = jobs.environment(1, PYTHONPATH=str(jobs.ROOT))
      processes.append(
        subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
      )
    texts = [process.communicate(timeout=jobs.TIMEOUT)[1] for process in processes]
    return [process.returncode for process in processes], texts

  codes, texts = run(hosts)
  assert codes == [2, 2], texts
  for text in texts:
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert line == (
      "error: process 1: --workdir=/proc/self/cwd/run: what process 0 wrote there "
      "cannot be seen here; must be a directory that all hosts share"
    )
  assert not (hosts[0] / "run" / "config.json").exists()
  assert not (hosts[1] / "run").exists()
  codes, texts = run(hosts[:1] * 2)
  assert codes == [0, 0], texts
  # The first process held it for both, and has given it back.
  Lease(hosts[0] / "run").take()
