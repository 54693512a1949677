"""From clean text to what the model reads and what the loss asks of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from set_diffusion_jax.diffusion.index import (
  TokenIndex,
  clean_stream,
  noisy_stream,
  two_streams,
)
from set_diffusion_jax.diffusion.order import Order
from set_diffusion_jax.diffusion.schedules import MaskSchedule, PositionOffset


class Batch(NamedTuple):
  """B sequences of L tokens, by text position.

  Attributes:
    tokens: int32 [B, L], clean.
    valid: bool [B, L], False for padding, which comes last.
    context: bool [B, L], tokens that are given: never masked, never counted.
    row: int32 [B], what a row's random draws are keyed by.
  """

  tokens: Int[Array, "B L"]
  valid: Bool[Array, "B L"]
  context: Bool[Array, "B L"]
  row: Int[Array, " B"]


class Streams(NamedTuple):
  """What one forward pass reads, and the targets of its last R memory slots.

  Attributes:
    tokens: int32 [B, T], in memory order: the clean stream, then the noisy stream.
    index: of the same T slots.
    target: int32 [B, R], the token that each of the last R slots is to predict.
    weight: float32 [B, R], the weight of its negative log-likelihood; 0: not read.
    counted: bool [B, R], the tokens that a likelihood of the text is made of. In a
      partly masked set the clean ones are counted with weight 0: they cost nothing.
  """

  tokens: Int[Array, "B T"]
  index: TokenIndex
  target: Int[Array, "B R"]
  weight: Float[Array, "B R"]
  counted: Bool[Array, "B R"]


def _by_slot(x: Array, order: Order) -> Array:
  return jnp.take_along_axis(x, order.position, axis=-1)


def targets(batch: Batch) -> Bool[Array, "B L"]:
  """What is to be generated: neither context nor padding."""
  return batch.valid & ~batch.context


def one_stream(batch: Batch, order: Order, published: bool = False) -> Streams:
  """Autoregression: the slot of x_r sees the tokens up to x_r and predicts x_(r+1).

  The last slot has nothing to predict; the first token is predicted by nobody.

  Args:
    batch: B rows of text.
    order: from left to right.
    published: count a prediction where its *input* is a counted token, as setdlms does,
      instead of where its target is.
  """
  counted = targets(batch)
  if not published:
    counted = jnp.roll(counted, -1, axis=-1)
  counted = counted.at[:, -1].set(False)
  return Streams(
    batch.tokens,
    clean_stream(order, batch.valid, reach=1),
    jnp.roll(batch.tokens, -1, axis=-1),
    counted.astype(jnp.float32),
    counted,
  )


class Noise(NamedTuple):
  """Which tokens are masked, by text position, and what predicting each one weighs.

  Attributes:
    masked: bool [B, L].
    weight: float32 [B, L], of each one's negative log-likelihood.
    level: float32 [B, L], t of each set; 1 where sets are fully masked in any case, and
      the masked share k / n of a set where it is drawn by counts.
  """

  masked: Bool[Array, "B L"]
  weight: Float[Array, "B L"]
  level: Float[Array, "B L"]


def full_noise(batch: Batch) -> Noise:
  """Every target is masked: sets in one denoising step."""
  masked = targets(batch)
  weight = masked.astype(jnp.float32)
  return Noise(masked, weight, jnp.ones_like(weight))


def level_noise(
  batch: Batch,
  schedule: MaskSchedule,
  level: Float[Array, "B L"],
  uniform: Float[Array, "B L"],
  weighting: str,
) -> Noise:
  """Each target is masked with probability 1 - alpha(t) at its noise level t.

  Args:
    batch: B rows of text.
    schedule: alpha.
    level: t of each text position, equal within a set.
    uniform: draws from U(0, 1).
    weighting: "nelbo", -alpha'(t) / (1 - alpha(t)), or "uniform", 1.
  """
  masked = targets(batch) & (uniform < 1 - schedule.alpha(level))
  weight = schedule.weight(level) if weighting == "nelbo" else jnp.ones_like(level)
  return Noise(masked, jnp.where(masked, weight, 0.0), level)


def counted_noise(
  batch: Batch,
  rank: Int[Array, "B L"],
  share: Float[Array, "B L"],
  uniform: Float[Array, "B L"],
) -> Noise:
  """Of the n targets of a set, k are masked: a uniformly random subset of size k.

  k = 1 + floor(n share) is uniform on 1 .. n where the share is uniform on [0, 1). A
  masked target weighs n / k, so that a subset of size k has probability
  1 / (n C(n, k)) and in all the weight 1 / (k C(n, k)). A noise level t ~ U(0, 1) with
  weight 1 / t gives it the same, the integral over t of t^(k-1) (1 - t)^(n-k): both
  estimate the NELBO. Here the weights of a set's targets always add up to n, while
  those of 1 / t have no bound.

  Args:
    batch: B rows of text.
    rank: index of the set of each text position.
    share: in [0, 1), of each text position, equal within a set.
    uniform: draws from U(0, 1); the lowest k of a set are masked.
  """
  wanted = targets(batch)
  none = jnp.zeros(rank.shape[-1], jnp.int32)
  sizes = jax.vmap(lambda rank, one: none.at[rank].add(one))
  of_position = lambda by_set: jnp.take_along_axis(by_set, rank, axis=-1)
  n = of_position(sizes(rank, wanted.astype(jnp.int32)))
  k = jnp.minimum(1 + jnp.floor(n * share).astype(jnp.int32), n)
  # Positions by set; in a set the targets first, in the order of their draws.
  slot = jnp.lexsort((jnp.where(wanted, uniform, 2.0), rank), axis=-1)
  every = sizes(rank, jnp.ones_like(rank))
  before = of_position(jnp.cumsum(every, axis=-1) - every)
  turn = jnp.argsort(slot, axis=-1) - before
  masked = wanted & (turn < k)
  weight = jnp.where(masked, n / jnp.maximum(k, 1), 0.0)
  return Noise(masked, weight, k / jnp.maximum(n, 1))


def active_noise(
  batch: Batch,
  schedule: PositionOffset,
  level: Float[Array, "B L"],
  weighting: str,
  bos: bool,
) -> Noise:
  """Every target that is not surely clean at a noise level; the active ones weigh.

  The published ablation of training on all positions (Set Diffusion, appendix K.1).

  Args:
    batch: B rows of text.
    schedule: alpha of each position.
    level: t, the same for all positions of a row.
    weighting: of the active targets, as in `level_noise`.
    bos: position 0 is a target as well, as setdlms has it.
  """
  wanted = targets(batch)
  if bos:
    wanted = wanted | (jnp.arange(level.shape[-1])[None, :] == 0)
  alpha, slope = schedule.alpha(level), schedule.alpha_prime(level)
  weight = -slope / (1 - alpha) if weighting == "nelbo" else jnp.ones_like(level)
  masked = wanted & (alpha < 1)
  return Noise(masked, jnp.where(masked & (slope != 0), weight, 0.0), level)


def denoising(
  batch: Batch,
  order: Order,
  noise: Noise,
  mask_id: int,
  reach: int,
  single: bool = False,
  causal: bool = False,
  full: bool = True,
  bos: str = "context",
) -> Streams:
  """Noisy tokens predict themselves given the clean tokens of earlier sets.

  Args:
    batch: B rows of text.
    order: sets in any order.
    noise: what is masked.
    mask_id: the id of [MASK].
    reach: of `TokenIndex`.
    single: there is one set, so no earlier ones: the clean stream is left out.
    causal: of `TokenIndex`.
    full: whether `noise` masks every target in any case.
    bos: what happens at text position 0. "context": nothing special. As setdlms does:
      "counted", it is counted (in training) and, where sets are fully masked, masked;
      "masked", it is masked in the same way but not counted (in evaluation).
  """
  counted = targets(batch)
  masked, weight, _ = noise
  if bos != "context":
    first = jnp.arange(batch.tokens.shape[-1])[None, :] == 0
    masked = masked | first if full else masked
    if bos == "counted":
      weight = jnp.where(first, 1.0, weight) if full else weight
      counted = counted | first
    else:
      weight = jnp.where(first, 0.0, weight)
      counted = counted & ~first
  noisy = jnp.where(masked, mask_id, batch.tokens)
  target = _by_slot(batch.tokens, order)
  valid = _by_slot(batch.valid, order)
  noisy = _by_slot(noisy, order)
  if single:
    tokens, index = noisy, noisy_stream(order, valid, reach)
  else:
    tokens = jnp.concatenate([target, noisy], axis=-1)
    index = two_streams(order, valid, reach, causal)
  return Streams(
    tokens, index, target, _by_slot(weight, order), _by_slot(counted, order)
  )
