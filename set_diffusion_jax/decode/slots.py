"""A few slots of a text: P positions of each row, S where a slot is unused.

Legend: B rows, S positions of the text, P slots.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

NEVER = 2**30  # later than every rank and turn


def first_slots(
  mask: Bool[Array, "B S"], by: Int[Array, "B S"], count: int
) -> Int[Array, "B P"]:
  """The `count` first positions of a mask in ascending `by`."""
  length = mask.shape[-1]
  lowest, place = jax.lax.top_k(-jnp.where(mask, by, NEVER), min(count, length))
  place = jnp.where(lowest > -NEVER, place, length)
  pad = count - place.shape[-1]
  return jnp.pad(place, ((0, 0), (0, pad)), constant_values=length)


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


def line(mask: Bool[Array, "B S"], by: Int[Array, "B S"] | None) -> Int[Array, "B S"]:
  """The place of each position of a mask among its positions in ascending `by`.

  None stands for the order of the text.
  """
  if by is None:
    return jnp.cumsum(mask, axis=-1) - 1
  return jnp.argsort(jnp.argsort(jnp.where(mask, by, NEVER), axis=-1), axis=-1)
