"""Checkpoints that a disk has damaged, and runs that are asked to stop."""

import gc
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from set_diffusion_jax.errors import Preempted, UserError
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.storage.saved import DamagedError, SavedStep
from set_diffusion_jax.training.metrics import read_metrics
from set_diffusion_jax.training.reporting import Journal
from set_diffusion_jax.training.train import Run, train
from set_diffusion_jax.weights import read_weights
from tests.test_train import assert_identical, config, final


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run with the steps 2, 4 and 6, and its compiled parts."""
  folder = tmp_path_factory.mktemp("saved")
  c = config(folder, train__keep_latest=3)
  train(c, folder / "run")
  return folder / "run", Run.build(c)


def largest(folder):
  return max(
    (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
  )


def flip(folder):
  """A bit here and there; in all files, as some bytes of some are not used."""
  for path in (path for path in folder.rglob("d/*") if path.is_file()):
    content = bytearray(path.read_bytes())
    content[50::97] = [byte ^ 4 for byte in content[50::97]]
    path.write_bytes(content)


DAMAGES = {
  "bits": lambda step: flip(step / "state"),
  "cut short": lambda step: os.truncate(largest(step / "state"), 1000),
  "emptied": lambda step: os.truncate(largest(step / "state"), 0),
  "an array's file": lambda step: largest(step / "state").unlink(),
  "its tree": lambda step: (step / "state" / "_METADATA").unlink(),
  "no state": lambda step: shutil.rmtree(step / "state"),
  "no data": lambda step: shutil.rmtree(step / "data"),
  "no meta": lambda step: shutil.rmtree(step / "meta"),
  "torn meta": lambda step: os.truncate(step / "meta" / "metadata", 100),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_and_the_step_before_is_used(saved, tmp_path, damage):
  origin, run = saved
  copy = tmp_path / "run"
  shutil.copytree(origin, copy)
  DAMAGES[damage](copy / "checkpoints" / "6")
  batches = run.batches()
  checkpoints = Checkpoints(copy / "checkpoints")
  found = checkpoints.restore_newest(run.abstract_state(), batches)
  assert found.step == int(found.state.step) == 4
  (line,) = found.news
  assert line.startswith("WARNING: ")
  assert "checkpoints/6: is damaged" in line
  assert (copy / "damaged" / "6").is_dir()
  assert checkpoints.steps == [2, 4]
  fresh = run.batches()
  for _ in range(4):
    next(fresh)
  np.testing.assert_array_equal(next(batches)["tokens"], next(fresh)["tokens"])
  gc.collect()  # a read left unfinished would fail here, and print, now or at the end


def test_one_bit_of_every_parameter_counts(saved, tmp_path, monkeypatch):
  """In each array of the state, wherever, whatever the files say about themselves."""
  origin, run = saved
  checkpoints = Checkpoints(origin / "checkpoints")
  whole = checkpoints.restore(6, run.abstract_state(), run.batches())
  found, tree = jax.tree_util.tree_flatten_with_path(whole)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
  leaves = [leaf for _, leaf in found]
  assert {name.split("/")[0] for name in names} >= {"params", "ema", "optimizer"}
  rng = np.random.default_rng(0)
  step = SavedStep(origin / "checkpoints" / "6")
  meta = step.meta()
  step.check(meta, whole, "")
  for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    value = np.array(jax.random.key_data(leaf) if is_key else leaf)
    bits = value.reshape(-1).view(np.uint32)  # of the same memory
    bits[rng.integers(bits.size)] ^= np.uint32(1) << np.uint32(rng.integers(32))
    other = jax.random.wrap_key_data(value) if is_key else value
    other = jax.device_put(other, leaf.sharding)
    changed = jax.tree.unflatten(tree, [*leaves[:i], other, *leaves[i + 1 :]])
    with pytest.raises(DamagedError, match=f"{name} is not what was saved"):
      step.check(meta, changed, "")


def test_no_step_is_whole(saved, tmp_path):
  origin, run = saved
  copy = tmp_path / "run"
  shutil.copytree(origin, copy)
  for step in (2, 4, 6):
    DAMAGES["no state"](copy / "checkpoints" / str(step))
  checkpoints = Checkpoints(copy / "checkpoints")
  with pytest.raises(UserError, match=r"checkpoints/6: is damaged.*no other step"):
    checkpoints.restore_newest(run.abstract_state(), run.batches())
  assert checkpoints.steps == [2, 4, 6]
  with pytest.raises(UserError, match="checkpoints/6: is damaged"):
    read_weights(copy)


@pytest.mark.slow
def test_sigterm_saves_and_the_rest_is_as_without(tmp_path, monkeypatch):
  """Asked to stop where an evaluation is due, which changes the training after it."""
  changes = {"method__name": "block", "corruption__clip_width": 0.5}
  c = config(tmp_path, train__checkpoint_every=99, **changes)
  whole, run = tmp_path / "whole", tmp_path / "run"
  train(c, whole)
  add = Journal.add

  def asked(self, step, *more):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    add(self, step, *more)

  before = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    patch.setattr(Journal, "add", asked)
    with pytest.raises(Preempted) as stop:
      train(c, run)
  assert stop.value.step == 3
  assert signal.getsignal(signal.SIGTERM) == before
  checkpoints = Checkpoints(run / "checkpoints")
  assert checkpoints.steps == [3]
  assert checkpoints.restore_meta(3)["evaluation_owed"]
  rows = read_metrics(run / "metrics.jsonl")
  assert not any("clip/t_min" in row for row in rows)
  train(c, run)
  assert_identical(final(c, run), final(c, whole))
  figures = [
    [
      {k: r[k] for k in r if k != "time" and not k.startswith("goodput/")}
      for r in read_metrics(path)
      if "clip/t_min" in r
    ]
    for path in (run / "metrics.jsonl", whole / "metrics.jsonl")
  ]
  assert figures[0] == figures[1]
  assert len(figures[0]) == 2
