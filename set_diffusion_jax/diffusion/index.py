"""Who attends to whom, as pure index arrays. Nothing here touches tokens.

One predicate, `attends`, defines every mask of the family (METHOD section 3):

    clean query -> clean key   where rank_key <= rank_query
    noisy query -> clean key   where rank_key <  rank_query
    noisy query -> noisy key   where rank_key == rank_query
    clean query -> noisy key   never
    padding sees nothing and is seen by nothing

Laid out in generation order the same mask is two intervals a query, `key_intervals`;
attention kernels use those and are tested against the predicate.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from set_diffusion_jax.diffusion.order import Order


@flax.struct.dataclass
class TokenIndex:
  """A run of T memory slots: a clean stream, then a noisy stream; either can be empty.

  Attributes:
    position: int32 [B, T], place in the text; rotary embeddings are taken from it.
    rank: int32 [B, T], index of the set that the token belongs to.
    valid: bool [B, T], False for padding.
    clean: how many slots, from the first, are of the clean stream (static).
    reach: a set lies within one aligned run of this many slots of its stream (static):
      1 for singletons, S for blocks, the stream's length where nothing is known.
    aligned: each of these runs is just one set (static), so that who sees whom is known
      from the slots alone.
    causal: noisy tokens see those of their own set only up to themselves, by memory
      slot (static): a published ablation, not part of any method.
  """

  position: Int[Array, "B T"]
  rank: Int[Array, "B T"]
  valid: Bool[Array, "B T"]
  clean: int = flax.struct.field(pytree_node=False)
  reach: int = flax.struct.field(pytree_node=False)
  causal: bool = flax.struct.field(pytree_node=False, default=False)
  aligned: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def slots(self) -> int:
    """T."""
    return self.position.shape[-1]

  def from_slot(self, first: int) -> "TokenIndex":
    """The slots from this one on."""
    later = [x[..., first:] for x in (self.position, self.rank, self.valid)]
    return TokenIndex(*later, max(self.clean - first, 0), self.reach, self.causal)

  @property
  def noisy(self) -> Bool[Array, " T"]:
    """Which slots are of the noisy stream."""
    return jnp.arange(self.slots) >= self.clean


class KeyIntervals(NamedTuple):
  """A mask as two half-open intervals of keys a query, each within its own stream.

  Query q sees clean keys [0, clean_end[q]) and noisy keys [noisy_start[q],
  noisy_end[q]), counted from the first slot of the clean and the noisy stream.
  """

  clean_end: Int[Array, "B T"]
  noisy_start: Int[Array, "B T"]
  noisy_end: Int[Array, "B T"]


def clean_stream(order: Order, valid: Bool[Array, "B L"], reach: int) -> TokenIndex:
  """One stream of clean tokens; `valid` is by memory slot."""
  return TokenIndex(order.position, order.rank, valid, order.rank.shape[-1], reach)


def noisy_stream(order: Order, valid: Bool[Array, "B L"], reach: int) -> TokenIndex:
  """One stream of noisy tokens; `valid` is by memory slot."""
  return TokenIndex(order.position, order.rank, valid, 0, reach)


def two_streams(
  order: Order, valid: Bool[Array, "B L"], reach: int, causal: bool = False
) -> TokenIndex:
  """L clean slots, then L noisy slots in the same order; `valid` is by memory slot."""
  twice = [jnp.concatenate([x, x], axis=-1) for x in (*order, valid)]
  return TokenIndex(*twice, order.rank.shape[-1], reach, causal)


def attends(query: TokenIndex, key: TokenIndex) -> Bool[Array, "B Q K"]:
  """The mask: whether each query slot attends to each key slot. Any layout."""
  query_rank, key_rank = query.rank[..., :, None], key.rank[..., None, :]
  query_noisy, key_noisy = query.noisy[None, :, None], key.noisy[None, None, :]
  clean_key = jnp.where(query_noisy, key_rank < query_rank, key_rank <= query_rank)
  noisy_key = query_noisy & (key_rank == query_rank)
  if query.causal:
    slot = jnp.arange(query.slots)
    noisy_key &= (slot[:, None] >= jnp.arange(key.slots)[None, :])[None]
  seen = jnp.where(key_noisy, noisy_key, clean_key)
  return seen & query.valid[..., :, None] & key.valid[..., None, :]


def key_intervals(index: TokenIndex) -> KeyIntervals:
  """The mask of `attends(index, index)` as intervals.

  Both streams must be laid out in generation order: ranks never decrease along a
  stream, and its padding comes last.
  """
  clean, noisy = jnp.split(index.rank, [index.clean], axis=-1)
  clean_valid, noisy_valid = jnp.split(index.valid, [index.clean], axis=-1)

  def keys_below(ranks, valid, queries, side):
    count = valid.sum(-1, keepdims=True)
    below = jax.vmap(lambda r, q: jnp.searchsorted(r, q, side=side))(ranks, queries)
    return jnp.minimum(below, count).astype(jnp.int32)

  clean_end = jnp.concatenate(
    [
      keys_below(clean, clean_valid, clean, "right"),
      keys_below(clean, clean_valid, noisy, "left"),
    ],
    axis=-1,
  )
  none = jnp.zeros_like(clean)
  noisy_start = keys_below(noisy, noisy_valid, noisy, "left")
  noisy_end = keys_below(noisy, noisy_valid, noisy, "right")
  if index.causal:
    noisy_end = jnp.minimum(noisy_end, 1 + jnp.arange(noisy.shape[-1])[None, :])
  noisy_start = jnp.concatenate([none, noisy_start], axis=-1)
  noisy_end = jnp.concatenate([none, noisy_end], axis=-1)
  empty = (jnp.where(index.valid, x, 0) for x in (clean_end, noisy_start, noisy_end))
  return KeyIntervals(*empty)
