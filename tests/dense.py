"""The oracle of attention, a softmax over every pair; and masks of every kind."""

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.diffusion.index import attends, clean_stream, two_streams
from set_diffusion_jax.diffusion.order import Order

LENGTH = 24
KINDS = ("singletons", "blocks", "one", "general", "causal")


def dense(q, k, v, index):
  """Attention of scaled queries; those without keys get zeros."""
  k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
  scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
  seen = attends(index, index)[:, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
  weights = jnp.where(seen.any(-1, keepdims=True), weights, 0.0)
  return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


def assert_dense(attend, index, heads, key_heads, size, atol=2e-6, gradient_atol=2e-5):
  """`attend(q, k, v)` of scaled queries gives what `dense` does, with gradients.

  Nobody reads a padding row, so that it may be anything.
  """
  rng = np.random.default_rng(1)
  rows = index.rank.shape[0]
  make = lambda heads: jnp.asarray(
    rng.normal(size=(rows, heads, index.slots, size)), jnp.float32
  )
  q, probe, k, v = make(heads), make(heads), make(key_heads), make(key_heads)
  q *= size**-0.5
  real = jnp.broadcast_to(index.valid[:, None, :, None], probe.shape)

  def total(attend):
    def both(q, k, v):
      out = jnp.where(real, attend(q, k, v), 0)
      return (out * probe).sum(), out

    return jax.jit(jax.value_and_grad(both, (0, 1, 2), has_aux=True))

  (_, ours), our_gradients = total(attend)(q, k, v)
  (_, theirs), gradients = total(lambda q, k, v: dense(q, k, v, index))(q, k, v)
  np.testing.assert_allclose(ours, theirs, atol=atol)
  for one, other in zip(our_gradients, gradients, strict=True):
    np.testing.assert_allclose(one, other, atol=gradient_atol)


def _random_sets(rng, kind):
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
  """Two rows of LENGTH slots a stream, the second with padding."""
  rng = np.random.default_rng(seed)
  rank, reach = _random_sets(rng, kind)
  valid = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 5]])
  order = Order(jnp.asarray(rank * 0, jnp.int32), jnp.asarray(rank, jnp.int32))
  both = two_streams(order, jnp.asarray(valid), reach, causal=kind == "causal")
  if streams == "both":
    return both
  if streams == "clean":
    return clean_stream(order, jnp.asarray(valid), reach)
  half = jax.tree.map(lambda x: x[:, LENGTH:], both)
  return half.replace(clean=0)
