"""Runs whose work directory is in a bucket."""

import json

import jax
import numpy as np
import pytest

from set_diffusion_jax.cli import main
from set_diffusion_jax.convert import convert, describe
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import folders, places, steps
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.training import metrics
from set_diffusion_jax.training.metrics import read_metrics
from set_diffusion_jax.training.train import Run, train
from set_diffusion_jax.weights import read_weights
from tests import buckets, jobs
from tests.test_train import assert_identical, config, final

MEASURED = ("time", "train/tokens_per_second", "train/seconds_per_step")
MEASURED += ("train/compile_seconds", "hosts/input_seconds")


def rows(directory):
  """What a run has logged, without what its clock measured."""
  found = read_metrics(directory / "metrics.jsonl")
  measured = lambda name: name in MEASURED or name.startswith("goodput/")
  return [{k: v for k, v in row.items() if not measured(k)} for row in found]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  """A run on a disk, to be equalled, and its configuration."""
  buckets.server()
  folder = tmp_path_factory.mktemp("disk")
  c = config(folder, train__keep_latest=3)
  train(c, folder / "run")
  return folder / "run", c


@pytest.fixture(scope="module")
def saved(on_disk):
  """The same run in a bucket, not to be changed."""
  directory = places.path(buckets.fresh())
  train(on_disk[1], directory)
  return directory


def copied(saved):
  """The same run elsewhere in the bucket."""
  target = places.path(buckets.fresh())
  buckets.copy(saved, target)
  return target


def test_a_run_equals_that_on_a_disk(on_disk, saved):
  disk, c = on_disk
  assert rows(saved) == rows(disk)
  assert_identical(final(c, saved), final(c, disk))
  assert steps.numbers(saved / "checkpoints") == [2, 4, 6]
  inside = [".lease", "checkpoints", "config.json", "goodput.jsonl", "metrics.jsonl"]
  assert places.names(saved) == [*inside, "tensorboard"]
  (events,) = places.names(saved / "tensorboard")
  assert events.startswith("events.")
  config_json = json.loads(places.read_bytes(saved / "config.json"))
  assert config_json == json.loads((disk / "config.json").read_bytes())


def test_a_damaged_step_is_set_aside_and_a_torn_one_is_not(on_disk, saved):
  disk, c = on_disk
  target, run = copied(saved), Run.build(c)
  checkpoints = target / "checkpoints"
  folders.remove(checkpoints / "6" / steps.MARKER)
  assert steps.numbers(checkpoints) == [2, 4]
  places.write_text(checkpoints / "4/meta/metadata", "{")
  found = Checkpoints(checkpoints).restore_newest(run.abstract_state(), run.batches())
  assert found.step == 2
  (line,) = found.news
  assert f"{checkpoints}/4: is damaged" in line
  assert f"moved to {target}/damaged/4" in line
  assert steps.numbers(checkpoints) == [2] and steps.finished(target / "damaged/4")
  train(c, target)
  assert rows(target) == rows(disk)
  assert_identical(final(c, target), final(c, disk))
  assert steps.numbers(checkpoints) == [2, 4, 6]


def test_another_run_is_refused(saved, tmp_path):
  with pytest.raises(UserError, match="holds a run with"):
    train(config(tmp_path, model__width=32), saved)
  other = places.path(buckets.fresh())
  places.write_text(other / "file", "")
  with pytest.raises(UserError, match=r"gs://\S+: holds files but no run"):
    train(config(tmp_path), other)


def test_a_copy_of_the_metrics_that_no_save_needs_may_fail(monkeypatch):
  target = places.path(buckets.fresh())
  monkeypatch.setattr(metrics, "_SECONDS", -1)  # a copy after each row
  upload = folders.upload

  def refused(*arguments):
    monkeypatch.setattr(folders, "upload", upload)
    raise ConnectionError("reset")

  with metrics.MetricsWriter(target, 0) as writer:
    monkeypatch.setattr(folders, "upload", refused)
    writer.write(1, {"train/loss": 1.0})
    assert rows(target) == []
    writer.write(2, {"train/loss": 2.0})
    assert [row["step"] for row in rows(target)] == [1, 2]
    monkeypatch.setattr(folders, "upload", refused)
    with pytest.raises(ConnectionError):
      writer.publish()


def test_a_bucket_that_is_not_there_is_told_before_anything_compiles(capsys):
  buckets.server()
  code = main(["train", "--config=quickstart", "--workdir=gs://nobody/run"])
  line = capsys.readouterr().err
  assert code == 2 and line.count("\n") == 1
  assert line.startswith("error: --workdir=gs://nobody/run: there is no bucket")


def test_a_checkpoint_is_read_as_from_a_disk(on_disk, saved, tmp_path, capsys):
  disk, _ = on_disk
  for run in (disk, saved):
    options = ["--output", str(tmp_path / f"{run.name}.json"), "--sequences=4"]
    assert main(["evaluate", f"--checkpoint={run}", *options]) == 0
  ours, theirs = (
    json.loads((tmp_path / f"{run.name}.json").read_text()) for run in (disk, saved)
  )
  same = ("perplexity", "perplexity_standard_error", "bound", "tokens")
  assert [ours[name] for name in same] == [theirs[name] for name in same]
  whole, step = read_weights(saved), read_weights(saved / "checkpoints/4")
  expected = read_weights(disk)
  assert (whole.step, step.step) == (6, 4)
  for x, y in zip(*map(jax.tree.leaves, (whole.params, expected.params)), strict=True):
    np.testing.assert_array_equal(x, y)


def test_what_convert_wrote_is_whole_in_a_bucket(tmp_path):
  target = places.path(buckets.fresh())
  published = jobs.ROOT / "tests/reference/models/setdlm_dit"
  convert(published, tmp_path / "orbax")
  folders.upload(tmp_path / "orbax", target / "orbax")
  (step,) = steps.numbers(target / "orbax/checkpoints")
  report = convert(target / "orbax", tmp_path / "pytorch")
  assert str(report.source) == f"{target}/orbax"
  card = (tmp_path / "pytorch/README.md").read_text()
  assert f"from {target}/orbax/checkpoints/{step}" in card
  folders.upload(tmp_path / "pytorch", target / "pytorch")
  ours, theirs = describe(target / "pytorch"), describe(published)
  assert ours["path"] == f"{target}/pytorch"
  assert ours["parameters"] == theirs["parameters"]
  ours, theirs = (read_weights(p).params for p in (target / "pytorch", published))
  for x, y in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_array_equal(x, y)


def test_checkpoints_that_are_not_there(saved):
  with pytest.raises(UserError, match=r"^gs://\S+: there is nothing of this name$"):
    read_weights(buckets.fresh())
  with pytest.raises(UserError, match=r"^gs://\S+/5: has no finished .* of step 5$"):
    read_weights(saved / "checkpoints/5")
  target = places.path(buckets.fresh())
  buckets.copy(saved, target, "config.json", "checkpoints/2")
  folders.remove(target / "checkpoints/2" / steps.MARKER)
  with pytest.raises(UserError, match=r"^gs://\S+: has no checkpoint yet$"):
    read_weights(target)
  places.write_text(target / "checkpoints/2" / steps.MARKER, "")
  places.write_text(target / "checkpoints/2/meta/metadata", "{")
  with pytest.raises(UserError, match=rf"^{target}/checkpoints/2: is damaged"):
    read_weights(target)
