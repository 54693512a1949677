"""Streams, losses and what a prediction may depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from set_diffusion_jax.config import DENOMINATORS
from set_diffusion_jax.diffusion.draws import row_keys, stream_key, training_keys
from set_diffusion_jax.diffusion.order import left_to_right, singletons
from set_diffusion_jax.likelihood.loss import (
  loss_terms,
  negative_log_likelihood,
  priced_nats,
  slot_nats,
  weighted,
)
from set_diffusion_jax.model.layers import Linear, dropout
from tests import tiny

VOCAB = 12


def random_order(rows, length, seed=0):
  rng = np.random.default_rng(seed)
  return singletons(
    jnp.asarray([rng.permutation(length) for _ in range(rows)], "int32")
  )


@pytest.mark.parametrize("method", ["ar", "set"])
def test_no_prediction_depends_on_later_tokens(method):
  """Exact zeros in the Jacobian; and every earlier token does matter."""
  slots = 8 if method == "ar" else 16
  obj = tiny.objective(vocab_size=slots, method__name=method, data__length=8)
  params, batch = tiny.params(obj), tiny.batch(rows=1, length=8)
  order = left_to_right(1, 8) if method == "ar" else random_order(1, 8)
  index = tiny.streams(obj, batch, order).index
  probe = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)

  @jax.jit
  def predictions(embedding):
    """A number from each target slot; every memory slot has an embedding of its own."""
    ids = jnp.arange(slots)[None]
    h, _ = obj.network.hidden({**params, "embedding": embedding}, ids, index)
    return h[0, -8:] @ probe

  influence = jnp.abs(jax.jacrev(predictions)(params["embedding"])).max(-1)  # [R, T]
  clean = np.asarray(influence)[:, :8]
  slot = np.arange(8)
  sees = slot <= slot[:, None] if method == "ar" else slot < slot[:, None]
  assert (clean[~sees] == 0).all()
  assert (clean[sees] > 0).all()
  if method == "set":
    noisy = np.asarray(influence)[:, 8:]
    np.testing.assert_array_equal(noisy > 0, np.eye(8, dtype=bool))


def test_a_batch_equals_its_rows():
  obj = tiny.objective(data__length=8)
  params, batch = tiny.params(obj), tiny.batch(rows=2, length=8)
  order = random_order(2, 8)
  together = tiny.nats(obj, params, tiny.streams(obj, batch, order))
  for row in (slice(0, 1), slice(1, 2)):
    alone = jax.tree.map(lambda x, row=row: x[row], batch)
    streams = tiny.streams(obj, alone, singletons(order.position[row]))
    np.testing.assert_allclose(
      tiny.nats(obj, params, streams), together[row], atol=1e-5
    )


def test_conditionals_are_normalised():
  """Sums of exp(-nats) over all values of one token are 1, and [MASK] has none."""
  obj = tiny.objective(data__length=4)
  params = tiny.params(obj)
  base = tiny.batch(rows=1, length=4)
  order = random_order(1, 4)
  probability = 0.0
  for token in range(VOCAB - 1):
    at = order.position[0, 2]
    batch = base._replace(tokens=base.tokens.at[0, at].set(token))
    probability += jnp.exp(
      -tiny.nats(obj, params, tiny.streams(obj, batch, order))[0, 2]
    )
  assert probability == pytest.approx(1, abs=1e-5)


def test_padding_and_context():
  obj = tiny.objective(data__length=8)
  params, batch = tiny.params(obj), tiny.batch(rows=2, length=8)
  batch = batch._replace(
    valid=batch.valid.at[1, 5:].set(False), context=batch.context.at[0, :3].set(True)
  )
  keys = row_keys(stream_key(0, 0), 0, batch.row)
  order = obj.draw_order(batch, keys, train=True)
  streams = tiny.streams(obj, batch, order)
  assert streams.weight.sum(-1).tolist() == [5, 5]
  nats = jnp.where(streams.weight > 0, tiny.nats(obj, params, streams), 0)
  # What stands in padding changes nothing; neither does the other row.
  other = batch._replace(tokens=batch.tokens.at[1, 5:].set(3).at[0, 7].set(1))
  changed = tiny.nats(obj, params, tiny.streams(obj, other, order))
  np.testing.assert_array_equal(nats[1, :5], changed[1, :5])
  # A padded row equals the row cut to its length.
  short = jax.tree.map(lambda x: x[1:, :5] if x.ndim > 1 else x[1:], batch)
  cut = tiny.nats(
    obj, params, tiny.streams(obj, short, singletons(order.position[1:, :5]))
  )
  np.testing.assert_allclose(nats[1:, :5], cut, atol=1e-5)


def test_eos_last_only_in_training():
  obj = tiny.objective(data__length=8, method__eos_last=True)
  batch = tiny.batch(rows=2, length=8)
  batch = batch._replace(tokens=batch.tokens.at[:, [1, 2]].set(obj.eos_id))
  keys = row_keys(stream_key(0, 0), 0, batch.row)
  train = obj.draw_order(batch, keys, train=True).position
  assert (jnp.sort(train[:, -2:], -1) == jnp.array([[1, 2]])).all()
  assert (obj.draw_order(batch, keys, train=False).position[:, -2:] > 2).any()


def test_likelihoods_are_those_of_a_softmax():
  """Against float64 numpy, from the definition."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 9, VOCAB)).astype(np.float32) * 5
  target = rng.integers(0, VOCAB - 1, (3, 9))
  picked = np.take_along_axis(logits, target[..., None], -1)[..., 0]
  for suppress in (None, VOCAB - 1):
    kept = logits[..., :-1] if suppress else logits
    expected = np.log(np.exp(kept.astype(np.float64)).sum(-1)) - picked
    ours = negative_log_likelihood(jnp.asarray(logits), jnp.asarray(target), suppress)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_denominators():
  """Row 1 has 3 tokens, of which 2 are masked; row 2 has none."""
  nats = jnp.array([[1.0, 2.0, 4.0, 9.0], [9.0, 9.0, jnp.inf, 9.0]])
  weight = jnp.array([[2.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
  counted = jnp.array([[True, True, True, False], [False] * 4])
  expected = {
    "tokens": 4 / 3,
    "masked": 4 / 2,
    "sequences": (4 / 3 + 0) / 2,
    "masked_sequences": (4 / 2 + 0) / 2,
  }
  assert set(expected) == set(DENOMINATORS)
  for name, value in expected.items():
    terms = loss_terms(weighted(nats, weight), weight, counted, name)
    assert terms.numerator / terms.denominator == pytest.approx(value)


@pytest.mark.parametrize("limit", [10**9, 3 * VOCAB * 4, 1])
def test_cross_entropy_in_pieces(limit):
  """Values and gradients do not depend on the size of the pieces."""
  rng = np.random.default_rng(0)
  h, w = rng.normal(size=(3, 8, 5)), rng.normal(size=(5, VOCAB))
  h, w = jnp.asarray(h, jnp.float32), jnp.asarray(w, jnp.float32)
  target = jnp.asarray(rng.integers(0, VOCAB - 1, (3, 8)))

  prices = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
  prices = prices.at[:, 1].set(0)
  half = jnp.float32(0.5)  # what else the output layer needs

  def oracle(h, w):
    kept = 0.5 * (jnp.einsum("brd,dv->brv", h, w))[..., :-1]
    nats = optax.softmax_cross_entropy_with_integer_labels(kept, target)
    return (prices * nats[None]).sum((1, 2)), nats

  def ours(h, w):
    unembed = lambda w, half, h: half * jnp.einsum("brd,dv->brv", h, w)
    more = target, prices, VOCAB, VOCAB - 1, limit
    return priced_nats(unembed, w, half, h, *more)

  expected, pullback, nats = jax.vjp(oracle, h, w, has_aux=True)
  totals, our_pullback, our_nats = jax.vjp(ours, h, w, has_aux=True)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(totals, expected)
  close(our_nats, nats)
  unembed = lambda h: half * jnp.einsum("brd,dv->brv", h, w)
  close(slot_nats(unembed, h, target, VOCAB, VOCAB - 1, limit), nats)
  for up in jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, -0.5]]):
    jax.tree.map(close, our_pullback(up), pullback(up))


def test_no_sum_reads_what_has_no_price():
  """Also where it cannot be predicted at all, so that its nats are infinite."""
  h, w = jnp.ones((1, 2, 3)), jax.random.normal(jax.random.key(0), (3, VOCAB))
  target, prices = jnp.array([[VOCAB - 1, 3]]), jnp.array([[[0.0, 1.0]]])

  def total(h):
    unembed = lambda w, _, h: jnp.einsum("brd,dv->brv", h, w)
    return priced_nats(unembed, w, None, h, target, prices, VOCAB, VOCAB - 1, 1)[0][0]

  value, gradient = jax.value_and_grad(total)(h)
  assert jnp.isfinite(value)
  assert (gradient[:, 0] == 0).all()
  assert (gradient[:, 1] != 0).all()


def test_dropout_is_drawn_by_row():
  obj = tiny.objective(model__dropout=0.5)
  params, batch = tiny.params(obj), tiny.batch(rows=4)
  keys = training_keys(stream_key(0, 0), 0, batch.row)
  together = tiny.training_nats(obj, params, batch, keys)
  pick = jnp.array([2])
  one = jax.tree.map(lambda x: x[pick], (batch, keys))
  alone = tiny.training_nats(obj, params, *one)
  np.testing.assert_allclose(together[2:3], alone, atol=1e-5)
  streams = tiny.streams(obj, batch, obj.draw_order(batch, keys.order, True))
  plain = tiny.nats(obj, params, streams)
  assert jnp.abs(plain - together).max() > 0.01
  other = tiny.nats(obj, params, streams, keys.signs)
  assert jnp.abs(other - together).max() > 0.01


def test_what_has_no_weight_has_no_gradient():
  """Also where it cannot be predicted at all, so that its nats are infinite."""
  target, weight = jnp.array([[VOCAB - 1, 3]]), jnp.array([[0.0, 1.0]])

  def loss(logits):
    nats = negative_log_likelihood(logits, target, VOCAB - 1)
    return weighted(nats, weight).sum()

  logits = jax.random.normal(jax.random.key(0), (1, 2, VOCAB))
  gradient = jax.grad(loss)(logits)
  assert (gradient[:, 0] == 0).all()
  assert (gradient[0, 1, :-1] != 0).all()
  assert gradient[0, 1, -1] == 0


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_map_and_its_gradients(bias):
  """Against automatic differentiation of the plain sum over input axes."""
  layer = Linear((3, 2), (4, 5), bias)
  x, up = (
    jax.random.normal(jax.random.key(i), (2, 7, *shape))
    for i, shape in enumerate([(3, 2), (4, 5)])
  )
  variables = layer.init(jax.random.key(2), x)
  variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)

  def plain(variables, x):
    params = variables["params"]
    y = jnp.tensordot(x, params["kernel"], 2, precision="highest")
    return y + params["bias"][None, None] if bias else y

  ours, pullback = jax.vjp(layer.apply, variables, x)
  expected, plain_pullback = jax.vjp(plain, variables, x)
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, pullback(up), plain_pullback(up))


def test_the_backward_pass_keeps_what_takes_a_product():
  """Of each layer, beside its weights: h before and between its halves, q, k and v,
  what attention makes of them, and the MLP before its nonlinearity."""

  def floats(layers):
    obj = tiny.objective(model__layers=layers)
    batch, params = tiny.batch(), tiny.params(obj)
    keys = training_keys(stream_key(0, 0), 0, batch.row)
    total = lambda params: tiny.drawn_nats(obj, params, batch, keys)[0]
    kept = jax.eval_shape(lambda p: jax.vjp(total, p)[1], params)
    kept = [x for x in jax.tree.leaves(kept) if x.dtype == jnp.float32]
    weights = [x[0].size for x in jax.tree.leaves(params["blocks"])]
    return sum(x.size for x in kept) - layers * sum(weights), obj.config

  (three, config), (two, _) = floats(3), floats(2)
  c, slots = config.model, 3 * 2 * config.data.length
  expected = 2 * c.width + 3 * c.width + c.width + c.heads + c.ffn
  assert three - two == slots * expected


def test_dropout_keeps_the_mean():
  x = jnp.full((4000, 2, 8), 3.0)
  dropped = dropout(x, jax.random.split(jax.random.key(0), 4000), 0.25)
  assert set(np.unique(dropped)) == {0.0, 4.0}
  assert dropped.mean() == pytest.approx(3.0, abs=5 * 1.74 / 64000**0.5)


def test_remat_and_bfloat16_compute():
  obj, remat = tiny.objective(), tiny.objective(model__remat="layer")
  half = tiny.objective(model__dtype="bfloat16")
  params, batch = tiny.params(obj, scale=0.1), tiny.batch()
  keys = training_keys(stream_key(0, 0), 0, batch.row)
  total = lambda o: lambda p: tiny.drawn_nats(o, p, batch, keys)[0]
  ours, theirs = jax.grad(total(obj))(params), jax.grad(total(remat))(params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), ours, theirs)
  exact, rough = (
    tiny.training_nats(obj, params, batch, keys),
    tiny.training_nats(half, params, batch, keys),
  )
  assert rough.dtype == jnp.float32
  assert 0 < jnp.abs(exact - rough).max() < 0.2
  rough = jax.grad(total(half))(params)
  for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(rough), strict=True):
    assert y.dtype == jnp.float32
    assert jnp.linalg.norm(x - y) < 0.1 * jnp.linalg.norm(x)
