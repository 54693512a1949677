"""Attention over sets. The mask is never materialised for a pair of whole streams.

Legend: B batch, T slots fed, K keys, H heads, Dh head size, P queries of a piece.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from set_diffusion_jax.index import TokenIndex, attends, key_intervals
from set_diffusion_jax.model.layers import precision

# Queries of a piece: its scores are the largest thing that attention holds.
PIECE = 128
# What an excluded score becomes. Finite, so that a query without keys (padding) yields
# an average that nobody reads instead of NaN.
EXCLUDED = -1e30


@flax.struct.dataclass
class Cache:
  """Keys and values of clean tokens, in any memory order.

  Attributes:
    k: [N, B, H, K, Dh] of each layer, rotated; one layer's part has no N.
    v: the same shape.
    index: of the K slots, all clean; `valid` says which hold a token.
  """

  k: Float[Array, "*N B H K Dh"]
  v: Float[Array, "*N B H K Dh"]
  index: TokenIndex


class _Keys(NamedTuple):
  """A slice of one stream's keys and the interval of it that each query sees."""

  k: Float[Array, "B H K Dh"]
  v: Float[Array, "B H K Dh"]
  start: Int[Array, "B P"]
  end: Int[Array, "B P"]


def attention(
  q: Float[Array, "B H T Dh"],
  k: Float[Array, "B H T Dh"],
  v: Float[Array, "B H T Dh"],
  index: TokenIndex,
  cache: Cache | None,
) -> Float[Array, "B H T Dh"]:
  """softmax(q k^T / sqrt(Dh)) v under the mask of `attends`, softmax in float32.

  Args:
    q: queries of the T slots, rotated.
    k: their keys, rotated.
    v: their values.
    index: of the T slots. Without a cache they are in generation order.
    cache: one layer's earlier clean tokens, seen besides the T slots.
  """
  q = q * q.shape[-1] ** -0.5
  if cache is not None:
    return _cached(q, k, v, index, cache)
  return _intervals(q, k, v, index)


def _cached(q, k, v, index: TokenIndex, cache: Cache):
  """Few queries against a cache and against each other, by the predicate itself."""
  seen = (attends(index, cache.index), attends(index, index))
  return _softmax_mix(q, [(cache.k, cache.v, seen[0]), (k, v, seen[1])])


def _intervals(q, k, v, index: TokenIndex):
  """Pieces of queries against the slice of each stream that they can see."""
  clean_end, noisy_start, noisy_end = key_intervals(index)
  zero = jnp.zeros_like(clean_end)
  streams = [(0, index.clean), (index.clean, index.slots)]
  out = []
  for first, last in streams:
    for start in range(first, last, PIECE):
      end = min(start + PIECE, last)
      piece = slice(start, end)
      # Sets are within aligned runs of `reach` slots: no key beyond is ever seen.
      low = (start - first) // index.reach * index.reach
      high = -(-(end - first) // index.reach) * index.reach
      parts = []
      if index.clean:
        part = slice(0, min(high, index.clean))
        parts.append(
          _Keys(k[:, :, part], v[:, :, part], zero[:, piece], clean_end[:, piece])
        )
      if first == index.clean and index.reach > 1:
        shift = index.clean + low
        part = slice(shift, min(index.clean + high, index.slots))
        bounds = noisy_start[:, piece] - low, noisy_end[:, piece] - low
        parts.append(_Keys(k[:, :, part], v[:, :, part], *bounds))
      own = None
      if first == index.clean and index.reach == 1:
        own = (k[:, :, piece], v[:, :, piece])
      attend = _attend_intervals
      if last - first > PIECE:
        # Recompute the scores in the backward pass: memory stays linear in length.
        attend = jax.checkpoint(attend)
      out.append(attend(q[:, :, piece], parts, own))
  return jnp.concatenate(out, axis=2)


def _attend_intervals(q, parts: list[_Keys], own):
  """One piece. `own` holds each query's own key and value: a singleton's noisy set."""
  masked = []
  for part in parts:
    slot = jnp.arange(part.k.shape[2])[None, None, :]
    seen = (slot >= part.start[..., None]) & (slot < part.end[..., None])
    masked.append((part.k, part.v, seen))
  return _softmax_mix(q, masked, own)


def _softmax_mix(q, parts, own=None):
  """The softmax over the keys of all parts together, without concatenating them.

  Args:
    q: [B, H, P, Dh], scaled.
    parts: (k [B, H, K, Dh], v, seen bool [B, P, K]) for each run of keys.
    own: (k [B, H, P, Dh], v): one further key for each query, or None.
  """
  exact = precision(q.dtype)
  scores = []
  for k, _, seen in parts:
    score = jnp.einsum(
      "bhqd,bhkd->bhqk",
      q,
      k.astype(q.dtype),
      precision=exact,
      preferred_element_type=jnp.float32,
    )
    scores.append(jnp.where(seen[:, None], score, EXCLUDED))
  if own is not None:
    own_score = jnp.einsum(
      "bhqd,bhqd->bhq",
      q,
      own[0],
      precision=exact,
      preferred_element_type=jnp.float32,
    )[..., None]
    scores.append(own_score)
  highest = jnp.stack([s.max(-1, keepdims=True) for s in scores]).max(0)
  highest = jax.lax.stop_gradient(highest)
  weights = [jnp.exp(score - highest) for score in scores]
  total = sum(weight.sum(-1, keepdims=True) for weight in weights)
  mixed = 0.0
  for weight, (_, v, _) in zip(weights, parts, strict=False):
    mixed += jnp.einsum(
      "bhqk,bhkd->bhqd",
      weight.astype(q.dtype),
      v.astype(q.dtype),
      precision=exact,
      preferred_element_type=jnp.float32,
    )
  if own is not None:
    mixed += weights[-1] * own[1]
  return (mixed / total).astype(q.dtype)
