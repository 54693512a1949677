"""Attention over a cache of keys and values.

Legend: B batch, T slots fed, C of them clean, K slots of the cache, H heads of queries,
G of keys, Dh head size.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from set_diffusion_jax.diffusion.index import TokenIndex, attends
from set_diffusion_jax.model.mix import EXCLUDED, mix, product

Layers = list[tuple[Float[Array, "B G Dh K"], Float[Array, "B G K Dh"]]]


@flax.struct.dataclass
class Cache:
  """Keys and values of clean tokens, in any memory order.

  Attributes:
    layers: of each layer the keys, rotated, [B, G, Dh, K], and values [B, G, K, Dh].
    index: of the K slots, all clean, once those that are fed clean are among them.
    place: which of the K slots each of these gets; K for one that gets none.
  """

  layers: Layers
  index: TokenIndex
  place: Int[Array, "B C"]


def cached_attention(
  q: Float[Array, "B H T Dh"],
  k: Float[Array, "B G T Dh"],
  v: Float[Array, "B G T Dh"],
  index: TokenIndex,
  cache: Cache,
  layer: tuple[Float[Array, "B G Dh K"], Float[Array, "B G K Dh"]],
) -> tuple[Float[Array, "B H T Dh"], tuple[Array, Array]]:
  """Attention over a cache too, which the clean slots enter before anything is read.

  Few queries and keys in any order: the predicate itself. The queries of the H / G
  heads that share keys are scored together.

  Args:
    q: queries of the T slots, rotated.
    k: their keys, rotated.
    v: their values.
    index: of the T slots.
    cache: its index and places.
    layer: its keys and values.

  Returns:
    The mixture, and the cache with what entered it.
  """
  clean, together = index.clean, q.shape[1] // k.shape[1]
  queries = (q * q.shape[-1] ** -0.5).reshape(*k.shape[:2], -1, q.shape[-1])
  keys, values = layer
  if clean:
    keys = _enter_keys(keys, k[:, :, :clean], cache.place)
    values = _enter_values(values, v[:, :, :clean], cache.place)

  def scores(keys, key_index):
    seen = jnp.tile(attends(index, key_index), (1, together, 1))[:, None]
    found = product("bgqd,bgdk->bgqk", queries, keys.astype(q.dtype))
    return jnp.where(seen, found, EXCLUDED)

  parts = [(scores(keys, cache.index), values.astype(q.dtype))]
  if clean < index.slots:
    own = jnp.swapaxes(k[:, :, clean:], 2, 3)
    parts.append((scores(own, index.from_slot(clean)), v[:, :, clean:]))
  mixed = mix(*zip(*parts, strict=True), q.dtype)[0]
  return mixed.reshape(q.shape), (keys, values)


def _enter_keys(cached, new: Float[Array, "B G C Dh"], place: Int[Array, "B C"]):
  """The cached keys [B, G, Dh, K] with new ones in their places."""
  row, place, new = _updates(cached, new, place)
  return cached.at[row, :, :, place].set(new, mode="drop", unique_indices=True)


def _enter_values(cached, new: Float[Array, "B G C Dh"], place: Int[Array, "B C"]):
  """The cached values [B, G, K, Dh] with new ones in their places."""
  row, place, new = _updates(cached, new, place)
  return cached.at[row, :, place].set(new, mode="drop", unique_indices=True)


def _updates(cached, new, place):
  """Rows, places and values of one scatter into the cache, which copies nothing.

  Mapped over rows, the compiler would transpose the whole cache there and back; read
  before it is written, it would be copied; and so it is where a single slot is written,
  which is why there is always a second one, that is dropped.
  """
  nowhere = jnp.full_like(place[:, :1], jnp.iinfo(place.dtype).max)
  place = jnp.concatenate([place, nowhere], axis=-1)
  new = jnp.moveaxis(new, 2, 1).astype(cached.dtype)
  new = jnp.concatenate([new, jnp.zeros_like(new[:, :1])], axis=1)
  return jnp.arange(place.shape[0])[:, None], place, new
