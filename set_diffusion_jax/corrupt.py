"""From clean text to what the model reads and what the loss asks of it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from set_diffusion_jax.index import TokenIndex, clean_stream, two_streams
from set_diffusion_jax.order import Order


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
    weight: float32 [B, R], the weight of its negative log-likelihood; 0: not counted.
  """

  tokens: Int[Array, "B T"]
  index: TokenIndex
  target: Int[Array, "B R"]
  weight: Float[Array, "B R"]


def _by_slot(x: Array, order: Order) -> Array:
  return jnp.take_along_axis(x, order.position, axis=-1)


def one_stream(batch: Batch, order: Order, published: bool = False) -> Streams:
  """Autoregression: the slot of x_r sees the tokens up to x_r and predicts x_(r+1).

  The last slot has nothing to predict; the first token is predicted by nobody.

  Args:
    batch: B rows of text.
    order: from left to right.
    published: count a prediction where its *input* is a counted token, as setdlms does,
      instead of where its target is.
  """
  counted = batch.valid & ~batch.context
  if not published:
    counted = jnp.roll(counted, -1, axis=-1)
  counted = counted.at[:, -1].set(False)
  return Streams(
    batch.tokens,
    clean_stream(order, batch.valid, reach=1),
    jnp.roll(batch.tokens, -1, axis=-1),
    counted.astype(jnp.float32),
  )


def masked_sets(
  batch: Batch, order: Order, mask_id: int, bos: str = "context"
) -> Streams:
  """Two streams, every target masked: log p(x_set | all earlier sets) in one pass.

  Args:
    batch: B rows of text.
    order: singletons in any order.
    mask_id: the id of [MASK].
    bos: what happens at text position 0. "context": nothing special. As setdlms does:
      "counted", it is masked and counted (its training); "masked", masked and not
      counted (its evaluation).
  """
  first = jnp.arange(batch.tokens.shape[-1])[None, :] == 0
  masked = batch.valid & ~batch.context
  counted = masked
  if bos != "context":
    masked = masked | first
    counted = masked if bos == "counted" else counted & ~first
  noisy = jnp.where(masked, mask_id, batch.tokens)
  target = _by_slot(batch.tokens, order)
  return Streams(
    jnp.concatenate([target, _by_slot(noisy, order)], axis=-1),
    two_streams(order, _by_slot(batch.valid, order), reach=1),
    target,
    _by_slot(counted, order).astype(jnp.float32),
  )
