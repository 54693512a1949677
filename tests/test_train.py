"""Training: exact resume, independence of mesh and micro-batches, diverged runs."""

import dataclasses
import functools
import json
import platform
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorboardX.proto.event_pb2 as event_pb2

from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion.draws import training_keys
from set_diffusion_jax.errors import NonFiniteError, UserError
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.storage.lease import FOLDER
from set_diffusion_jax.storage.saved import FORMAT_VERSION
from set_diffusion_jax.training import state, step
from set_diffusion_jax.training import train as module
from set_diffusion_jax.training.metrics import read_metrics
from set_diffusion_jax.training.train import Run, train
from tests import jobs, tiny


def settings(folder, **changes):
  path = folder / "text.txt"
  if not path.exists():
    tiny.text_file(folder)
  base = {
    "data__source": "text",
    "data__train_path": str(path),
    "mesh__data": 1,
    "mesh__fsdp": 2,
    "mesh__tensor": 2,
  }
  return tiny.settings(**{**base, **changes})


def config(folder, **changes):
  return Config.from_dict(settings(folder, **changes).to_dict())


def final(run_config, directory, at=None):
  """State and data position of a checkpoint, as plain arrays."""
  run = Run.build(run_config)
  batches = run.batches()
  with Checkpoints(directory / "checkpoints") as checkpoints:
    at = max(checkpoints.steps) if at is None else at
    restored = checkpoints.restore(at, run.abstract_state(), batches)
  restored = restored.replace(key=jax.random.key_data(restored.key))
  return jax.device_get(restored), [next(batches)["tokens"] for _ in range(3)]


def assert_identical(ours, theirs):
  (state_1, next_1), (state_2, next_2) = ours, theirs
  paths = jax.tree_util.tree_leaves_with_path(state_1)
  others = jax.tree.leaves(state_2)
  assert len(paths) == len(others)
  for (path, x), y in zip(paths, others, strict=True):
    np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
  np.testing.assert_array_equal(next_1, next_2)


def test_a_stopped_and_resumed_run_ends_bit_identical(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train(config(tmp_path), whole)
  train(config(tmp_path, train__steps=3), parts)
  before = [row for row in read_metrics(parts / "metrics.jsonl") if row["step"] <= 3]
  train(config(tmp_path), parts)
  c = config(tmp_path)
  assert_identical(final(c, parts), final(c, whole))
  rows = read_metrics(parts / "metrics.jsonl")
  assert rows[: len(before)] == before
  steps = [row["step"] for row in rows if "train/loss" in row]
  assert steps == sorted(set(steps))
  assert max(steps) == 6


def test_saving_does_not_disturb_what_is_saved(tmp_path):
  """A checkpoint taken while training went on equals the state of that very step."""
  c = config(tmp_path, train__keep_latest=9)
  train(c, tmp_path / "run")
  run = Run.build(c)
  current, batches = run.init(), run.batches()
  for _ in range(2):
    current, _ = run.step(current, run.put(next(batches)))
  plain = current.replace(key=jax.random.key_data(current.key))
  stored, following = final(c, tmp_path / "run", at=2)
  assert_identical(
    (stored, following), (plain, [next(batches)["tokens"] for _ in range(3)])
  )


@pytest.mark.jobs
@pytest.mark.slow
def test_kill_at_any_time_then_resume(tmp_path):
  """SIGKILL at random moments, saves included, until the run is through."""
  fields = settings(
    tmp_path,
    train__steps=60,
    train__checkpoint_every=3,
    train__evaluate_every=60,
    mesh__fsdp=1,
    mesh__tensor=1,
  )
  file = jobs.config_file(tmp_path, fields)
  whole, killed = tmp_path / "whole", tmp_path / "killed"

  def start(workdir):
    words = ["train", f"--config={file}", f"--workdir={workdir}"]
    return jobs.Job(tmp_path, 1, 1, words)

  job = start(whole)
  assert job.wait() == [0], job.text()
  rng = np.random.default_rng(0)
  for _ in range(6):
    seen = {p.name for p in (killed / "checkpoints").glob("*")}
    job = start(killed)
    (process,) = job.processes
    deadline = time.monotonic() + jobs.TIMEOUT
    # Wait until this run saves something (finished or not), then a random while.
    while not {p.name for p in (killed / "checkpoints").glob("*")} - seen:
      assert process.poll() is None and time.monotonic() < deadline, job.text()
      time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    assert job.wait() == [-signal.SIGKILL]
  job = start(killed)
  assert job.wait() == [0], job.text()
  fields.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
  one = Config.from_dict({**fields.to_dict(), "train": fields.train.to_dict()})
  assert_identical(final(one, killed), final(one, whole))


# With so large an epsilon an AdamW step is nearly the gradient itself.
PLAIN = {
  "optimizer__warmup_steps": 0,
  "optimizer__epsilon": 1.0,
  "optimizer__learning_rate": 1.0,
  "optimizer__clip_norm": 1e9,
}


def perturbed(run):
  """A first state in which every parameter has a gradient."""
  current = run.init()
  params = jax.tree.map(jnp.copy, tiny.params(run.objective))  # the step donates it
  params = jax.device_put(params, run.shardings.params)
  return current.replace(params=params)


def one_step(folder, **changes):
  """Parameters after a first step and its metrics."""
  run = Run.build(config(folder, **PLAIN, **changes))
  current, metrics = run.step(perturbed(run), run.put(next(run.batches())))
  return jax.device_get((current.params, metrics))


@pytest.mark.parametrize(
  "changes",
  [
    {"mesh__data": 4, "mesh__fsdp": 1, "mesh__tensor": 1},
    pytest.param(
      {"mesh__data": 1, "mesh__fsdp": 4, "mesh__tensor": 1}, marks=pytest.mark.slow
    ),
    pytest.param(
      {"mesh__data": 2, "mesh__fsdp": 1, "mesh__tensor": 2}, marks=pytest.mark.slow
    ),
    pytest.param(
      {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2, "train__accumulate": 2},
      marks=pytest.mark.slow,
    ),
    {"mesh__data": 2, "mesh__fsdp": 1, "mesh__tensor": 2, "train__accumulate": 2},
    {"mesh__slice": 2, "mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 1},
  ],
)
@pytest.mark.multidevice
def test_results_do_not_depend_on_mesh_or_micro_batches(tmp_path, changes):
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  common = {"model__dropout": 0.2, "loss__denominator": "tokens"}
  params, metrics = one_step(tmp_path, **common)
  other, other_metrics = one_step(tmp_path, **common, **changes)
  assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=2e-6)
  assert other_metrics["tokens"] == metrics["tokens"]
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), params, other)


def test_micro_batches_may_change_on_resume(tmp_path):
  """Steps 4 to 6 in two micro-batches: the run is what it is without."""
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train(config(tmp_path, **PLAIN), whole)
  train(config(tmp_path, train__steps=3, **PLAIN), parts)
  c = config(tmp_path, train__accumulate=2, **PLAIN)
  train(c, parts)
  (ours, _), (theirs, _) = final(c, parts), final(c, whole)
  for group in ("params", "ema"):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
      getattr(ours, group),
      getattr(theirs, group),
    )
  losses = [
    [
      row["train/loss"]
      for row in read_metrics(run / "metrics.jsonl")
      if "train/loss" in row
    ]
    for run in (parts, whole)
  ]
  assert len(losses[0]) > 1
  assert losses[0][-2:] == pytest.approx(losses[1][-2:], rel=1e-5)


def compiled(folder, **mesh):
  """The step of a model large enough for its activations to matter, compiled."""
  sizes = {"width": 64, "ffn": 256, "heads": 4, "layers": 2}
  c = config(
    folder,
    data__length=32,
    train__batch_size=16,
    **{f"model__{name}": size for name, size in sizes.items()},
    **{f"mesh__{name}": size for name, size in mesh.items()},
  )
  run = Run.build(c)
  batch = run.put(next(run.batches()))
  return run.step.lower(run.abstract_state(), batch).compile()


@pytest.mark.multidevice
def test_fsdp_gathers_weights_and_not_activations(tmp_path):
  """No collective has the rows of the global batch; temporaries stay those of data."""
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  plain = compiled(tmp_path, data=4, fsdp=1, tensor=1)
  split = compiled(tmp_path, data=1, fsdp=4, tensor=1)
  slots = {16 * 64, 16 * 32}  # of both streams, and of one
  for line in split.as_text().splitlines():
    found = re.search(r"= \(?f32\[([\d,]*)\].* all-(gather|reduce)\(", line)
    if found and found[1]:
      shape = [int(n) for n in found[1].split(",")]
      assert not slots & set(shape) and shape[0] != 16, line
  sizes = [x.memory_analysis().temp_size_in_bytes for x in (plain, split)]
  assert sizes[1] < 1.3 * sizes[0]


def test_step_is_the_gradient_of_the_mean(tmp_path):
  """One step against optax on the plain loss of the whole batch."""
  c = config(tmp_path, train__accumulate=2, **PLAIN)
  run = Run.build(c)
  current, batch = jax.device_get(perturbed(run)), run.put(next(run.batches()))
  start = jax.tree.map(jnp.array, current)
  batch = jax.tree.map(jnp.array, jax.device_get(batch))
  keys = training_keys(start.key, 0, jnp.asarray(batch.row))

  def mean(params):
    streams = run.objective.training_streams(batch, keys, start.clip)
    nats = run.objective.nats(params, streams)
    return (nats * streams.weight).sum() / streams.counted.sum()

  loss, gradient = jax.value_and_grad(mean)(start.params)
  after, metrics = step.train_step(run.objective, start, jax.tree.map(jnp.array, batch))
  assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
  assert metrics["gradient_norm"] == pytest.approx(
    float(optax.tree.norm(gradient)), rel=1e-5
  )
  optimizer = state.make_optimizer(c)
  updates, _ = optimizer.update(gradient, optimizer.init(start.params), start.params)
  expected = optax.apply_updates(start.params, updates)
  check = functools.partial(np.testing.assert_allclose, atol=1e-5)
  jax.tree.map(check, after.params, expected)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), after.params, start.params)
  assert min(jax.tree.leaves(moved)) > 1e-3, "every parameter has a gradient"
  decay = c.optimizer.ema_decay
  ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, start.ema, after.params)
  jax.tree.map(check, after.ema, ema)


def test_learning_rates():
  c = tiny.config(
    optimizer__schedule="cosine",
    optimizer__final_fraction=0.5,
    optimizer__warmup_steps=4,
    optimizer__learning_rate=1.0,
    train__steps=12,
  )
  rate = state.learning_rate(c.optimizer, c.train)
  assert [float(rate(s)) for s in (0, 2, 4, 8, 12)] == pytest.approx(
    [0, 0.5, 1, 0.75, 0.5]
  )


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
  c = config(tmp_path)
  true_step = step.train_step

  def poisoned(objective, current, batch):
    after, metrics = true_step(objective, current, batch)
    bad = jnp.where(current.step == 4, jnp.nan, 0.0)
    return after, {**metrics, "loss": metrics["loss"] + bad}

  monkeypatch.setattr(step, "train_step", poisoned)
  with pytest.raises(NonFiniteError, match="step 5: loss is nan"):
    train(c, tmp_path / "run")
  with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    assert max(checkpoints.steps) == 4


def test_latest_and_best_checkpoints_are_kept(tmp_path, monkeypatch):
  c = config(
    tmp_path,
    train__steps=8,
    train__evaluate_every=1,
    train__checkpoint_every=1,
    train__keep_latest=2,
    train__keep_best=1,
  )
  figures = iter([5.0, 4.0, 1.0, 3.0, 2.0, 2.5, 2.0, 3.0])
  evaluator = module.Evaluator.run

  def ranked(self, params, **more):
    found = evaluator(self, params, **more)
    quality = found.likelihood
    scale = next(figures) / quality.nats_per_token
    ranked = dataclasses.replace(quality, nats=quality.nats * scale)
    return found._replace(likelihood=ranked)

  monkeypatch.setattr(module.Evaluator, "run", ranked)
  train(c, tmp_path / "run")
  with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    assert checkpoints.steps == [3, 7, 8]


def events(folder):
  """Scalars of TensorBoard's record format: length, checksum, message, checksum."""
  found = []
  for path in sorted(folder.glob("events.*")):
    content = path.read_bytes()
    while content:
      size = int.from_bytes(content[:8], "little")
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
      content = content[16 + size :]
  return found


def test_metrics_are_cut_back_on_resume(tmp_path):
  c, run = config(tmp_path), tmp_path / "run"
  train(config(tmp_path, train__steps=4), run)
  # A run that was killed after step 4: rows of steps that will happen again.
  with (run / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 5, "time": 0.0, "train/loss": -1.0}) + "\n{'torn")
  train(c, run)
  rows = read_metrics(run / "metrics.jsonl")
  assert -1.0 not in [row.get("train/loss") for row in rows]
  expected = [
    (row["step"], name, np.float32(value))
    for row in rows
    for name, value in row.items()
    if name not in ("step", "time")
  ]
  assert events(run / "tensorboard") == expected


def test_checkpoints_are_self_contained(tmp_path):
  c, run = config(tmp_path), tmp_path / "run"
  train(c, run)
  with Checkpoints(run / "checkpoints") as checkpoints:
    meta = checkpoints.restore_meta(6)
  assert Config.from_dict(meta["config"]) == c
  assert meta["format_version"] == FORMAT_VERSION
  assert meta["tokenizer"]["mask"] == 259
  assert meta["schedule"]["position_offset"]["width"] == pytest.approx(4 / 19)
  assert set(meta) >= {"data", "weights_from"}
  versions = meta["versions"]
  assert versions["jax"] == jax.__version__
  assert versions["Python"] == platform.python_version()
  assert set(versions) >= {"set_diffusion_jax", "source", "jaxlib"}


@pytest.mark.parametrize(
  "change",
  [
    {"model__width": 32},
    {"method__max_set_size": 3.0},
    {"train__seed": 1},
    {"train__batch_size": 8},
    {"optimizer__learning_rate": 0.5},
    {"data__length": 12},
    {"compat": "setdlms"},
  ],
)
def test_a_directory_of_another_run_is_refused(tmp_path, change):
  run = tmp_path / "run"
  train(config(tmp_path, train__steps=2), run)
  times = lambda: {
    p: p.stat().st_mtime_ns for p in run.rglob("*") if FOLDER not in p.parts
  }
  before = times()  # a lease is taken before the directory is looked at
  (field,) = change
  with pytest.raises(UserError, match=field.replace("__", ".")):
    train(config(tmp_path, **change), run)
  assert times() == before


def test_other_text_is_refused_but_moved_text_is_not(tmp_path):
  run = tmp_path / "run"
  train(config(tmp_path, train__steps=2), run)
  text = tmp_path / "text.txt"
  moved = tmp_path / "moved.txt"
  moved.write_text(text.read_text())
  train(config(tmp_path, train__steps=3, data__train_path=str(moved)), run)
  moved.write_text(text.read_text().replace("wisdom", "WISDOM"))
  with pytest.raises(UserError, match="sha256"):
    train(config(tmp_path, data__train_path=str(moved)), run)


def test_changing_cadence_mesh_and_length_of_a_run_is_allowed(tmp_path):
  run = tmp_path / "run"
  train(config(tmp_path, train__steps=2), run)
  mesh = {"mesh__data": 4, "mesh__fsdp": 1, "mesh__tensor": 1}
  train(config(tmp_path, train__steps=3, train__log_every=1, **mesh), run)
  with Checkpoints(run / "checkpoints") as checkpoints:
    assert max(checkpoints.steps) == 3


def test_reading_leaves_a_save_in_progress_alone(tmp_path):
  run = tmp_path / "run"
  train(config(tmp_path, train__steps=2), run)
  unfinished = run / "checkpoints" / "4.orbax-checkpoint-tmp-1"
  unfinished.mkdir()
  with Checkpoints(run / "checkpoints") as checkpoints:
    assert checkpoints.steps == [2]
  assert unfinished.exists()
  train(config(tmp_path, train__steps=2), run)
  assert not unfinished.exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradient_variance_is_that_of_single_tokens(accumulate):
  """Averaged over random signs, against the gradient of every token by itself."""
  obj = tiny.objective(
    method__name="ar",
    train__gradient_variance=True,
    train__accumulate=accumulate,
    data__length=6,
    model__layers=1,
  )
  params, batch = tiny.params(obj), tiny.batch(rows=2, length=6)
  optimizer = state.make_optimizer(obj.config).init(params)
  clip = jnp.array([0.0, 1.0])
  start = state.TrainState(
    jnp.int32(0), params, params, optimizer, clip, jax.random.key(0)
  )

  def estimate(key):
    after = step.train_step(obj, start.replace(key=key), batch)
    return after[1]["gradient_variance"]

  # One after another: vmapped over 512 keys, jaxlib 0.10.2 on CPU is wrong.
  seeds = jax.random.split(jax.random.key(1), 1500)
  estimates = np.asarray(jax.jit(lambda s: jax.lax.map(estimate, s))(seeds))
  keys = training_keys(jax.random.key(0), 0, batch.row)  # nothing of AR is drawn

  def each(params):
    streams = obj.training_streams(batch, keys, clip)
    return obj.nats(params, streams)[:, :-1].ravel()

  single = jax.tree.leaves(jax.jit(jax.jacrev(each))(params))
  single = np.concatenate([np.reshape(g, (10, -1)) for g in single], axis=1)
  expected = single.var(0, ddof=1).sum()
  error = estimates.std() / np.sqrt(len(estimates))
  assert abs(estimates.mean() - expected) < 4 * error
  assert error < 0.03 * expected
