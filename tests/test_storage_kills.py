"""What goes wrong with runs in a bucket changes none of their figures."""

import threading

import pytest

from set_diffusion_jax.errors import DiskError, StoreError
from set_diffusion_jax.storage import folders, places, steps
from set_diffusion_jax.training.train import train
from tests import buckets, fault_proxy, jobs, kills
from tests.test_processes import WHOLE, assert_equal_curves, curve
from tests.test_storage_runs import rows
from tests.test_train import assert_identical, config, final, settings

pytestmark = pytest.mark.slow

# A method and what a request is of: each kind of object is written, read and removed.
REQUESTS = [
  ("GET", r"\?.*prefix=[^&]*/\.lease/&"),
  ("POST", r"/\.lease/1\.json.*attempt"),
  ("GET", r"/\.lease/1\.json\?alt=media"),
  ("POST", r"/config\.json"),
  ("GET", r"/config\.json\?alt=media"),
  ("POST", r"/metrics\.jsonl"),
  ("GET", r"/metrics\.jsonl\?alt=media"),
  ("POST", r"/tensorboard/events"),
  ("DELETE", r"/tensorboard/events"),
  ("GET", r"\?.*prefix=[^&]*/checkpoints/&"),
  ("POST", r"/checkpoints/.*/d/"),
  ("GET", r"/checkpoints/.*/d/.*alt=media"),
  ("POST", r"/checkpoints/.*manifest\.ocdbt&"),
  ("POST", r"/checkpoints/\d/meta/metadata&uploadType"),
  ("POST", r"/checkpoints/\d/meta/metadata&upload_id"),
  ("GET", r"/checkpoints/\d/meta/metadata.*alt=media"),
  ("POST", r"/checkpoints/\d/commit_success\.txt&uploadType"),
  ("POST", r"/checkpoints/\d/commit_success\.txt&upload_id"),
  ("GET", r"/checkpoints/\d/commit_success\.txt"),
  ("DELETE", r"/checkpoints/\d/commit_success\.txt"),
  ("DELETE", r"/checkpoints/.*/d/"),
]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  """A run on a disk, to be equalled, and configurations of its half and all of it."""
  folder = tmp_path_factory.mktemp("disk")
  changes = {"train__keep_latest": 2, "train__evaluate_every": 4}
  half, whole = (config(folder, train__steps=n, **changes) for n in (4, 8))
  train(whole, folder / "run")
  return folder / "run", half, whole


@pytest.mark.parametrize("fault", fault_proxy.FAULTS)
def test_a_fault_of_each_kind_of_request_changes_nothing(on_disk, fault):
  """In a run that is stopped and goes on."""
  run, half, whole = on_disk
  target = places.path(buckets.fresh())
  once = fault_proxy.Once(fault, REQUESTS)
  with buckets.judged(once):
    train(half, target)
    train(whole, target)
  assert once.left == []
  assert steps.numbers(target / "checkpoints") == [6, 8]
  assert not places.exists(target / "damaged")
  assert rows(target) == rows(run)
  assert_identical(final(whole, target), final(whole, run))


@pytest.mark.parametrize(("code", "kind"), [("401", DiskError), ("503", StoreError)])
def test_a_store_that_stays_away_ends_a_run_that_goes_on_later(on_disk, code, kind):
  """From the moment at which step 4 is whole, nothing is answered any more."""
  run, _, whole = on_disk
  target, away = places.path(buckets.fresh()), []

  def judge(request):
    if away:
      return code
    if "/checkpoints/4/commit_success.txt&upload_id" in request.text:
      away.append(request)
    return None

  says = f"^--workdir={target}: .*; steps that are whole are kept, and the same command"
  with buckets.judged(judge), pytest.raises(kind, match=says):
    train(whole, target)
  assert steps.numbers(target / "checkpoints") == [2, 4]
  # It could not be given back, and this process is still there.
  folders.remove(target / ".lease")
  train(whole, target)
  assert rows(target) == rows(run)
  assert_identical(final(whole, target), final(whole, run))


@pytest.mark.jobs
def test_killed_in_a_save_and_in_the_move_of_a_damaged_step(tmp_path):
  """Part of a campaign; `python -m tests.kills` runs a longer one."""
  in_save, in_move = kills.Moment("save", 50, False), kills.Moment("move", 7, True)
  kills.campaign(tmp_path, [in_save, in_move, kills.Moment("time", 0.3, True)])


@pytest.mark.jobs
def test_killed_where_a_bucket_is_mounted(tmp_path):
  """Also before `config.json` has its content; of `--on=mount`."""
  moments = [("any", 6, True), ("save", 50, False), ("move", 7, True)]
  planned = [kills.Moment(*moment) for moment in moments]
  kills.campaign(tmp_path, planned, kind=kills.OnMount)


@pytest.mark.jobs
def test_two_processes_equal_one(tmp_path):
  """Both write into the bucket; the first one holds the directory for both."""
  changes = {**WHOLE, "mesh__fsdp": 2, "train__log_every": 1}
  two, one = places.path(buckets.fresh()), tmp_path / "one"
  file = jobs.config_file(tmp_path, settings(tmp_path, **changes))
  command = ["train", f"--config={file}", f"--workdir={two}"]
  job = jobs.Job(tmp_path, 2, 2, command)
  same = config(tmp_path, **changes)
  train(same, one)
  assert job.wait() == [0, 0], job.text(0) + job.text(1)
  assert steps.numbers(two / "checkpoints") == steps.numbers(one / "checkpoints")
  assert_equal_curves(curve(two), curve(one))
  job = jobs.Job(tmp_path, 2, 2, [*command, "--config.train.steps=8"])
  train(config(tmp_path, **changes, train__steps=8), one)
  assert job.wait() == [0, 0], job.text(0) + job.text(1)
  assert "continues from step 6" in job.text(0)
  assert_equal_curves(curve(two), curve(one))


@pytest.mark.jobs
def test_a_second_run_is_refused_and_the_first_is_whole(tmp_path):
  changes = {"train__steps": 8, "train__log_every": 1, "train__keep_latest": 2}
  file = jobs.config_file(tmp_path, settings(tmp_path, **changes))
  target, refused = places.path(buckets.fresh()), threading.Event()
  command = ["train", f"--config={file}", f"--workdir={target}"]

  def judge(request):
    """The first run is in its save of step 4 until the second is refused."""
    if "/checkpoints/4/commit_success.txt&upload_id" in request.text:
      refused.wait(jobs.TIMEOUT)

  with buckets.judged(judge):
    first = jobs.Job(tmp_path, 1, 4, command)
    first.reach(4)
    second = jobs.Job(tmp_path, 1, 4, command)
    assert second.wait() == [2], second.text()
    refused.set()
    assert first.wait() == [0], first.text()
  (line,) = [x for x in second.text().splitlines() if x.startswith("error: ")]
  who = f"process {first.processes[0].pid} on "
  assert line.startswith(f"error: --workdir={target}: is held by another run, {who}")
  assert line.endswith("; wait for its end, or stop it")
  same = config(tmp_path, **changes)
  train(same, tmp_path / "whole")
  assert rows(target) == rows(tmp_path / "whole")
  assert_identical(final(same, target), final(same, tmp_path / "whole"))
