"""Random keys by meaning: every draw belongs to a row, never to a device or a batch."""

import jax
import jax.numpy as jnp

# The first thing folded into a seed's key: training, evaluation and decoding with the
# same seed stay independent.
TRAIN, EVALUATE, DECODE, INIT = range(4)

# The coordinate of what all draws of a row share; draws themselves count from 0.
SHARED_DRAW = 2**31 - 1


def stream_key(seed: int, stream: int) -> jax.Array:
  """The root key of one of the streams above."""
  return jax.random.fold_in(jax.random.key(seed), stream)


def row_keys(root: jax.Array, coordinate: jax.Array | int, rows: jax.Array):
  """One key a row.

  Args:
    root: a key of `stream_key`.
    coordinate: what all rows share: the step in training, the draw in evaluation.
    rows: int32 [B], global row (training, decoding) or data set index (evaluation).

  Returns:
    Keys [B].
  """
  shared = jax.random.fold_in(root, coordinate)
  return jax.vmap(jax.random.fold_in, (None, 0))(shared, rows.astype(jnp.uint32))


def split_rows(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two independent keys for each of the keys [B]."""
  pairs = jax.vmap(jax.random.split)(keys)
  return pairs[:, 0], pairs[:, 1]
