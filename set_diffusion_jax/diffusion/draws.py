"""Random keys by meaning: every draw belongs to a row, never to a device or a batch."""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from set_diffusion_jax.errors import UserError

# The first thing folded into a seed's key: training, evaluation and decoding with the
# same seed stay independent.
TRAIN, EVALUATE, DECODE, INIT = range(4)

# The coordinate of what all draws of a row share; draws themselves count from 0.
SHARED_DRAW = 2**31 - 1

SEEDS = 2**32  # JAX takes the lowest 32 bits of more, so that two seeds were one
_KEYS = "threefry2x32"  # whatever JAX_DEFAULT_PRNG_IMPL says: a checkpoint has them


def stream_key(seed: int, stream: int) -> jax.Array:
  """The root key of one of the streams above.

  Raises:
    UserError: a seed that has no key of its own.
  """
  whole = isinstance(seed, numbers.Integral)
  if not whole or not 0 <= seed < SEEDS:
    raise UserError(f"seed = {seed}: must be a whole number from 0 to 2**32 - 1")
  # That of jax.random.key(seed), to which JAX_RANDOM_SEED_OFFSET would be added.
  root = jax.random.wrap_key_data(np.array([0, seed], np.uint32), impl=_KEYS)
  return jax.random.fold_in(root, stream)


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


class TrainingKeys(NamedTuple):
  """Every draw of a row in a training step, by name; keys [B].

  Attributes:
    order: of its generation order.
    noise: of noise levels and of what is masked.
    strata: of the strata that the levels of its sets fall into.
    dropout: in the model.
    signs: of train.gradient_variance.
  """

  order: Key[Array, " B"]
  noise: Key[Array, " B"]
  strata: Key[Array, " B"]
  dropout: Key[Array, " B"]
  signs: Key[Array, " B"]


def training_keys(root: jax.Array, step: Int[Array, ""] | int, rows) -> TrainingKeys:
  """The draws of rows in a step: for training, and for whatever shows what it draws.

  Args:
    root: of `stream_key(seed, TRAIN)`.
    step: counts from 0.
    rows: int32 [B], by their place in the global batch.
  """
  keys, signs = split_rows(row_keys(root, step, rows))
  keys, dropout = split_rows(keys)
  order, keys = split_rows(keys)
  noise, strata = split_rows(keys)
  return TrainingKeys(order, noise, strata, dropout, signs)


class LevelKeys(NamedTuple):
  """Every draw of the noise levels of a row in one of its draws, by name; keys [B].

  Attributes:
    level: of each set, inside its stratum.
    masked: of each position, whether it is masked.
  """

  level: Key[Array, " B"]
  masked: Key[Array, " B"]


def level_keys(keys: Key[Array, " B"]) -> LevelKeys:
  """The draws of noise levels of rows, from their keys for what is masked."""
  return LevelKeys(*split_rows(keys))


class CountKeys(NamedTuple):
  """Every draw of the counts of a row in one of its draws, by name; keys [B].

  Attributes:
    stratum: which set's count falls into which part of the draw's range.
    share: of each set, inside its stratum.
    subset: of each position, which ones of a set are masked.
  """

  stratum: Key[Array, " B"]
  share: Key[Array, " B"]
  subset: Key[Array, " B"]


def count_keys(keys: Key[Array, " B"]) -> CountKeys:
  """The draws of counts of rows, from their keys for what is masked."""
  split = lambda key: jax.random.split(key, len(CountKeys._fields))
  return CountKeys(*jax.vmap(split)(keys).T)


class DecodingKeys(NamedTuple):
  """Every draw of a row in a decoding step, by name; keys [B].

  Attributes:
    token: of the candidates' tokens; with the text position folded in.
    reveal: which candidates a step of posterior sampling reveals.
    accept: whether drafts are accepted.
    last: the token that ends a round of speculation.
  """

  token: Key[Array, " B"]
  reveal: Key[Array, " B"]
  accept: Key[Array, " B"]
  last: Key[Array, " B"]


def decoding_keys(keys: Key[Array, " B"], steps: Int[Array, " B"]) -> DecodingKeys:
  """The draws of rows in their next step, after so many of them.

  Args:
    keys: of each row, for nothing but its steps.
    steps: that each row has taken.
  """
  names = len(DecodingKeys._fields)
  split = lambda key, step: jax.random.split(jax.random.fold_in(key, step), names)
  return DecodingKeys(*jax.vmap(split)(keys, steps).T)


def split_rows(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two independent keys for each of the keys [B]."""
  pairs = jax.vmap(jax.random.split)(keys)
  return pairs[:, 0], pairs[:, 1]
