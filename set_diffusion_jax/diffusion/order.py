"""Generation orders: which text position is at which memory slot, and in which set.

An order is two int32 arrays [B, L]: `position[b, r]` is the text position at memory
slot r, and `rank[b, r]` the index of the set that it belongs to. Slots are laid out in
generation order, so rank never decreases. Context comes first and padding last.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from set_diffusion_jax.config import MethodConfig
from set_diffusion_jax.diffusion.schedules import PositionOffset

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


def given_order(position: Int[Array, "B L"], group: Int[Array, "B L"]) -> Order:
  """One position at a time in an order of the user's, within each group.

  Args:
    position: the text position generated at each turn, a permutation in each row.
    group: of `groups`: context still comes first and padding last.
  """
  turn = jnp.argsort(position, axis=-1).astype(jnp.float32)
  return singletons(generation_order(turn, group))


def masked_last(
  order: Order, masked: Bool[Array, "B L"], valid: Bool[Array, "B L"]
) -> Order:
  """The unmasked positions of an order one by one, then the masked ones as one set.

  Args:
    order: of singletons.
    masked: by text position.
    valid: by text position; padding still comes last.
  """
  late = jnp.where(valid, masked.astype(jnp.int32), 2)
  late = jnp.take_along_axis(late, order.position, axis=-1)
  slot = jnp.argsort(late, axis=-1, stable=True)
  first = (valid & ~masked).sum(-1, keepdims=True)
  position = jnp.take_along_axis(order.position, slot, axis=-1)
  return Order(position, jnp.minimum(order.rank, first).astype(jnp.int32))


def left_to_right(batch: int, length: int) -> Order:
  """Autoregressive: one position at a time, in the order of the text."""
  row = jnp.arange(length, dtype=jnp.int32)
  return singletons(jnp.broadcast_to(row, (batch, length)))


def one_set(batch: int, length: int) -> Order:
  """Masked diffusion: all positions in one set."""
  order = left_to_right(batch, length)
  return Order(order.position, jnp.zeros_like(order.rank))


def blocks(batch: int, length: int, block_size: int) -> Order:
  """Block diffusion: runs of `block_size` positions, from left to right."""
  order = left_to_right(batch, length)
  return Order(order.position, order.position // block_size)


def random_turns(keys: Key[Array, " B"], length: int) -> Int[Array, "B L"]:
  """A uniformly random turn for each position.

  The order of some positions does not depend on how many others there are.
  """
  draws = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
  return jnp.argsort(jnp.argsort(draws, axis=-1), axis=-1).astype(jnp.int32)


def _by_reveal_time(
  schedule: PositionOffset, keys: Key[Array, " B"], group: Int[Array, "B L"]
) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
  """The order of reveal times, and the reveal time of each memory slot.

  Context and padding keep the order of the text.
  """
  draws = jax.vmap(lambda key: jax.random.exponential(key, (schedule.length,)))(keys)
  times = schedule.reveal_time(draws)[:, : group.shape[-1]]
  fixed = (group == CONTEXT) | (group == PADDING)
  position = generation_order(jnp.where(fixed, 0.0, times), group)
  return position, jnp.take_along_axis(times, position, axis=-1)


def sliding_window(
  schedule: PositionOffset, keys: Key[Array, " B"], group: Int[Array, "B L"]
) -> Order:
  """One position at a time in the order of reveal times (METHOD section 2).

  Args:
    schedule: its length is at least L; the first L offsets are used.
    keys: one key a row.
    group: of `groups`.
  """
  return singletons(_by_reveal_time(schedule, keys, group)[0])


def grid_sets(
  schedule: PositionOffset, grid: int, keys: Key[Array, " B"], group: Int[Array, "B L"]
) -> Order:
  """Positions whose reveal times round to the same of grid + 1 values form a set.

  Context and padding stay singletons, and no set crosses the border of a group.

  Args:
    schedule: its length is at least L; the first L offsets are used.
    grid: intervals of [0, 1].
    keys: one key a row.
    group: of `groups`.
  """
  position, times = _by_reveal_time(schedule, keys, group)
  return _sets_of_equal(jnp.round(times * grid), position, group)


def step_sets(
  schedule: PositionOffset, steps: int, keys: Key[Array, " B"], group: Int[Array, "B L"]
) -> Order:
  """Positions that are revealed in the same of `steps` equal intervals form a set.

  That is posterior sampling on a grid of noise levels: from t to s < t a position that
  is still masked is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t).

  Args:
    schedule: its length is at least L; the first L offsets are used.
    steps: intervals of [0, 1].
    keys: one key a row.
    group: of `groups`.
  """
  position, times = _by_reveal_time(schedule, keys, group)
  return _sets_of_equal(jnp.floor(times * steps), position, group)


def _sets_of_equal(value, position, group) -> Order:
  """Runs of equal values, by memory slot, as sets; context and padding one by one."""
  part = jnp.take_along_axis(group, position, axis=-1)
  fixed = (part == CONTEXT) | (part == PADDING)
  differs = lambda x: x != jnp.roll(x, 1, axis=-1)
  starts = fixed | differs(part) | differs(value)
  rank = jnp.cumsum(starts.at[:, 0].set(False), axis=-1).astype(jnp.int32)
  return Order(position, rank)


Sampler = Callable[[MethodConfig, int, Key[Array, " B"], Int[Array, "B L"]], Order]

# Name -> orders [B, L] from the settings of a method, the length that its schedule is
# for, a key a row, and the `groups` of the positions, whose borders orders respect.
SAMPLERS: dict[str, Sampler] = {
  "left_to_right": lambda method, length, keys, group: left_to_right(*group.shape),
  "one_set": lambda method, length, keys, group: one_set(*group.shape),
  "blocks": lambda method, length, keys, group: blocks(*group.shape, method.block_size),
  "reveal_times": lambda method, length, keys, group: sliding_window(
    position_offset(method, length), keys, group
  ),
  "grid": lambda method, length, keys, group: grid_sets(
    position_offset(method, length), method.grid, keys, group
  ),
}


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
  return SAMPLERS[method.record.order](method, length, keys, group)


def recorded_schedule(
  method: MethodConfig, length: int, mask: str, t_min: float, t_max: float
) -> dict:
  """The schedules of a method as a checkpoint keeps them, plain JSON values.

  Args:
    method: its name and sizes.
    length: the training length.
    mask: name of the mask schedule.
    t_min: least noise level in training.
    t_max: greatest noise level in training.
  """
  found = {}
  if method.has_schedule:
    offset = position_offset(method, length)
    found["position_offset"] = dataclasses.asdict(offset)
  if method.has_levels:
    found["mask"] = {"name": mask, "t_min": t_min, "t_max": t_max}
  return found


def position_offset(method: MethodConfig, length: int) -> PositionOffset:
  """The schedule that orders come from; any_order is its widest window, w = 1."""
  if method.record.schedule == "uniform":
    return PositionOffset(length, 1.0, 1.0)
  return PositionOffset.from_sizes(
    length, method.max_set_size, method.prediction_budget
  )
