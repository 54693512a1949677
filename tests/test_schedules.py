"""Schedules against the published numbers, and against their own definitions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax.diffusion.order import CONTEXT, PADDING, TARGET, generation_order
from set_diffusion_jax.diffusion.schedules import (
  MaskSchedule,
  PositionOffset,
  first_hitting_levels,
)
from tests.golden import ROOT

CONFIGS = json.loads((ROOT / "noise" / "configs.json").read_text())
STAGGERED = [name for name in CONFIGS if name.startswith("staggered")]
LINEAR = [name for name in CONFIGS if name.startswith("linear")]


def published_schedule(c: dict) -> PositionOffset:
  """The published parametrisation (S = desired, S_max = maximum) in ours."""
  size, most, block = c["desired_block_size"], c["max_block_size"], c["block_size"]
  area = size / (2 * c["length"])  # their mean budget is per token of the whole text
  if "k" in c:
    return PositionOffset(block, area * (c["k"] + 1) / c["k"], c["k"])
  if "b" in c:
    return PositionOffset(block, c["b"], area / (c["b"] - area))
  if size in (1, most):
    return PositionOffset(block, 2 * area, 1.0)
  width = most / (block + most - 1)
  return PositionOffset(block, width, area / (width - area))


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def close(ours, theirs, where, rtol, atol):
  np.testing.assert_allclose(np.asarray(ours)[where], theirs[where], rtol, atol)


@pytest.mark.reference
@pytest.mark.parametrize("name", STAGGERED)
def test_published_position_offset(name, x64):
  z, schedule = (
    np.load(ROOT / "noise" / f"{name}.npz"),
    published_schedule(CONFIGS[name]),
  )
  assert schedule.width == pytest.approx(float(z["b"]), rel=1e-12)
  assert schedule.power == pytest.approx(float(z["k"]), rel=1e-12)
  n = schedule.length
  np.testing.assert_allclose(
    1 - schedule.width - schedule.offset(jnp.zeros(n)), z["loc"], atol=1e-12
  )

  def rows(t):
    blocks = -(-z["alpha_t"].shape[1] // n)
    return jnp.broadcast_to(jnp.asarray(t, jnp.float64)[:, None], (len(t), n)), blocks

  # With S = 1 the published code masks a token as soon as its interval has begun to
  # be noised. Orders do not depend on it and we do not follow it.
  step = CONFIGS[name]["desired_block_size"] == 1
  published = lambda alpha: jnp.where(alpha < 1, 0, alpha) if step else alpha

  t, blocks = rows(z["t"])
  alpha, slope = published(schedule.alpha(t)), schedule.alpha_prime(t)
  repeat = lambda x: np.tile(np.asarray(x), (1, blocks))
  close(repeat(alpha), z["alpha_t"], z["robust"], 1e-6, 1e-6)
  close(repeat(slope), z["alpha_t_prime"], z["robust"], 1e-6, 1e-6)
  if "t_f64" not in z:
    return
  t, _ = rows(z["t_f64"])
  alpha, slope = published(schedule.alpha(t)), schedule.alpha_prime(t)
  close(repeat(alpha), z["alpha_t_f64"], z["robust_f64"], 0, 1e-9)
  close(repeat(slope), z["alpha_t_prime_f64"], z["robust_f64"], 1e-6, 0)
  t = jnp.asarray(z["t_rand"], jnp.float64).reshape(-1, n)
  shape = z["t_rand"].shape
  alpha = published(schedule.alpha(t)).reshape(shape)
  close(alpha, z["alpha_t_rand"], z["robust_rand"], 0, 1e-6)
  slope = schedule.alpha_prime(t).reshape(shape)
  close(slope, z["alpha_t_prime_rand"], z["robust_rand"], 1e-6, 1e-6)


@pytest.mark.reference
@pytest.mark.parametrize("name", STAGGERED)
def test_published_first_hitting_times(name, x64):
  z, schedule = (
    np.load(ROOT / "noise" / f"{name}.npz"),
    published_schedule(CONFIGS[name]),
  )
  ours = 1 - schedule.reveal_time(jnp.asarray(z["fht_E"]))
  np.testing.assert_allclose(ours, z["fht_T"], rtol=0, atol=1e-12)


def published_group(flags: np.ndarray) -> np.ndarray:
  """Only the leading and the trailing run of False are held in place."""
  lead = np.cumsum(flags, -1) == 0
  trail = np.cumsum(flags[..., ::-1], -1)[..., ::-1] == 0
  return np.where(lead, CONTEXT, np.where(trail, PADDING, TARGET))


PERMUTATIONS = [
  (name, key.removesuffix("_E"))
  for name in STAGGERED
  for key in np.load(ROOT / "noise" / f"{name}.npz").files
  if key.startswith("perm") and key.endswith("_E")
]


@pytest.mark.reference
def test_every_kind_of_permutation_was_recorded():
  """Of every schedule but those too long for all of them."""
  assert {name for name, _ in PERMUTATIONS} == set(STAGGERED)
  assert {kind for _, kind in PERMUTATIONS} == {"perm", "perm_all", "perm_mt"}


@pytest.mark.reference
@pytest.mark.parametrize(("name", "kind"), PERMUTATIONS)
def test_published_permutations(name, kind, x64):
  z, schedule = (
    np.load(ROOT / "noise" / f"{name}.npz"),
    published_schedule(CONFIGS[name]),
  )
  n = schedule.length
  flags = z["perm_to_permute"] if kind != "perm_all" else np.ones_like(z[kind], bool)
  flags = flags.reshape(-1, n)
  times = schedule.reveal_time(jnp.asarray(z[f"{kind}_E"]))
  group = published_group(flags)
  if kind == "perm_mt":  # a stable partition of the order: masked and padding come last
    masked = z["perm_mt_masked_tokens"].reshape(-1, n) | (group == PADDING)
    group = group + 4 * masked
  fixed = published_group(flags) != TARGET
  position = generation_order(jnp.where(fixed, 0.0, times), jnp.asarray(group))
  blocks = z[kind].shape[1] // n
  position = np.asarray(position).reshape(-1, blocks, n)
  position = position + n * np.arange(blocks)[:, None]
  np.testing.assert_array_equal(position.reshape(z[kind].shape), z[kind])


@pytest.mark.reference
@pytest.mark.parametrize("name", LINEAR)
def test_published_linear(name):
  z = np.load(ROOT / "noise" / f"{name}.npz")
  schedule = MaskSchedule()
  if "alpha_t_1d" in z:
    alpha = schedule.alpha(jnp.asarray(z["t"]))
    np.testing.assert_allclose(alpha, z["alpha_t_1d"], atol=1e-6)
    slope = schedule.alpha_prime(jnp.asarray(z["t"]))
    np.testing.assert_allclose(slope, z["alpha_t_prime_1d"], atol=1e-6)
  if int(z["num_blocks"]) == 1:
    grid = np.broadcast_to(z["t"][:, None], z["alpha_t"].shape)
    alpha = schedule.alpha(jnp.asarray(grid))
    np.testing.assert_allclose(alpha, z["alpha_t"], atol=1e-6)
  ours = first_hitting_levels(jnp.asarray(z["fht_u"]))
  np.testing.assert_allclose(ours, z["fht_T"][:, -ours.shape[1] :], atol=1e-5)
  for key in (key for key in z if key.startswith("perm_blk") and key.endswith("_u")):
    draws = z[key]
    block = draws.shape[-1]
    flags = z["perm_to_permute"].reshape(*draws.shape)
    group = published_group(flags).reshape(-1, block)
    times = np.where(group == TARGET, 1 - draws.reshape(-1, block), 0.0)
    ours = generation_order(jnp.asarray(times), jnp.asarray(group))
    np.testing.assert_array_equal(
      np.asarray(ours).reshape(z[key[:-2]].shape), z[key[:-2]]
    )


@pytest.mark.parametrize(
  "length, size, width, power",
  [
    (128, 8.0, 0.0593, 0.358),
    (128, 16.0, 0.1119, 0.388),
    (128, 32.0, 0.2013, 0.450),
    (1024, 8.0, 0.0078, 0.336),
    (1024, 16.0, 0.0154, 0.340),
    (1024, 32.0, 0.0303, 0.347),
  ],
)
def test_worked_values_of_the_paper(length, size, width, power):
  schedule = PositionOffset.from_sizes(length, size)
  assert schedule.width == pytest.approx(width, abs=5e-5)
  assert schedule.power == pytest.approx(power, abs=5e-4)


def test_budget_is_the_mean_number_of_masked_active_tokens(x64):
  """C, integrated numerically over the generation."""
  length, size, budget = 64, 16.0, 5.0
  schedule = PositionOffset.from_sizes(length, size, budget)
  t = jnp.linspace(0, 1, 20_001)[:, None] * jnp.ones((1, length))
  elapsed = (1 - t - schedule.offset(t)) / schedule.width
  active = (elapsed >= 0) & (elapsed < 1)
  masked = jnp.where(active, 1 - schedule.alpha(t), 0).sum(-1)
  # At the mean, 1 - integral of s^k = k/(k+1) of the L w active tokens are masked.
  assert masked.mean() == pytest.approx(budget, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(
  st.integers(1, 64), st.floats(0.02, 1.0), st.floats(0.1, 4.0), st.integers(0, 2**31)
)
def test_alpha_is_the_probability_of_having_been_revealed(length, width, power, seed):
  """alpha_l(t) against the share of sampled reveal times that are at most 1 - t."""
  schedule = PositionOffset(length, width, power)
  rng = np.random.default_rng(seed)
  draws = 4000
  times = np.asarray(
    schedule.reveal_time(jnp.asarray(rng.exponential(size=(draws, length))))
  )
  t = float(rng.uniform())
  alpha = np.asarray(schedule.alpha(jnp.full(length, t)))
  share = (times <= 1 - t).mean(0)
  assert np.all(np.abs(share - alpha) < 5.5 / np.sqrt(4 * draws))


def test_alpha_prime_is_the_derivative(x64):
  schedule = PositionOffset.from_sizes(32, 8.0)
  t = jnp.linspace(0.013, 0.987, 211)[:, None] * jnp.ones((1, 32))
  step = 1e-7
  numeric = (schedule.alpha(t + step) - schedule.alpha(t - step)) / (2 * step)
  edge = (
    jnp.abs(schedule.alpha_prime(t + 3 * step) / schedule.alpha_prime(t) - 1) > 1e-4
  )
  inner = ~edge & ~jnp.isnan(schedule.alpha_prime(t + 3 * step))
  ours = np.asarray(schedule.alpha_prime(t))
  np.testing.assert_allclose(ours[inner], numeric[inner], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bad", [(0.0, 1.0), (1.1, 1.0), (0.5, 0.0)])
def test_impossible_schedules_are_refused(bad):
  with pytest.raises(ValueError, match="width"):
    PositionOffset(8, *bad)
