"""Attention in pieces against a dense softmax under the predicate, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.diffusion.index import two_streams
from set_diffusion_jax.diffusion.order import Order
from set_diffusion_jax.model import blocked
from set_diffusion_jax.model.attention import attention, choose_kernel
from set_diffusion_jax.model.cached import Cache, cached_attention
from tests.dense import KINDS, LENGTH, assert_dense, dense, random_index

HEADS, SIZE = 2, 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streams", ["clean", "noisy", "both"])
@pytest.mark.parametrize("piece, bands", [(128, 8), (8, 8), (5, 8), (5, 2), (4, 1)])
def test_pieces_equal_dense_attention(kind, streams, piece, bands, monkeypatch):
  monkeypatch.setattr(blocked, "PIECE", piece)
  monkeypatch.setattr(blocked, "BANDS", bands)
  index = random_index(kind, streams)
  # Of blocks, one head of keys and values for two of queries.
  assert_dense(
    blocked.Blocked.of(index), index, HEADS, 1 if kind == "blocks" else HEADS, SIZE
  )


@pytest.mark.parametrize("kind", ["singletons", "blocks", "one", "general"])
@pytest.mark.parametrize("fed", [0, 1, 4])
def test_a_cache_in_any_order_equals_no_cache(kind, fed):
  """Clean slots shuffled in a cache, the last ones fed with the noisy stream."""
  index = random_index(kind, "both")
  rng = np.random.default_rng(2)
  q, k, v = jnp.asarray(rng.normal(size=(3, 2, HEADS, 2 * LENGTH, SIZE)), jnp.float32)
  k, v = k[:, :1], v[:, :1]  # of two heads of queries
  held = LENGTH - fed
  expected = dense(q * SIZE**-0.5, k, v, index)[:, :, held:]
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
    q[:, :, rest], k[:, :, rest], v[:, :, rest], query, cache, cached
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
    kernel = choose_kernel(index, 8, x.dtype, None)
    loss = lambda q, k, v: attention(q, k, v, kernel).sum()
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  small, large = temporaries(2048), temporaries(8192)
  assert large < 4.2 * small, (small, large)
