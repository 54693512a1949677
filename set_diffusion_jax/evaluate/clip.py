"""The search for the range of noise levels on which the training loss varies least.

BD3-LM (section 5) trains on levels t ~ U[beta, omega] and searches the two again during
training. In block diffusion a set's loss depends on its own level alone, so the sets of
one evaluation, whose levels cover [0, 1], are at once samples of every narrower range:
those with t inside it. The search needs no forward pass of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from set_diffusion_jax.diffusion.corruption import Streams
from set_diffusion_jax.likelihood.loss import weighted

# Ends of the ranges that are compared are multiples of this.
STEP = 0.05
# Fewer samples than this say nothing about a range.
LEAST_SAMPLES = 30


class SetLosses(NamedTuple):
  """Losses of sets; any shape, the same for all three.

  Attributes:
    level: t of the set.
    loss: weighted nats per counted token.
    tokens: counted tokens; 0 where there is no such set.
  """

  level: Float[Array, "*S"]
  loss: Float[Array, "*S"]
  tokens: Float[Array, "*S"]


class Clip(NamedTuple):
  """A range of noise levels, and the variance of a set's loss on it and on [0, 1].

  The standard errors are of the two variances, as if sets were independent.
  """

  t_min: float
  t_max: float
  variance: float
  standard_error: float
  full_variance: float
  full_standard_error: float


def set_losses(
  streams: Streams,
  nats: Float[Array, "B R"],
  level: Float[Array, "B L"],
  weighting: str,
) -> SetLosses:
  """The training loss of each set of a forward pass, [B, R], by rank.

  Args:
    streams: what was read; its weights are the NELBO's.
    nats: of each target.
    level: t by text position.
    weighting: loss.weighting of the training loss.
  """
  slots = streams.target.shape[-1]
  rank = streams.index.rank[:, -slots:]
  weight = streams.weight
  if weighting == "uniform":
    weight = (weight > 0).astype(jnp.float32)
  add = jax.vmap(lambda rank, x: jnp.zeros(slots).at[rank].add(x))
  highest = jax.vmap(lambda rank, x: jnp.zeros(slots).at[rank].max(x))
  by_slot = jnp.take_along_axis(level, streams.index.position[:, -slots:], axis=-1)
  tokens = add(rank, streams.counted.astype(jnp.float32))
  loss = add(rank, weighted(nats, weight)) / jnp.maximum(tokens, 1)
  return SetLosses(highest(rank, by_slot), loss, tokens)


def search_clip(losses: SetLosses, least_width: float) -> Clip | None:
  """The range [beta, omega] of least variance, at least `least_width` wide.

  Returns None where there are too few sets to compare ranges.
  """
  level, loss, tokens = (np.asarray(x, np.float64).ravel() for x in losses)
  level, loss = level[tokens > 0], loss[tokens > 0]
  edges = np.arange(0, round(1 / STEP) + 1)
  found = []
  for low in edges:
    for high in edges[edges >= low + round(least_width / STEP, 6)]:
      start, end = round(low * STEP, 6), round(high * STEP, 6)
      inside = loss[(level >= start) & (level <= end)]
      if len(inside) >= LEAST_SAMPLES:
        found.append((inside.var(ddof=1), start, end))
  if not found:
    return None
  _, low, high = min(found)
  inside = loss[(level >= low) & (level <= high)]
  return Clip(low, high, *_variance(inside), *_variance(loss))


def _variance(x: np.ndarray) -> tuple[float, float]:
  """The variance of samples and its standard error, from their fourth moment."""
  variance = x.var(ddof=1)
  fourth = ((x - x.mean()) ** 4).mean()
  return float(variance), float(np.sqrt(max(fourth - variance**2, 0) / len(x)))
