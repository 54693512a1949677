"""The NELBO by counts of masked tokens: against enumeration, levels and other draws."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import sharding
from set_diffusion_jax.api import Model
from set_diffusion_jax.config import MeshConfig
from set_diffusion_jax.data import Blocks, Frame, IdTokenizer, Tokens
from set_diffusion_jax.diffusion.corruption import (
  Batch,
  Noise,
  counted_noise,
  full_noise,
)
from set_diffusion_jax.diffusion.draws import (
  EVALUATE,
  TRAIN,
  level_keys,
  row_keys,
  split_rows,
  stream_key,
  training_keys,
)
from set_diffusion_jax.diffusion.noise import draw_counts
from set_diffusion_jax.diffusion.order import Order, position_offset
from set_diffusion_jax.evaluate import Evaluator, Likelihood
from set_diffusion_jax.likelihood.loss import weighted
from tests import tiny

VOCAB, LENGTH = 12, 6
METHODS = ("masked", "block", "general")
PARTLY = {
  "masked": {},
  "block": {"method__block_size": 3},
  "general": {"method__noise": "level", "method__grid": 3},
}


def model(method, **changes) -> Model:
  """One whose predictions depend much on what they see."""
  settings = {
    "method__name": method,
    "data__length": LENGTH,
    "model__layers": 1,
    **PARTLY.get(method, {}),
    **changes,
  }
  obj = tiny.objective(VOCAB, **settings)
  tokenizer = IdTokenizer(tiny.vocabulary(VOCAB))
  return Model(obj.config, tiny.params(obj, scale=0.5), tokenizer, 0)


def text(length=LENGTH, bos=True) -> np.ndarray:
  """One row of ids, [L], that may start with BOS."""
  tokens = np.random.default_rng(1).integers(0, VOCAB - 3, length)
  tokens[0] = tiny.vocabulary(VOCAB).bos if bos else tokens[0]
  return tokens.astype(np.int32)


def likelihood(
  m: Model, tokens: np.ndarray, by=None, advance=lambda rows: None
) -> Likelihood:
  """What `evaluate` makes of rows that start with BOS, [n, L]."""
  runs = tokens[:, 1:]
  size = runs.size
  held_out = Tokens(runs.ravel(), np.ones(size, np.int32), np.array([size]))
  frame = Frame(tokens.shape[1], m.tokenizer.vocabulary, bos=True)
  mesh = sharding.make_mesh(MeshConfig())
  blocks = Blocks.wrapped(held_out, frame)
  evaluator = Evaluator(m.objective, blocks, mesh, by)
  return evaluator.run(m.params, advance).likelihood


@functools.partial(jax.jit, static_argnums=0)
def nats_by_position(obj, params, batch, order, masked):
  """-log p of each token where just `masked` is masked, [B, L] by text position."""
  ones = jnp.ones(masked.shape)
  streams = obj.streams(batch, order, Noise(masked, ones, ones), False)
  nats = obj.nats(params, streams)
  return jnp.take_along_axis(nats, jnp.argsort(order.position, axis=-1), axis=-1)


def repeated(batch: Batch, rows: int) -> Batch:
  return jax.tree.map(lambda x: jnp.repeat(x[:1], rows, axis=0), batch)


def exact_nelbo(m: Model, batch: Batch, position, rank) -> float:
  """The NELBO of one row under one order, by the chain rule.

  The mean over the orders in which the targets of a set can be generated, one token at
  a time, of the sum of their nats; each sees the earlier sets and what was generated
  before it in its own. No level, count or weight comes in: an order of n tokens in
  which v of them stand before token i has probability v! (n - v - 1)! / n!.

  Args:
    m: the model.
    batch: one row.
    position: [L], text position of each memory slot.
    rank: [L], set of each memory slot.
  """
  wanted = np.asarray(batch.valid & ~batch.context)[0]
  masks, shares = [], []
  for number in np.unique(rank):
    members = [p for p in np.asarray(position)[rank == number] if wanted[p]]
    n = len(members)
    for left in range(1, n + 1):
      share = math.factorial(n - left) * math.factorial(left - 1) / math.factorial(n)
      for subset in itertools.combinations(members, left):
        masks.append(np.isin(np.arange(len(wanted)), subset))
        shares.append(share)
  rows = len(masks)
  masks = np.array(masks)
  order = Order(
    *(jnp.tile(jnp.asarray(x, jnp.int32), (rows, 1)) for x in (position, rank))
  )
  nats = nats_by_position(m.objective, m.params, repeated(batch, rows), order, masks)
  return float((np.asarray(nats, np.float64) * masks).sum(-1) @ np.array(shares))


def fixed_order(method: str) -> tuple[np.ndarray, np.ndarray]:
  """Position and rank of each memory slot; of `general`, some sets of several sizes."""
  plain = np.arange(LENGTH)
  if method == "masked":
    return plain, np.zeros(LENGTH, int)
  if method == "block":
    return plain, plain // 3
  return np.array([0, 4, 1, 5, 3, 2]), np.array([0, 1, 2, 2, 2, 3])


def grid_orders(m: Model) -> dict[tuple, float]:
  """Each partition into sets of a text that starts with BOS, and its probability.

  A position's reveal time is at most x with probability ((x - a) / w)^k.
  """
  schedule = position_offset(m.config.method, LENGTH)
  start = np.arange(LENGTH) / (LENGTH - 1) * (1 - schedule.width)
  grid = m.config.method.grid
  edges = (np.arange(-1, grid + 1) + 0.5) / grid  # of what rounds to 0 .. grid
  below = np.clip((edges - start[:, None]) / schedule.width, 0, 1) ** schedule.power
  of_value = np.diff(below, axis=-1)
  np.testing.assert_allclose(of_value.sum(-1), 1)
  found = {}
  for values in itertools.product(range(grid + 1), repeat=LENGTH - 1):
    likely = np.prod([of_value[1 + i, v] for i, v in enumerate(values)])
    rank = tuple(np.unique(values, return_inverse=True)[1].tolist())
    found[rank] = found.get(rank, 0.0) + likely
  return {rank: p for rank, p in found.items() if p > 0}


@functools.cache
def exact_of_method(method: str) -> float:
  """The NELBO of `text()`, which starts with BOS."""
  m = model(method)
  batch = m._batch(text()[None])
  if method != "general":
    return exact_nelbo(m, batch, *fixed_order(method))
  total = 0.0
  for by_position, likely in grid_orders(m).items():
    order = np.argsort(by_position, kind="stable")
    position = np.concatenate([[0], 1 + order])
    rank = np.concatenate([[0], 1 + np.array(by_position)[order]])
    total += likely * exact_nelbo(m, batch, position, rank)
  return total


def within(found: np.ndarray, exact: float, errors: float = 3) -> None:
  """Asserts that independent estimates have a mean, and that they say something."""
  error = found.std(ddof=1) / math.sqrt(len(found))
  print(f"{found.mean():.4f} +- {error:.4f}, exact {exact:.4f}")
  assert 0 < error < 0.01 * exact
  assert abs(found.mean() - exact) < errors * error


@pytest.mark.parametrize("method", METHODS)
def test_every_count_and_subset_with_its_weight(method):
  """All that can be drawn, once each, has the mean that the chain rule gives.

  A row with BOS and padding, so that sets have fewer targets than positions.
  """
  m = model(method)
  batch = m._batch(text()[None])
  batch = batch._replace(valid=batch.valid.at[:, -1].set(False))
  position, rank = fixed_order(method)
  if method == "general":  # padding comes last
    position, rank = np.array([0, 4, 1, 3, 2, 5]), np.array([0, 1, 2, 2, 2, 3])
  by_position = rank[np.argsort(position)]
  targets = np.arange(1, LENGTH - 1)
  sizes = {r: int((by_position[targets] == r).sum()) for r in np.unique(rank)}
  sizes = {r: n for r, n in sizes.items() if n}
  shares, uniforms = [], []
  for counts in itertools.product(*(range(n) for n in sizes.values())):
    share = np.zeros(LENGTH)
    for (r, n), k in zip(sizes.items(), counts, strict=True):
      share[by_position == r] = (k + 0.5) / n
    for turns in itertools.permutations(range(len(targets))):
      uniform = np.zeros(LENGTH)
      uniform[targets] = np.array(turns) / len(targets)
      shares.append(share)
      uniforms.append(uniform)
  rows = len(shares)
  several = repeated(batch, rows)
  tiled = jnp.tile(jnp.asarray(by_position, jnp.int32), (rows, 1))
  noise = counted_noise(
    several, tiled, *(jnp.asarray(x, jnp.float32) for x in (shares, uniforms))
  )
  assert not (np.asarray(noise.masked) & ~np.isin(np.arange(LENGTH), targets)).any()
  order = Order(
    *(jnp.tile(jnp.asarray(x, jnp.int32), (rows, 1)) for x in (position, rank))
  )
  nats = nats_by_position(m.objective, m.params, several, order, noise.masked)
  found = np.asarray(weighted(nats, noise.weight), np.float64).sum(-1)
  assert found.std() > 0.1
  exact = exact_nelbo(m, batch, position, rank)
  assert found.mean() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
  "method, draws", [("masked", 1), ("masked", 4), ("block", 3), ("general", 2)]
)
def test_nelbo_and_evaluate_against_enumeration(method, draws):
  """Many draws of one text, over orders too, have the NELBO as their mean."""
  m = model(method, evaluate__draws=draws, evaluate__batch_size=4096)
  rows = 6000 // draws
  several = np.tile(text(), (rows, 1))
  found = m.nelbo(several, draws=draws)
  within(found, exact_of_method(method))
  evaluated = likelihood(m, several)
  np.testing.assert_allclose(evaluated.nats, found, rtol=1e-5)
  assert (evaluated.tokens == LENGTH - 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_training_by_counts_against_enumeration(method):
  m = model(method, corruption__levels="counts")
  obj, rows = m.objective, 6000
  batch = m._batch(np.tile(text(), (rows, 1)))
  keys = training_keys(stream_key(0, TRAIN), 3, batch.row)

  @jax.jit
  def losses(params):
    streams = obj.training_streams(batch, keys, tiny.CLIP)
    return weighted(obj.nats(params, streams), streams.weight).sum(-1), streams.weight

  found, weight = losses(m.params)
  within(np.asarray(found), exact_of_method(method))
  # The weights of a row's targets always add up to their number.
  np.testing.assert_allclose(weight.sum(-1), LENGTH - 1, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_training_draws_levels_unless_told_otherwise(method):
  """The published way: its masks and weights, written out again."""
  m = model(method)
  obj = m.objective
  batch = m._batch(np.tile(text(), (50, 1)))
  keys = training_keys(stream_key(0, TRAIN), 3, batch.row)
  order, noise = obj.training_draws(batch, keys, jnp.array([0.2, 0.9]))
  sets = {"masked": 1, "block": 2, "general": LENGTH}[method]
  of = level_keys(keys.noise)
  for row in range(50):
    strata = jax.random.permutation(keys.strata[row], sets)
    t = (strata + jax.random.uniform(of.level[row], (sets,))) / sets
    rank = np.zeros(LENGTH, int)
    rank[np.asarray(order.position[row])] = order.rank[row]
    t = np.asarray(0.2 + (0.9 - 0.2) * t)[rank]
    masked = np.asarray(jax.random.uniform(of.masked[row], (LENGTH,))) < t
    masked[0] = False
    np.testing.assert_array_equal(noise.masked[row], masked)
    np.testing.assert_allclose(noise.weight[row], np.where(masked, 1 / t, 0), rtol=1e-5)


@pytest.mark.parametrize("method", ["masked", "block"])
def test_counts_vary_less_than_half_as_much_as_levels(method):
  """Monte Carlo standard deviation of one text's figure, at 8 passes each."""
  longer = {"data__length": 16, "method__block_size": 4}
  several = np.tile(text(16), (2000, 1))
  spread = {}
  for levels in ("counts", "uniform"):
    m = model(method, **longer, evaluate__levels=levels)
    found = m.nelbo(several, draws=8)
    spread[levels] = float(found.std(ddof=1))
    print(
      f"{method} by {levels}: {found.mean():.3f}, std of 8 draws {spread[levels]:.3f}"
    )
  assert spread["counts"] <= 0.5 * spread["uniform"]


def test_counts_of_a_rows_draws_are_spread_evenly():
  """With as many draws as targets each count comes once, in every set of every row."""
  rows, draws = 20, 3
  m = model("block")
  batch = m._batch(np.tile(text(bos=False), (rows, 1)))
  batch = batch._replace(context=jnp.zeros_like(batch.context))
  rank = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32) // 3, (rows, 1))
  root = stream_key(0, EVALUATE)
  found = []
  for draw in range(draws):
    noise = draw_counts(batch, rank, row_keys(root, draw, batch.row), 2, draw, draws)
    found.append(np.asarray(noise.masked).reshape(rows, 2, 3).sum(-1))
  assert (np.sort(found, axis=0) == np.array([1, 2, 3])[:, None, None]).all()


def test_counts_of_sets_are_spread_evenly_in_one_draw():
  """As many sets as they have targets: in a single draw each set has another count."""
  rows, length = 50, 16
  batch = tiny.batch(rows=rows, length=length)
  rank = jnp.tile(jnp.arange(length, dtype=jnp.int32) // 4, (rows, 1))
  keys = row_keys(stream_key(0, EVALUATE), 0, batch.row)
  noise = draw_counts(batch, rank, keys, 4)
  counts = np.asarray(noise.masked).reshape(rows, 4, 4).sum(-1)
  assert (np.sort(counts, axis=-1) == np.array([1, 2, 3, 4])).all()
  assert len(np.unique(counts, axis=0)) > 10, "and which one is drawn"


def test_every_subset_of_a_count_is_as_likely():
  rows, n = 6000, 4
  batch = tiny.batch(rows=rows, length=n)
  rank = jnp.zeros((rows, n), jnp.int32)
  keys = row_keys(stream_key(0, EVALUATE), 0, batch.row)
  masked = np.asarray(draw_counts(batch, rank, keys, 1).masked)
  found = np.bincount(masked @ 2 ** np.arange(n), minlength=2**n)
  size = np.array([bin(i).count("1") for i in range(2**n)])
  ways = np.array([math.comb(n, k) for k in size])
  expected = np.where(size > 0, rows / n / ways, 0)
  assert found[0] == 0
  assert ((found - expected)[1:] ** 2 / expected[1:]).sum() < 36.1  # 0.1%, 14 degrees


@pytest.mark.parametrize("method", ["ar", "set"])
def test_methods_without_levels_are_as_they_were(method):
  """A plain pass of each drawn order, by the keys that orders always had."""
  m = model(method, evaluate__draws=3)
  tokens = np.tile(text(), (5, 1))
  obj, batch, root = m.objective, m._batch(tokens), stream_key(0, EVALUATE)
  expected = []
  for draw in range(3):
    order_keys, _ = split_rows(row_keys(root, draw, batch.row))
    order = obj.draw_order(batch, order_keys, False)
    streams = obj.streams(batch, order, full_noise(batch), False)
    nats = tiny.nats(obj, m.params, streams)
    expected.append(np.asarray(weighted(nats, streams.weight)).sum(-1))
  expected = np.mean(expected, axis=0)
  np.testing.assert_allclose(m.nelbo(tokens, draws=3), expected, rtol=1e-6)
  np.testing.assert_allclose(likelihood(m, tokens).nats, expected, rtol=1e-6)


def test_chunks_have_the_figures_of_the_whole():
  m = model("block", evaluate__draws=3)
  tokens = np.random.default_rng(0).integers(0, VOCAB - 3, (8, LENGTH)).astype(np.int32)
  tokens[:, 0] = tiny.vocabulary(VOCAB).bos
  whole = likelihood(m, tokens).nats
  chunks = [
    m.nelbo(tokens[i : i + 3], 3, rows=np.arange(8)[i : i + 3]) for i in (0, 3, 6)
  ]
  np.testing.assert_allclose(np.concatenate(chunks), whole, rtol=1e-5)
  same = np.tile(tokens[:1], (2, 1))
  assert np.ptp(m.nelbo(same, rows=[5, 5])) == 0 < np.ptp(m.nelbo(same, rows=[5, 6]))
  for wrong in ([0], [0, -1], [0.0, 1.0], [0, 2**31]):
    with pytest.raises(ValueError, match=r"rows: must be .2. whole numbers"):
      m.nelbo(same, rows=wrong)
