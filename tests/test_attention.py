"""Attention in pieces against a dense softmax under the predicate, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.index import attends, clean_stream, two_streams
from set_diffusion_jax.model import attention as module
from set_diffusion_jax.model.attention import Cache, Shared, attention, cached_attention
from set_diffusion_jax.order import Order

LENGTH, HEADS, SIZE = 24, 2, 8


def shared(index, cache=None):
  return Shared(index, turns=None, cache=cache, condition=None)


def dense(q, k, v, index):
  """Every score of every pair, masked by the predicate; rows without keys give zero."""
  k, v = (jnp.repeat(x, HEADS // x.shape[1], axis=1) for x in (k, v))
  scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
  seen = attends(index, index)[:, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
  weights = jnp.where(seen.any(-1, keepdims=True), weights, 0.0)
  return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


def random_sets(rng, kind):
  """Ranks [2, LENGTH] in generation order, and the reach that they keep to."""
  slot = np.tile(np.arange(LENGTH), (2, 1))
  if kind == "singletons":
    return slot, 1
  if kind == "blocks":
    return slot // 4, 4
  if kind == "one":
    return np.zeros_like(slot), LENGTH
  return np.sort(rng.integers(0, 6, slot.shape), -1), LENGTH


def random_index(kind, streams, seed=0):
  rng = np.random.default_rng(seed)
  rank, reach = random_sets(rng, kind)
  valid = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 5]])
  order = Order(jnp.asarray(rank * 0, jnp.int32), jnp.asarray(rank, jnp.int32))
  both = two_streams(order, jnp.asarray(valid), reach, causal=kind == "causal")
  if streams == "both":
    return both
  if streams == "clean":
    return clean_stream(order, jnp.asarray(valid), reach)
  half = jax.tree.map(lambda x: x[:, LENGTH:], both)
  return half.replace(clean=0)


@pytest.mark.parametrize("kind", ["singletons", "blocks", "one", "general", "causal"])
@pytest.mark.parametrize("streams", ["clean", "noisy", "both"])
@pytest.mark.parametrize("piece, bands", [(128, 8), (8, 8), (5, 8), (5, 2), (4, 1)])
def test_pieces_equal_dense_attention(kind, streams, piece, bands, monkeypatch):
  monkeypatch.setattr(module, "PIECE", piece)
  monkeypatch.setattr(module, "BANDS", bands)
  index = random_index(kind, streams)
  rng = np.random.default_rng(1)
  shape = (4, 2, HEADS, index.slots, SIZE)
  q, k, v, probe = jnp.asarray(rng.normal(size=shape), jnp.float32)
  if kind == "blocks":  # one head of keys and values for two of queries
    k, v = k[:, :1], v[:, :1]
  real = jnp.broadcast_to(index.valid[:, None, :, None], probe.shape)
  probe = jnp.where(real, probe, 0)  # nobody reads a padding row

  def total(attend):
    return lambda q, k, v: (attend(q, k, v) * probe).sum()

  ours = lambda q, k, v: attention(q, k, v, shared(index))
  oracle = lambda q, k, v: dense(q, k, v, index)
  np.testing.assert_allclose(
    jnp.where(real, ours(q, k, v), 0), jnp.where(real, oracle(q, k, v), 0), atol=2e-6
  )
  gradients = jax.jit(jax.grad(total(ours), (0, 1, 2)))(q, k, v)
  expected = jax.jit(jax.grad(total(oracle), (0, 1, 2)))(q, k, v)
  for ours_, theirs in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(ours_, theirs, atol=2e-5)


@pytest.mark.parametrize("kind", ["singletons", "blocks", "one", "general"])
@pytest.mark.parametrize("fed", [0, 1, 4])
def test_a_cache_in_any_order_equals_no_cache(kind, fed):
  """Clean slots shuffled in a cache, the last ones fed with the noisy stream."""
  index = random_index(kind, "both")
  rng = np.random.default_rng(2)
  q, k, v = jnp.asarray(rng.normal(size=(3, 2, HEADS, 2 * LENGTH, SIZE)), jnp.float32)
  k, v = k[:, :1], v[:, :1]  # of two heads of queries
  held = LENGTH - fed
  expected = dense(q, k, v, index)[:, :, held:]
  slot = rng.permutation(LENGTH)  # of the cache -> of the clean stream
  place = np.argsort(slot)[held:]
  part = lambda x, at: jax.tree.map(lambda x: x[:, at], x)
  held_index = part(index, slot).replace(clean=LENGTH)
  cache = Cache([], held_index, jnp.asarray(np.tile(place, (2, 1)), jnp.int32))
  stored = jnp.asarray(slot < held)[None, None, :, None]
  old = lambda x: jnp.where(stored, x[:, :, slot], 0)
  cached = jnp.swapaxes(old(k), 2, 3), old(v)
  rest = slice(held, None)
  query = part(index, rest).replace(clean=fed)
  ours, after = cached_attention(
    q[:, :, rest], k[:, :, rest], v[:, :, rest], shared(query, cache), cached
  )
  real = np.broadcast_to(np.asarray(query.valid)[:, None, :, None], ours.shape)
  np.testing.assert_allclose(
    np.where(real, ours, 0), np.where(real, expected, 0), atol=2e-6
  )
  np.testing.assert_array_equal(jnp.swapaxes(after[0], 2, 3), k[:, :, slot])
  np.testing.assert_array_equal(after[1], v[:, :, slot])


def test_memory_is_linear_in_length():
  """Bytes of temporaries of the gradient from 2k to 8k slots, says the compiler."""

  def temporaries(length):
    slot = jnp.arange(length, dtype=jnp.int32)[None]
    index = two_streams(Order(slot, slot), jnp.ones((1, length), bool), reach=1)
    x = jnp.zeros((1, 1, 2 * length, 8))
    loss = lambda q, k, v: attention(q, k, v, shared(index)).sum()
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  small, large = temporaries(2048), temporaries(8192)
  assert large < 4.2 * small, (small, large)
