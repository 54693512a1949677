"""Generation orders: which text position is at which memory slot, and in which set.

An order is two int32 arrays [B, L]: `position[b, r]` is the text position at memory
slot r, and `rank[b, r]` the index of the set that it belongs to. Slots are laid out in
generation order, so rank never decreases. Context comes first and padding last.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from set_diffusion_jax.config import MethodConfig
from set_diffusion_jax.schedules import PositionOffset

# The groups of an order: all of one come before all of the next.
CONTEXT, TARGET, LAST_TARGET, PADDING = range(4)


class Order(NamedTuple):
  """Memory slot -> text position, and memory slot -> index of its set."""

  position: Int[Array, "B L"]
  rank: Int[Array, "B L"]


def generation_order(
  reveal_time: Float[Array, "B L"], group: Int[Array, "B L"]
) -> Int[Array, "B L"]:
  """Positions by group, then by reveal time, then from left to right.

  Args:
    reveal_time: generation time of each text position, no NaN.
    group: which part of the order each text position belongs to, lowest first.

  Returns:
    position: int32, a permutation of 0..L-1 in each row.
  """
  return jnp.lexsort((reveal_time, group), axis=-1).astype(jnp.int32)


def groups(
  valid: Bool[Array, "B L"],
  context: Bool[Array, "B L"],
  last: Bool[Array, "B L"] | None = None,
) -> Int[Array, "B L"]:
  """The group of each text position: context, target, target to come last, padding."""
  target = jnp.full(valid.shape, TARGET)
  if last is not None:
    target = jnp.where(last, LAST_TARGET, target)
  return jnp.where(valid, jnp.where(context, CONTEXT, target), PADDING)


def singletons(position: Int[Array, "B L"]) -> Order:
  """The order that generates one position at a time, as they are laid out."""
  rank = jnp.broadcast_to(
    jnp.arange(position.shape[-1], dtype=jnp.int32), position.shape
  )
  return Order(position, rank)


def left_to_right(batch: int, length: int) -> Order:
  """Autoregressive: one position at a time, in the order of the text."""
  row = jnp.arange(length, dtype=jnp.int32)
  return singletons(jnp.broadcast_to(row, (batch, length)))


def sliding_window(
  schedule: PositionOffset, keys: Key[Array, " B"], group: Int[Array, "B L"]
) -> Order:
  """One position at a time in the order of reveal times (METHOD section 2).

  Context and padding, the first and the last group, keep the order of the text.

  Args:
    schedule: its length is at least L; the first L offsets are used.
    keys: one key a row.
    group: of `groups`.
  """
  draws = jax.vmap(lambda key: jax.random.exponential(key, (schedule.length,)))(keys)
  times = schedule.reveal_time(draws)[:, : group.shape[-1]]
  fixed = (group == CONTEXT) | (group == PADDING)
  return singletons(generation_order(jnp.where(fixed, 0.0, times), group))


def draw_order(
  method: MethodConfig,
  length: int,
  keys: Key[Array, " B"],
  group: Int[Array, "B L"],
) -> Order:
  """Draws one order a row from the method's policy (independent of text and weights).

  Args:
    method: its name and sizes.
    length: the training length, on which the position-offset schedule depends.
    keys: one key a row.
    group: of `groups`, [B, L].
  """
  if method.name == "ar":
    return left_to_right(*group.shape)
  return sliding_window(position_offset(method, length), keys, group)


def position_offset(method: MethodConfig, length: int) -> PositionOffset:
  """The position-offset schedule of a `set` method at a training length."""
  return PositionOffset.from_sizes(
    length, method.max_set_size, method.prediction_budget
  )
