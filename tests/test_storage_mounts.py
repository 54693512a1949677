"""Runs in a folder that is a mounted bucket, where no folder can be renamed."""

import json
import shutil

import pytest

from set_diffusion_jax.convert import describe
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import folders, lease, mounts, places, steps, workdir
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.training.metrics import read_metrics
from set_diffusion_jax.training.train import Run, train
from set_diffusion_jax.weights import read_weights
from tests import mounted
from tests.test_storage_runs import rows
from tests.test_train import assert_identical, config, final

TABLE = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /mnt/a\040bucket rw,nosuid - fuse.gcsfuse runs rw,user_id=0
31 30 0:41 / /mnt/a\040bucket/local rw - tmpfs tmpfs rw
32 21 0:42 /x /pod rw shared:3 master:2 - fuse runs rw
33 21 0:43 / /mnt/covered rw - fuse.rclone remote: rw
34 21 0:44 / /mnt/covered rw - xfs /dev/sdb rw
35 21 0:45 / /mnt/ssh rw - fuse.sshfs host: rw
36 21 0:46 / /mnt/ntfs rw - fuseblk /dev/sdc rw
37 21 0:47 / /mnt/s3 rw - fuse.s3fs s3fs rw
"""


@pytest.mark.parametrize(
  ("path", "found"),
  [
    ("/mnt/a bucket", True),
    ("/mnt/a bucket/run/checkpoints/4", True),
    ("/mnt/a bucket/../a bucket/run", True),
    ("/mnt/a bucket/local/run", False),
    ("/mnt/a bucket 2/run", False),
    ("/pod/run", True),
    ("/podium", False),
    ("/mnt/covered/run", False),
    ("/mnt/ssh/run", False),
    ("/mnt/ntfs/run", False),
    ("/mnt/s3/run", True),
    ("/home/run", False),
  ],
)
def test_the_table_says_what_a_folder_is(monkeypatch, path, found):
  monkeypatch.setattr(mounts, "table", lambda: TABLE.strip())
  assert mounts.in_bucket(path) == found


def test_links_and_systems_without_a_table(monkeypatch, tmp_path):
  (tmp_path / "mount").mkdir()
  (tmp_path / "link").symlink_to("mount")
  with mounted.at(tmp_path / "mount"):
    assert not places.renames(tmp_path / "link/run")
    assert places.renames(tmp_path / "run")
  assert places.renames(tmp_path / "link/run")
  assert not places.renames(places.path("gs://bucket/run"))
  monkeypatch.setattr(mounts, "table", lambda: "")
  assert places.renames(tmp_path)


def make(folder, *names, content="text"):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


def test_a_step_counts_from_its_marker(tmp_path):
  make(tmp_path, "3/meta/metadata", "4/meta/metadata", "5/meta/metadata")
  make(tmp_path, "4/commit_success.txt", "x/commit_success.txt")
  make(tmp_path, "3/_CHECKPOINT_METADATA", content='{"commit_timestamp_nsecs": null}')
  assert steps.numbers(tmp_path) == [3, 4, 5]
  with mounted.at(tmp_path):
    assert steps.numbers(tmp_path) == [4]
    assert not steps.finished(tmp_path / "6")


def test_a_finished_step_from_before_markers_is_marked(tmp_path):
  said = {"3": '{"commit_timestamp_nsecs": 17}', "4": "{", "5": "[]"}
  for step, text in said.items():
    make(tmp_path, f"{step}/_CHECKPOINT_METADATA", content=text)
  steps.mark(tmp_path)  # not on a disk
  assert not (tmp_path / "3" / steps.MARKER).exists()
  with mounted.at(tmp_path):
    assert steps.numbers(tmp_path) == [3]
    steps.mark(tmp_path)
  assert [p.parent.name for p in tmp_path.glob(f"*/{steps.MARKER}")] == ["3"]


def test_a_move_that_is_cut_short_leaves_an_unfinished_step(monkeypatch, tmp_path):
  inside = ["state/commit_success.txt", "state/d/a", "meta/metadata"]
  inside += ["commit_success.txt", "_CHECKPOINT_METADATA"]
  make(tmp_path, *(f"3/{name}" for name in inside), content='{"x": 1}')
  with mounted.at(tmp_path), monkeypatch.context() as context:
    move = mounted.os.replace
    moved = []

    def one(source, target):
      if len(moved) == 2:
        raise KeyboardInterrupt
      moved.append(source)
      move(source, target)

    context.setattr(mounted.os, "replace", one)
    with pytest.raises(KeyboardInterrupt):
      folders.move(tmp_path / "3", tmp_path / "damaged/3")
    assert (tmp_path / "3").is_dir() and not steps.finished(tmp_path / "3")
  with mounted.at(tmp_path):
    folders.move(tmp_path / "3", tmp_path / "damaged/3")
  assert not (tmp_path / "3").exists()
  found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
  assert found == {f"damaged/3/{name}" for name in inside}


def test_a_start_that_was_killed_between_a_file_and_its_content(tmp_path):
  """No file has two names there, so it is made before it is written."""
  c = config(tmp_path)
  run = tmp_path / "run"
  make(run, "config.json", ".lease/1.json", content="")
  with mounted.at(tmp_path):
    held = lease.Lease(run)
    assert held.take() is None
    workdir.claim(run, c, {})
    assert workdir.read(run)[0] == c
    with pytest.raises(UserError, match="is held by another run"):
      lease.Lease(run).take()
    held.release()


def test_a_lease_that_was_empty_is_looked_at_again(tmp_path, monkeypatch):
  """Its process has written it, and seen no other, before another one is made."""
  make(tmp_path, ".lease/1.json", content="")
  create = places.create

  def late(file, text):
    make(tmp_path, ".lease/1.json", content=text)
    return create(file, text)

  with mounted.at(tmp_path):
    monkeypatch.setattr(places, "create", late)
    with pytest.raises(UserError, match="is held by another run"):
      lease.Lease(tmp_path).take()
  assert places.names(tmp_path / ".lease") == ["1.json"]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  """A run on a disk, to be equalled, and its configuration."""
  folder = tmp_path_factory.mktemp("disk")
  c = config(folder, train__keep_latest=3)
  train(c, folder / "run")
  return folder / "run", c


@pytest.fixture
def mount(tmp_path):
  folder = tmp_path / "a bucket"
  folder.mkdir()
  with mounted.at(folder):
    yield folder


@pytest.mark.slow
def test_a_run_equals_that_on_a_disk(on_disk, mount):
  """Nothing that Orbax or this package does there renames a folder."""
  disk, c = on_disk
  train(c, mount / "run")
  assert rows(mount / "run") == rows(disk)
  assert_identical(final(c, mount / "run"), final(c, disk))
  checkpoints = mount / "run/checkpoints"
  assert steps.numbers(checkpoints) == [2, 4, 6]
  assert all((checkpoints / f"{n}/{steps.MARKER}").exists() for n in (2, 4, 6))
  assert list((mount / "run/tensorboard").glob("events.*"))


@pytest.mark.slow
def test_torn_steps_are_not_there_and_damaged_ones_are_moved(on_disk, mount):
  disk, c = on_disk
  run = mount / "run"
  shutil.copytree(disk, run)
  for step in (2, 4):  # as Orbax before 0.12 left them
    for marker in (run / f"checkpoints/{step}").rglob(steps.MARKER):
      marker.unlink()
  torn = run / "checkpoints/6"
  (torn / steps.MARKER).unlink()
  (torn / "_CHECKPOINT_METADATA").write_text("{}")
  assert workdir.newest_step(run) == 4
  assert read_weights(run).step == 4
  for read in (read_weights, describe):
    with pytest.raises(UserError, match=r"has no (finished )?checkpoint of step 6"):
      read(torn)
  (run / "checkpoints/4/meta/metadata").write_text("{")
  with Checkpoints(run / "checkpoints") as checkpoints:
    again = Run.build(c)
    found = checkpoints.restore_newest(again.abstract_state(), again.batches())
  assert found.step == 2 and "moved to" in found.news[0]
  assert not (run / "damaged/6").exists() and not torn.joinpath(steps.MARKER).exists()
  train(c, run)
  assert rows(run) == rows(disk)
  assert_identical(final(c, run), final(c, disk))
  assert steps.numbers(run / "checkpoints") == [2, 4, 6]
  assert (run / "damaged/4/meta/metadata").read_text() == "{"


@pytest.mark.slow
def test_metrics_are_copied_whole_before_each_save(mount, monkeypatch):
  """What is appended to a mounted file reaches the bucket when it is closed."""
  saved, save = [], Checkpoints.save

  def noted(self, step, *arguments):
    there = read_metrics(mount / "run/metrics.jsonl")
    saved.append((step, json.dumps([row["step"] for row in there])))
    return save(self, step, *arguments)

  monkeypatch.setattr(Checkpoints, "save", noted)
  c = config(mount.parent, train__steps=4, train__log_every=1)
  train(c, mount / "run")
  assert [step for step, _ in saved] == [2, 4]
  assert all(json.loads(there)[-1] == step for step, there in saved)
