"""Levels and counts: how much of each set is masked, stratified within a row.

No row depends on another one. What a row's draws have to do with one another is said by
the functions, because standard errors depend on it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from set_diffusion_jax.diffusion.corruption import Batch, Noise, counted_noise
from set_diffusion_jax.diffusion.draws import count_keys


def draw_counts(
  batch: Batch,
  rank: Int[Array, "B L"],
  keys: Key[Array, " B"],
  sets: int,
  draw: int | Array = 0,
  draws: int = 1,
) -> Noise:
  """Masks a drawn number of targets in each set; see `counted_noise`.

  The share of a set, from which its count follows, lies in the stratum [draw / draws,
  (draw + 1) / draws) in this draw. So over all its draws the counts of a set are
  spread evenly over 1 .. n. Each stratum is cut into as many equal parts as there are
  sets, and each set has one of them, by a random permutation.

  The mean over all draws is an unbiased estimate of the NELBO; a single one of several
  draws is not. Draws are independent of one another, but not distributed alike.

  Args:
    batch: B rows of text.
    rank: index of the set of each text position, below `sets`.
    keys: one a row, of this draw.
    sets: how many there are at most.
    draw: which of the draws this is.
    draws: how many there are.
  """
  of = count_keys(keys)

  def shares(stratum, share):
    part = jax.random.permutation(stratum, sets)
    return (draw + (part + jax.random.uniform(share, (sets,))) / sets) / draws

  by_set = jax.vmap(shares)(of.stratum, of.share)
  share = jnp.take_along_axis(by_set, rank, axis=-1)
  length = batch.tokens.shape[-1]
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(of.subset)
  return counted_noise(batch, rank, share, uniform)


def draw_levels(
  rank: Int[Array, "B L"],
  keys: Key[Array, " B"],
  shared: Key[Array, " B"],
  sets: int,
  draw: int | Array = 0,
  draws: int = 1,
) -> Float[Array, "B L"]:
  """A level in [0, 1) of each set, by text position.

  The levels of a row's sets in all its draws fall into as many equal strata, one into
  each; which one is a random permutation. So draws are distributed alike, but not
  independent.

  Args:
    rank: index of the set of each text position; all from `sets` on are one.
    keys: one a row, of this draw.
    shared: one a row, the same for all draws of the row.
    sets: how many there are at most.
    draw: which of the draws this is.
    draws: how many there are.
  """

  def levels(key, shared):
    strata = jax.random.permutation(shared, sets * draws).reshape(draws, sets)
    return (strata[draw] + jax.random.uniform(key, (sets,))) / (sets * draws)

  by_set = jax.vmap(levels)(keys, shared)
  return jnp.take_along_axis(by_set, jnp.minimum(rank, sets - 1), axis=-1)
