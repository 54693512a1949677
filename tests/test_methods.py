"""Every method is the same code with other indices: identities between them."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.diffusion.corruption import Noise, full_noise
from set_diffusion_jax.diffusion.draws import EVALUATE, row_keys, stream_key
from set_diffusion_jax.diffusion.index import attends, key_intervals
from set_diffusion_jax.diffusion.method import METHODS
from set_diffusion_jax.diffusion.order import singletons
from set_diffusion_jax.diffusion.schedules import MaskSchedule
from set_diffusion_jax.likelihood.loss import weighted
from tests import tiny

LENGTH, VOCAB = 8, 12


def objective(method, **changes):
  return tiny.objective(
    vocab_size=VOCAB, method__name=method, data__length=LENGTH, **changes
  )


def keys(rows, draw=0, seed=0):
  return row_keys(stream_key(seed, EVALUATE), draw, jnp.arange(rows))


@functools.partial(jax.jit, static_argnums=(0, 3))
def drawn(obj, batch, draw, draws):
  """Order and noise of a draw."""
  rows = len(batch.row)
  order = obj.draw_order(batch, keys(rows, draw), False)
  return order, obj.draw_noise(
    batch, order, keys(rows, draw, 1), keys(rows), draw, draws
  )


@functools.partial(jax.jit, static_argnums=0)
def row_nats(obj, params, batch, order, noise):
  streams = obj.streams(batch, order, noise, True)
  return weighted(obj.nats(params, streams), streams.weight).sum(-1)


@pytest.mark.parametrize("backbone", ["dit", "qwen3"])
def test_one_block_of_everything_is_masked_diffusion(backbone):
  block = objective("block", method__block_size=LENGTH, model__backbone=backbone)
  masked = objective("masked", model__backbone=backbone)
  params, batch = tiny.params(masked), tiny.batch(rows=4, length=LENGTH)
  order, noise = drawn(masked, batch, 0, 1)
  assert 0 < noise.masked.sum() < noise.masked.size
  ours = row_nats(block, params, batch, drawn(block, batch, 0, 1)[0], noise)
  theirs = row_nats(masked, params, batch, order, noise)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("backbone", ["dit", "qwen3"])
def test_three_ways_to_go_from_left_to_right(backbone):
  """Blocks of one, w = 1/L, and the two-stream chain rule."""
  block = objective("block", method__block_size=1, model__backbone=backbone)
  window = objective(
    "set",
    method__max_set_size=1.0,
    method__prediction_budget=0.5,
    model__backbone=backbone,
  )
  params, batch = tiny.params(block), tiny.batch(rows=3, length=LENGTH)
  text = singletons(jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (3, 1)))
  full = full_noise(batch)
  chain = row_nats(window, params, batch, text, full)
  for obj in (block, window):
    order, _ = drawn(obj, batch, 0, 1)
    np.testing.assert_array_equal(order.position, text.position)
    ours = row_nats(obj, params, batch, order, full)
    np.testing.assert_allclose(ours, chain, rtol=1e-5)


def test_a_fine_grid_has_singletons_and_a_coarse_one_a_single_set():
  batch = tiny.batch(rows=4, length=LENGTH, bos=True)
  fine = objective("general", method__grid=10**6)
  order, _ = drawn(fine, batch, 0, 1)
  window, _ = drawn(objective("set"), batch, 0, 1)
  np.testing.assert_array_equal(order.position, window.position)
  np.testing.assert_array_equal(order.rank, window.rank)
  coarse = objective("general", method__grid=4)
  rank = np.asarray(drawn(coarse, batch, 0, 1)[0].rank)
  assert ((np.diff(rank) == 0) | (np.diff(rank) == 1)).all()
  assert (rank[:, 0] == 0).all()
  assert (rank[:, 1] == 1).all(), "context is a set of its own"
  assert rank.max() <= 5


def test_sets_of_a_grid_are_the_positions_that_round_alike():
  """Against reveal times recomputed by hand."""
  obj = objective("general", method__grid=5)
  batch = tiny.batch(rows=20, length=LENGTH)
  from set_diffusion_jax.diffusion.order import position_offset

  schedule = position_offset(obj.config.method, LENGTH)
  draws = jax.vmap(lambda k: jax.random.exponential(k, (LENGTH,)))(keys(20))
  value = np.round(np.asarray(schedule.reveal_time(draws)) * 5)
  order, _ = drawn(obj, batch, 0, 1)
  for b in range(20):
    rank = np.empty(LENGTH, int)
    rank[np.asarray(order.position)[b]] = np.asarray(order.rank)[b]
    same = value[b][:, None] == value[b][None, :]
    np.testing.assert_array_equal(rank[:, None] == rank[None, :], same)
    np.testing.assert_array_equal(
      np.argsort(np.argsort(np.unique(value[b]))), np.unique(rank)
    )


@pytest.mark.parametrize("method", METHODS)
def test_masked_tokens_see_their_set_and_earlier_clean_tokens(method):
  obj = objective(method, method__noise="level")
  batch = tiny.batch(rows=3, length=LENGTH, bos=True)
  order, noise = drawn(obj, batch, 0, 1)
  streams = obj.streams(batch, order, noise, False)
  seen = np.asarray(attends(streams.index, streams.index))
  rank = np.asarray(order.rank)
  if method == "ar":
    expected = np.tril(np.ones((LENGTH, LENGTH), bool))
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, seen.shape))
    return
  noisy = seen[:, -LENGTH:]
  same = rank[:, :, None] == rank[:, None, :]
  np.testing.assert_array_equal(noisy[:, :, -LENGTH:], same)
  if method != "masked":
    earlier = rank[:, :, None] > rank[:, None, :]
    np.testing.assert_array_equal(noisy[:, :, :LENGTH], earlier)


@pytest.mark.parametrize(
  "name", ["linear", "cosine", "square", "square_root", "log", "log_linear"]
)
def test_mask_schedules(name):
  schedule = MaskSchedule(name)
  grid = np.linspace(0.01, 0.99, 99)
  with jax.enable_x64(True):
    t = jnp.asarray(grid)
    alpha = np.asarray(schedule.alpha(t))
    numeric = np.asarray(schedule.alpha(t + 1e-6) - schedule.alpha(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(schedule.alpha_prime(t), numeric, rtol=1e-6)
    ends = schedule.alpha(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(ends, [1, 1e-3 * (name == "log_linear")], atol=1e-9)
  assert (np.diff(alpha) < 0).all()
  t = jnp.asarray(grid, jnp.float32)
  np.testing.assert_allclose(schedule.weight(t), -numeric / (1 - alpha), rtol=1e-3)


def test_levels_are_stratified_within_a_row():
  """No two draws of a row fall into the same stratum, and the levels are uniform."""
  draws, rows = 4, 500
  obj = objective("masked", evaluate__levels="uniform")
  batch = tiny.batch(rows=rows, length=LENGTH)
  levels = np.full((draws, rows), np.nan)
  for draw in range(draws):
    noise = drawn(obj, batch, draw, draws)[1]
    # The weight of the linear schedule is 1 / t: a row's level is read off it.
    highest = np.asarray(noise.weight).max(-1)
    levels[draw, highest > 0] = 1 / highest[highest > 0]
  strata = np.floor(levels * draws)
  for row in range(rows):
    hit = strata[:, row][~np.isnan(strata[:, row])]
    assert len(set(hit)) == len(hit)
  # Rows differ in which draw has which stratum.
  assert len(set(strata[0][~np.isnan(strata[0])])) == draws
  # A row is seen if anything in it is masked: 1 - E (1 - t)^L = 1 - 1 / (L + 1).
  seen = (~np.isnan(levels)).mean()
  assert seen == pytest.approx(1 - 1 / (LENGTH + 1), abs=0.02)


def test_a_block_has_one_level_and_a_row_all_strata():
  obj = objective("block", evaluate__levels="uniform")
  batch = tiny.batch(rows=400, length=LENGTH)
  weight = np.asarray(drawn(obj, batch, 0, 1)[1].weight).reshape(400, 2, 4)
  for values in weight.reshape(-1, 4):
    assert len(set(values[values > 0])) <= 1
  both = (weight > 0).any(-1).all(-1)
  level = 1 / weight.max(-1)[both]
  assert ((level[:, 0] < 0.5) != (level[:, 1] < 0.5)).all()


def nats_over_all_orders(obj, params, batch):
  """Mean nats of a text over all orders of each set, from all parts of it masked.

  Among the orders of n positions, one in n C(n - 1, k - 1) generates position i while
  just a given set of k positions, i among them, is missing.
  """
  n = obj.config.method.block_size if obj.config.method.name == "block" else LENGTH
  masked = np.array(list(itertools.product([False, True], repeat=n))[1:])
  count = masked.sum(-1, keepdims=True)
  ways = n * np.vectorize(math.comb)(n - 1, count - 1)
  weight = np.tile(np.where(masked, 1 / ways, 0).astype(np.float32), LENGTH // n)
  masked = np.tile(masked, LENGTH // n)
  noise = Noise(*map(jnp.asarray, (masked, weight, np.ones_like(weight))))
  texts = jax.tree.map(lambda x: jnp.repeat(x, len(masked), axis=0), batch)
  order, _ = drawn(obj, texts, 0, 1)
  return float(row_nats(obj, params, texts, order, noise).sum())


@pytest.mark.parametrize("schedule", ["linear", "square_root", "log_linear"])
@pytest.mark.parametrize("method", ["masked", "block"])
def test_the_nelbo_of_noise_levels_is_unbiased(method, schedule):
  """Averaged over noise, against the mean over uniformly random orders of each block.

  With the weight -alpha'/(1 - alpha) the expected loss of a set is the expected nats of
  generating it one token at a time in a random order, each token given those before it
  in the order. The schedule of training plays no part.
  """
  obj = objective(method, corruption__schedule=schedule, evaluate__levels="uniform")
  params, batch = tiny.params(obj), tiny.batch(rows=1, length=LENGTH)
  expected = nats_over_all_orders(obj, params, batch)
  one_text = jnp.tile(batch.tokens, (4000, 1))
  batch = tiny.batch(rows=4000, length=LENGTH)._replace(tokens=one_text)
  draws = []
  for draw in range(4):
    order, noise = drawn(obj, batch, draw, 4)
    draws.append(np.asarray(row_nats(obj, params, batch, order, noise)))
  means = np.mean(draws, axis=0)
  error = means.std() / np.sqrt(len(means))
  assert abs(means.mean() - expected) < 4 * error
  assert error < 0.02 * expected


def test_clipped_levels_only_in_training():
  obj = objective("block", evaluate__levels="uniform")
  batch = tiny.batch(rows=200, length=LENGTH)
  order, _ = drawn(obj, batch, 0, 1)
  for clip, low, high in ((jnp.array([0.4, 0.6]), 0.4, 0.6), (None, 0.0, 1.0)):
    noise = obj.draw_noise(batch, order, keys(200), keys(200, 1), clip=clip)
    levels = 1 / np.asarray(noise.weight)[np.asarray(noise.masked)]
    assert low - 1e-6 <= levels.min() < low + 0.15
    assert high - 0.01 < levels.max() <= high + 1e-6


def test_any_order_is_uniform():
  obj = objective("any_order")
  batch = tiny.batch(rows=6000, length=4)
  position = np.asarray(drawn(obj, batch, 0, 1)[0].position)
  names = {p: i for i, p in enumerate(itertools.permutations(range(4)))}
  found = np.bincount([names[tuple(p)] for p in position.tolist()], minlength=24)
  assert ((found - 250) ** 2 / 250).sum() < 49.7  # 0.1%, 23 degrees of freedom


def test_active_positions_of_the_ablation():
  """A padded row: context, revealed ones by rank, then one causal set, then padding."""
  obj = objective("set", method__predict="active", method__max_set_size=4.0)
  batch = tiny.batch(rows=40, length=LENGTH, bos=True)
  batch = batch._replace(valid=batch.valid.at[:, LENGTH - 2 :].set(False))
  order, noise = drawn(obj, batch, 0, 1)
  streams = obj.streams(batch, order, noise, False)
  intervals = key_intervals(streams.index)
  key = np.arange(2 * LENGTH)
  bounds = [np.asarray(x)[..., None] for x in intervals]
  seen = (key < LENGTH) & (key < bounds[0])
  seen |= (key >= LENGTH + bounds[1]) & (key < LENGTH + bounds[2])
  np.testing.assert_array_equal(seen, attends(streams.index, streams.index))
  rank, valid = np.asarray(streams.index.rank), np.asarray(streams.index.valid)
  assert not valid[:, LENGTH - 2 : LENGTH].any() and valid[:, : LENGTH - 2].all()
  masked = np.asarray(
    jnp.take_along_axis(noise.masked, streams.index.position[:, :LENGTH], -1)
  )
  for b in range(40):
    first = int((~masked[b, : LENGTH - 2]).sum())
    assert not masked[b, :first].any() and masked[b, first : LENGTH - 2].all()
    assert rank[b, : LENGTH - 2].tolist() == [min(r, first) for r in range(LENGTH - 2)]
  weight = np.asarray(streams.weight)
  assert (weight[~masked] == 0).all() and (weight > 0).any()
  assert ((weight == 0) & masked).any(), "what is masked for sure has no weight"
