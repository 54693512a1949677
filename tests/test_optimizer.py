"""The optimiser against the published one, written out by its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from set_diffusion_jax.config import files
from set_diffusion_jax.evaluate import Likelihood
from set_diffusion_jax.training.reporting import Journal
from set_diffusion_jax.training.state import make_optimizer
from set_diffusion_jax.training.step import Program, make_mesh
from tests import tiny

STEPS = 1000


def recipe(name, *changes):
  return files.read_config([f"--config={name}", *changes])


def published_rates(c):
  """Learning rates over the first one, of each step: float64 [STEPS].

  Composer's: linear from 0, then constant, or a cosine to a last fraction.
  """
  o, step = c.optimizer, np.arange(STEPS, dtype=np.float64)
  if o.schedule == "constant":
    after = np.ones(STEPS)
  else:
    part = (step - o.warmup_steps) / (c.train.steps - o.warmup_steps)
    low = o.final_fraction
    after = low + (1 - low) * (1 + np.cos(np.pi * part)) / 2
  return np.where(step < o.warmup_steps, step / o.warmup_steps, after)


def without_gradients(c, params):
  """Parameters after STEPS steps whose gradients are zero."""
  optimizer = make_optimizer(c)

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jnp.zeros_like(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  start = params, optimizer.init(params)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS)[0][0])
  return np.asarray(run(start))


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(
  "name",
  ["corpora:corpus=gsm8k", "corpora:corpus=cnn_dailymail", "scale:recipe=qwen3_8b"],
)
def test_decay_is_that_of_the_published_recipe(name, schedule):
  """p *= 1 - (lr / lr_0) wd, so that a parameter without a gradient shrinks."""
  c = recipe(name, f"--config.optimizer.schedule={schedule}")
  assert (c.optimizer.beta1, c.optimizer.beta2) == (0.9, 0.98)
  kept = np.prod(1 - published_rates(c) * 1e-5)
  assert 1 - kept > 1e-3  # it is no rounding error
  params = np.random.default_rng(0).normal(size=4096)
  with jax.enable_x64(True):
    found = without_gradients(c, jnp.asarray(params))
    assert found.dtype == np.float64
  np.testing.assert_allclose(found, params * kept, rtol=1e-6 * (1 - kept))
  single = params.astype(np.float32)
  found = without_gradients(c, jnp.asarray(single))
  assert found.dtype == np.float32
  shrunk = np.linalg.norm(found.astype(np.float64)) / np.linalg.norm(params)
  assert shrunk == pytest.approx(kept, rel=1e-5)
  # Only the rounding of each step comes on top, by half a unit or less.
  error = np.abs(found - single.astype(np.float64) * kept)
  assert (error <= STEPS * np.spacing(np.abs(single)) / 2).all()


@pytest.mark.parametrize("rule", ["absolute", "relative"])
def test_steps_are_those_of_the_published_optimiser(rule):
  """Composer's DecoupledAdamW, and PyTorch's AdamW, by their definitions."""
  c = recipe(
    "corpora:corpus=gsm8k",
    "--config.optimizer.weight_decay=0.1",
    "--config.optimizer.warmup_steps=10",
    "--config.optimizer.learning_rate=0.01",
    f"--config.optimizer.decay={rule}",
  )
  o, rng = c.optimizer, np.random.default_rng(0)
  params, mean, square = rng.normal(size=8), np.zeros(8), np.zeros(8)
  with jax.enable_x64(True):
    optimizer, ours = make_optimizer(c), jnp.asarray(params)
    state = optimizer.init(ours)
    for i, factor in enumerate(published_rates(c)[:30]):
      gradient = 0.1 * rng.normal(size=8)  # its norm is below the clipping's
      updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
      ours = optax.apply_updates(ours, updates)
      rate = o.learning_rate * factor
      params = params * (1 - (factor if rule == "relative" else rate) * 0.1)
      mean = o.beta1 * mean + (1 - o.beta1) * gradient
      square = o.beta2 * square + (1 - o.beta2) * gradient**2
      scale = np.sqrt(square / (1 - o.beta2 ** (i + 1))) + o.epsilon
      params = params - rate / (1 - o.beta1 ** (i + 1)) * mean / scale
    # Learning rates are float32 all the same, as steps are int32.
    np.testing.assert_allclose(np.asarray(ours), params, rtol=1e-6)


def program(**changes):
  c = tiny.config(train__batch_size=2, mesh__data=1, mesh__slice=1, **changes)
  mesh = make_mesh(c, jax.devices()[:1])
  return Program.of(c, tiny.vocabulary(12), mesh)


def test_a_warmed_up_average_follows_its_definition():
  """min(d, (1 + n) / (10 + n)) at step n, which passes d = 0.25 at step 3."""
  p = program(optimizer__ema_warmup=True, optimizer__ema_decay=0.25)
  current, batch = p.init(), tiny.batch(rows=2)
  expected = jax.device_get(current.ema)
  for decay in (2 / 11, 3 / 12, 0.25, 0.25):
    current, _ = p.step(current, batch)
    params = jax.device_get(current.params)
    expected = jax.tree.map(
      lambda old, new, d=decay: d * old + (1 - d) * new, expected, params
    )
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, jax.device_get(current.ema), expected)


def said_after(steps, **changes):
  """The lines of an evaluation after so many steps."""
  lines = []

  class Sink:
    seconds = 0.0
    write = staticmethod(lambda step, values: None)
    say = staticmethod(lines.append)
    reached = staticmethod(lambda step: {})

  one = np.ones(2)
  quality = Likelihood(one, one, one, one, 0 * one, 1, True)
  journal = Journal(program(**changes), Sink, Sink, Sink, Sink, 0)
  journal.evaluation(steps, quality, None)
  return lines


@pytest.mark.parametrize(
  ("decay", "warmup", "steps", "share"),
  [
    (0.9999, False, 5000, "61%"),
    (0.9999, False, 9_990, "37%"),
    (0.9999, False, 10_010, None),
    (0.9999, True, 5000, None),
    (0.9, False, 5, "59%"),
  ],
)
def test_an_average_that_is_younger_than_its_horizon_is_said_to_be(
  decay, warmup, steps, share
):
  changes = {"optimizer__ema_decay": decay, "optimizer__ema_warmup": warmup}
  held_out, *more = said_after(steps, **changes)
  assert "held out" in held_out
  assert len(more) == (share is not None)
  if share is not None:
    assert f"of the EMA, {share} of which are the weights" in more[0]
