"""A number for each array of a tree that changes when any of its elements does.

The sum modulo 2^32 of the elements' bits times odd weights by place. It is exact, so it
depends neither on the mesh, nor on the number of processes, nor on the pieces in which
an array is read.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _factor(axis: int) -> int:
  """Of an index of this axis in the weight 1 + sum_axis factor(axis) index(axis)."""
  return 2 * 0x9E3779B1 >> axis & 0xFFFFFFFE


@jax.jit
def checksums(tree) -> dict[str, jax.Array]:
  """The number of each array of a tree, by its path as "params/head/kernel"."""

  def one(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.floating):  # converted weights may be narrower
      x = x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    weight = jnp.ones(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
      place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
      weight += place * jnp.uint32(_factor(axis))
    return (bits * weight).sum(dtype=jnp.uint32)

  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): one(leaf) for path, leaf in leaves}


def of_piece(values: np.ndarray, index: tuple[slice, ...]) -> int:
  """What a piece of an array adds to the number of the array in float32.

  Those of all pieces add up to it modulo 2^32.

  Args:
    values: of the piece, in any dtype of weights.
    index: where the piece begins along the first axes; it begins at 0 along the others.
  """
  bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
  bits = bits.reshape(values.shape)  # of a scalar too
  total = int(bits.sum(dtype=np.uint32))
  for axis, size in enumerate(bits.shape):
    others = tuple(other for other in range(bits.ndim) if other != axis)
    first = (index[axis].start or 0) if axis < len(index) else 0
    place = np.arange(first, first + size).astype(np.uint32)
    sums = bits.sum(axis=others, dtype=np.uint32)
    total += _factor(axis) * int((place * sums).sum(dtype=np.uint32))
  return total % 2**32
