"""Attention over sets. The mask is never materialised for a pair of whole streams.

Legend: B batch, T slots fed, K keys, P queries of a piece, H heads, Dh head size.
"""

from collections.abc import Iterator
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from set_diffusion_jax.index import KeyIntervals, TokenIndex, attends, key_intervals
from set_diffusion_jax.model.layers import precision

# Queries of a piece: its scores are the largest thing that attention ever holds.
PIECE = 128
# What an excluded score becomes. Finite, so that a query without keys (padding) yields
# an average that nobody reads instead of NaN.
EXCLUDED = -1e30


@flax.struct.dataclass
class Cache:
  """Keys and values of clean tokens, in any memory order.

  Attributes:
    k: [N, B, H, K, Dh] of all layers, rotated; one layer's part has no N.
    v: the same shape.
    index: of the K slots, all clean; `valid` says which hold a token.
  """

  k: Float[Array, "*N B H K Dh"]
  v: Float[Array, "*N B H K Dh"]
  index: TokenIndex


def attention(
  q: Float[Array, "B H T Dh"],
  k: Float[Array, "B H T Dh"],
  v: Float[Array, "B H T Dh"],
  index: TokenIndex,
  cache: Cache | None,
) -> Float[Array, "B H T Dh"]:
  """The mixture softmax(q k^T / sqrt(Dh)) v under `attends`, softmax in float32.

  Args:
    q: queries of the T slots, rotated.
    k: their keys, rotated.
    v: their values.
    index: of the T slots. Without a cache they are in generation order.
    cache: one layer's earlier clean tokens, seen besides the T slots.
  """
  q = q * q.shape[-1] ** -0.5
  if cache is None:
    return _interval_attention(q, k, v, index, key_intervals(index))
  # Few queries against a cache in any order: the predicate itself.
  scores = [
    _scores(q, cache.k.astype(q.dtype), attends(index, cache.index)),
    _scores(q, k, attends(index, index)),
  ]
  return _mix(scores, [cache.v.astype(q.dtype), v])[0]


def _scores(q, k, seen: Bool[Array, "B P K"]) -> Float[Array, "B H P K"]:
  scores = _product("bhqd,bhkd->bhqk", q, k)
  return jnp.where(seen[:, None], scores, EXCLUDED)


def _product(equation: str, x: Array, y: Array) -> Array:
  """An einsum accumulated in float32."""
  return jnp.einsum(
    equation, x, y, precision=precision(x.dtype), preferred_element_type=jnp.float32
  )


def _mix(scores: list[Array], values: list[Array], own=None):
  """Softmax over the keys of all parts together, without concatenating them.

  Args:
    scores: float32 [B, H, P, K] of each part.
    values: [B, H, K, Dh] of each part.
    own: (score [B, H, P, 1], value [B, H, P, Dh]), one further key of each query.

  Returns:
    The mixture [B, H, P, Dh], and log sum exp of the scores, float32 [B, H, P, 1].
  """
  every = [*scores, own[0]] if own else scores
  highest = jnp.stack([s.max(-1, keepdims=True) for s in every]).max(0)
  weights = [jnp.exp(s - highest) for s in every]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  dtype = values[0].dtype
  mixed = sum(
    _product("bhqk,bhkd->bhqd", w.astype(dtype), v)
    for w, v in zip(weights, values, strict=False)
  )
  if own:
    mixed += weights[-1] * own[1]
  return (mixed / total).astype(dtype), highest + jnp.log(total)


# --- Two streams in generation order, in pieces ---------------------------------------


class _Piece(NamedTuple):
  """A run of queries of one stream, and the keys that it can see.

  Attributes:
    queries: slots of the queries.
    keys: runs of key slots, each with its mask [B, P, K].
    own: each query sees its own noisy key besides (noisy singletons).
  """

  queries: slice
  keys: list[tuple[slice, Bool[Array, "B P K"]]]
  own: bool


def _pieces(index: TokenIndex, intervals: KeyIntervals) -> Iterator[_Piece]:
  """All queries. Keys are limited to what static knowledge of the mask allows.

  Sets lie within aligned runs of `reach` slots, so no query sees clean keys beyond the
  end of its own run, nor noisy keys outside it.
  """

  def masked(queries: slice, keys: slice, start, end):
    slot = jnp.arange(keys.start, keys.stop)[None, None, :]
    start, end = start[:, queries, None], end[:, queries, None]
    return keys, (slot >= start) & (slot < end)

  clean, reach = index.clean, index.reach
  for stream_start, stream_end in ((0, clean), (clean, index.slots)):
    for start in range(stream_start, stream_end, PIECE):
      queries = slice(start, min(start + PIECE, stream_end))
      run_start = (queries.start - stream_start) // reach * reach
      run_end = -(-(queries.stop - stream_start) // reach) * reach
      keys = []
      if clean:
        seen = slice(0, min(run_end, clean))
        end = intervals.clean_end
        keys.append(masked(queries, seen, jnp.zeros_like(end), end))
      noisy = stream_start == clean
      if noisy and reach > 1:
        seen = slice(clean + run_start, min(clean + run_end, index.slots))
        bounds = (clean + intervals.noisy_start, clean + intervals.noisy_end)
        keys.append(masked(queries, seen, *bounds))
      yield _Piece(queries, keys, own=noisy and reach == 1)


def _piece_scores(piece: _Piece, q, k):
  """Scores of each run of keys, and of the own keys if the piece has them."""
  q_piece = q[:, :, piece.queries]
  scores = [_scores(q_piece, k[:, :, keys], seen) for keys, seen in piece.keys]
  if not piece.own:
    return scores, None
  own = (q_piece.astype(jnp.float32) * k[:, :, piece.queries]).sum(-1, keepdims=True)
  return scores, own


def _forward(q, k, v, index: TokenIndex, intervals: KeyIntervals):
  mixed, log_totals = [], []
  for piece in _pieces(index, intervals):
    scores, own = _piece_scores(piece, q, k)
    if own is not None:
      own = (own, v[:, :, piece.queries])
    out, log_total = _mix(scores, [v[:, :, keys] for keys, _ in piece.keys], own)
    mixed.append(out)
    log_totals.append(log_total)
  return jnp.concatenate(mixed, axis=2), jnp.concatenate(log_totals, axis=2)


@jax.custom_vjp
def _interval_attention(q, k, v, index: TokenIndex, intervals: KeyIntervals):
  """Attention without a cache; memory is linear in T, in the backward pass too.

  Only the inputs, the output and the log-sum-exp of each query are kept; the scores
  are computed again piece by piece.
  """
  return _forward(q, k, v, index, intervals)[0]


def _save(q, k, v, index, intervals):
  out, log_total = _forward(q, k, v, index, intervals)
  return out, (q, k, v, index, intervals, out, log_total)


def _backward(saved, d_out):
  q, k, v, index, intervals, out, log_total = saved
  dtype = q.dtype
  d_out = d_out.astype(dtype)
  inner = (d_out.astype(jnp.float32) * out).sum(-1, keepdims=True)
  d_q = []
  d_k, d_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for piece in _pieces(index, intervals):
    here = (slice(None), slice(None), piece.queries)
    scores, own = _piece_scores(piece, q, k)
    d_piece = jnp.zeros(q[here].shape, jnp.float32)
    for score, (keys, _) in zip(scores, piece.keys, strict=True):
      weight = jnp.exp(score - log_total[here])
      d_weight = _product("bhqd,bhkd->bhqk", d_out[here], v[:, :, keys])
      d_score = (weight * (d_weight - inner[here])).astype(dtype)
      weight = weight.astype(dtype)
      d_piece += _product("bhqk,bhkd->bhqd", d_score, k[:, :, keys])
      d_k = d_k.at[:, :, keys].add(_product("bhqk,bhqd->bhkd", d_score, q[here]))
      d_v = d_v.at[:, :, keys].add(_product("bhqk,bhqd->bhkd", weight, d_out[here]))
    if own is not None:
      weight = jnp.exp(own - log_total[here])
      d_weight = (d_out[here].astype(jnp.float32) * v[here]).sum(-1, keepdims=True)
      d_score = weight * (d_weight - inner[here])
      d_piece += d_score * k[here]
      d_k = d_k.at[here].add(d_score * q[here])
      d_v = d_v.at[here].add(weight * d_out[here])
    d_q.append(d_piece)
  d_q = jnp.concatenate(d_q, axis=2)
  return d_q.astype(dtype), d_k.astype(dtype), d_v.astype(dtype), None, None


_interval_attention.defvjp(_save, _backward)
