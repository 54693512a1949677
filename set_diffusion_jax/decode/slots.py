"""A few slots of a text: P positions of each row, S where a slot is unused.

Legend: B rows, S positions of the text, P slots.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEVER = 2**30  # later than every rank and turn


def line(mask: Bool[Array, "B S"], by: Int[Array, "B S"] | None) -> Int[Array, "B S"]:
  """The place of each position of a mask among its positions in ascending `by`.

  Args:
    mask: which positions stand in line.
    by: for these, distinct numbers below S; None: the order of the text.
  """
  if by is None:
    return jnp.cumsum(mask, axis=-1) - 1
  in_order = marked(by, mask, mask.shape[-1])
  return at_slots(jnp.cumsum(in_order, axis=-1) - 1, by)


def first_slots(
  mask: Bool[Array, "B S"], by: Int[Array, "B S"] | None, count: int
) -> Int[Array, "B P"]:
  """The `count` first positions of a mask in the order of `line`."""
  rows, length = mask.shape
  slots = jnp.full((rows, count), length, jnp.int32)
  place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), mask.shape)
  return write_slots(slots, jnp.where(mask, line(mask, by), count), place)


def places(score: Float[Array, "B W"]) -> Int[Array, "B W"]:
  """The place of each score among those of its row, the highest first.

  Of equal ones the first comes first. W^2 comparisons are faster than sorting here.
  """
  here, there = score[:, :, None], score[:, None, :]
  slot = jnp.arange(score.shape[-1])
  earlier = (slot[None, :] < slot[:, None])[None]
  return ((there > here) | ((there == here) & earlier)).sum(-1)


def at_slots(x: Array, place: Int[Array, "B P"]) -> Array:
  """Values of [B, S] at slots; those of the last position where a slot is unused."""
  return jnp.take_along_axis(x, jnp.minimum(place, x.shape[-1] - 1), axis=-1)


def write_slots(x: Array, place: Int[Array, "B P"], value: Array) -> Array:
  """[B, S] with the values [B, P] written to the slots that are used."""
  write = jax.vmap(lambda x, at, value: x.at[at].set(value, mode="drop"))
  return write(x, place, value.astype(x.dtype))


def marked(
  place: Int[Array, "B P"], on: Bool[Array, "B P"], length: int
) -> Bool[Array, "B S"]:
  """Which positions are in a slot that is on."""
  none = jnp.zeros((place.shape[0], length), bool)
  return write_slots(none, jnp.where(on, place, length), jnp.ones(place.shape, bool))
