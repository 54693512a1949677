"""Attention over sets. The mask is never materialised for a pair of whole streams.

Legend: B batch, T slots fed, K keys, P queries of a piece, H heads, Dh head size.
"""

from collections.abc import Iterator
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int

from set_diffusion_jax.index import KeyIntervals, TokenIndex, attends, key_intervals
from set_diffusion_jax.model import flash, splash
from set_diffusion_jax.model.layers import Turns, precision, saved

# Queries that are scored at once, and the most bands of keys that they are scored by.
PIECE, BANDS = 128, 8
# What an excluded score becomes. Finite, so that a query without keys (padding) yields
# an average that nobody reads instead of NaN.
EXCLUDED = -1e30


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


@flax.struct.dataclass
class Shared:
  """What all layers are given alike.

  Attributes:
    index: of the slots.
    turns: of rotary positions.
    cache: what of a cache is not a layer's own, if there is one.
    condition: of adaLN, if there is one.
    mesh: that all is laid out on, if there is one (static).
  """

  index: TokenIndex
  turns: Turns
  cache: Cache | None
  condition: Float[Array, " C"] | None
  mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)


def attention(
  q: Float[Array, "B H T Dh"],
  k: Float[Array, "B G T Dh"],
  v: Float[Array, "B G T Dh"],
  shared: Shared,
) -> Float[Array, "B H T Dh"]:
  """The mixture softmax(q k^T / sqrt(Dh)) v under `attends`, softmax in float32.

  Args:
    q: queries of the T slots, rotated.
    k: their keys, rotated; each of the G heads serves H / G heads of queries.
    v: their values.
    shared: `index` of the T slots, in generation order.

  On a mesh of TPUs, splash attention where it can say the mask (`splash.applies`); on
  one of GPUs, a flash kernel (`flash.applies`); for everything else, blocked XLA.
  """
  q, index, mesh = q * q.shape[-1] ** -0.5, shared.index, shared.mesh
  if splash.applies(index, q.dtype, mesh):
    return splash.splash_attention(q, k, v, index, mesh)
  if flash.applies(index, q.shape[-1], q.dtype, mesh):
    return flash.flash_attention(q, k, v, index, mesh)
  return _interval_attention(
    q, _spread(k, q), _spread(v, q), index, key_intervals(index)
  )


def cached_attention(
  q: Float[Array, "B H T Dh"],
  k: Float[Array, "B G T Dh"],
  v: Float[Array, "B G T Dh"],
  shared: Shared,
  cached: tuple[Float[Array, "B G Dh K"], Float[Array, "B G K Dh"]],
) -> tuple[Float[Array, "B H T Dh"], tuple[Array, Array]]:
  """The same over a cache too, which the clean slots enter before anything is read.

  Few queries and keys in any order: the predicate itself. The queries of the H / G
  heads that share keys are scored together.

  Args:
    q: queries of the T slots, rotated.
    k: their keys, rotated.
    v: their values.
    shared: `index` of the T slots, and the cache's index and places.
    cached: keys and values.

  Returns:
    The mixture, and the cache with what entered it.
  """
  index, cache, clean = shared.index, shared.cache, shared.index.clean
  together = q.shape[1] // k.shape[1]
  queries = (q * q.shape[-1] ** -0.5).reshape(*k.shape[:2], -1, q.shape[-1])
  keys, values = cached
  if clean:
    keys = _enter_keys(keys, k[:, :, :clean], cache.place)
    values = _enter_values(values, v[:, :, :clean], cache.place)

  def scores(keys, key_index):
    seen = jnp.tile(attends(index, key_index), (1, together, 1))[:, None]
    found = _product("bgqd,bgdk->bgqk", queries, keys.astype(q.dtype))
    return jnp.where(seen, found, EXCLUDED)

  parts = [(scores(keys, cache.index), values.astype(q.dtype))]
  if clean < index.slots:
    own = jnp.swapaxes(k[:, :, clean:], 2, 3)
    parts.append((scores(own, index.from_slot(clean)), v[:, :, clean:]))
  mixed = _mix(*zip(*parts, strict=True), q.dtype)[0]
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


def _spread(x: Array, q: Array) -> Array:
  """G heads of keys or values for H heads of queries."""
  return jnp.repeat(x.astype(q.dtype), q.shape[1] // x.shape[1], axis=1)


def _scores(q, k, seen: Bool[Array, "B P K"]) -> Float[Array, "B H P K"]:
  scores = _product("bhqd,bhkd->bhqk", q, k)
  return jnp.where(seen[:, None], scores, EXCLUDED)


def _product(equation: str, x: Array, y: Array) -> Array:
  """An einsum accumulated in float32."""
  return jnp.einsum(
    equation, x, y, precision=precision(x.dtype), preferred_element_type=jnp.float32
  )


def _mix(scores: list[Array], values: list[Array], dtype, own=None):
  """Softmax over the keys of all parts together, without concatenating them.

  Args:
    scores: float32 [B, H, P, K] of each part.
    values: [B, H, K, Dh] of each part.
    dtype: of the products and of the result.
    own: (score [B, H, P, 1], value [B, H, P, Dh]), one further key of each query.

  Returns:
    The mixture [B, H, P, Dh], and log sum exp of the scores, float32 [B, H, P, 1].
  """
  every = [*scores, own[0]] if own else scores
  highest = jnp.stack([s.max(-1, keepdims=True) for s in every]).max(0)
  weights = [jnp.exp(s - highest) for s in every]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  mixed = sum(
    _product("bhqk,bhkd->bhqd", w.astype(dtype), v)
    for w, v in zip(weights, values, strict=False)
  )
  if own:
    mixed += weights[-1] * own[1]
  return (mixed / total).astype(dtype), highest + jnp.log(total)


# --- Streams in generation order, in bands of pieces ----------------------------------
#
# The queries of a stream are cut into at most BANDS bands. A band's keys are the static
# slice that any of its queries can see, so that most of the upper half of a causal mask
# is never computed. Within a band, pieces of PIECE queries go one after another, so
# that memory is BANDS x PIECE x T, linear in T, even where bands run side by side.


class _Band(NamedTuple):
  """A run of queries of one stream, and the keys that they can see.

  Attributes:
    queries: slots of the queries (static).
    keys: runs of key slots (static).
    bounds: the first and the last + 1 slot of each run that each query sees, [B, P].
    own: each query sees its own noisy key besides: noisy singletons (static).
  """

  queries: slice
  keys: list[slice]
  bounds: list[tuple[Int[Array, "B P"], Int[Array, "B P"]]]
  own: bool


def _bands(index: TokenIndex, intervals: KeyIntervals) -> Iterator[_Band]:
  """All queries. Keys are limited to what static knowledge of the mask allows.

  Sets lie within aligned runs of `reach` slots, so no query sees clean keys beyond the
  end of its own run, nor noisy keys outside it.
  """
  clean, reach = index.clean, index.reach
  clean_start = jnp.zeros_like(intervals.clean_end)
  for first, last in ((0, clean), (clean, index.slots)):
    pieces = -(-(last - first) // PIECE)
    size = -(-pieces // BANDS) * PIECE
    whole = first + (last - first) // PIECE * PIECE
    starts = {*range(first, last, max(size, 1)), *([whole] if whole < last else [])}
    ends = [*sorted(starts)[1:], last]
    for start, end in zip(sorted(starts), ends, strict=False):
      queries = slice(start, end)
      run_start = (start - first) // reach * reach
      run_end = -(-(end - first) // reach) * reach
      noisy = first == clean
      keys, bounds = [], []
      if clean:
        keys.append(slice(0, min(run_end, clean)))
        bounds.append((clean_start[:, queries], intervals.clean_end[:, queries]))
      if noisy and reach > 1:
        keys.append(slice(clean + run_start, min(clean + run_end, index.slots)))
        noisy_bounds = intervals.noisy_start, intervals.noisy_end
        bounds.append(tuple(clean + x[:, queries] for x in noisy_bounds))
      yield _Band(queries, keys, bounds, own=noisy and reach == 1)


def scored_pairs(
  index: TokenIndex, head_size: int, dtype, mesh: Mesh | AbstractMesh | None
) -> int:
  """Query-key pairs whose score `attention` computes, of one row and one head."""
  if splash.applies(index, dtype, mesh):
    return splash.scored_pairs(index)
  if flash.applies(index, head_size, dtype, mesh):
    return flash.scored_pairs(index)
  found = []

  def count(index):
    for band in _bands(index, key_intervals(index)):
      keys = sum(run.stop - run.start for run in band.keys)
      found.append((band.queries.stop - band.queries.start) * (keys + band.own))

  jax.eval_shape(count, index)
  return sum(found)


def _split(x: Array) -> Array:
  """[..., P, last] -> [pieces, ..., PIECE, last], for scanning over pieces."""
  x = x.reshape(*x.shape[:-2], -1, PIECE, x.shape[-1])
  return jnp.moveaxis(x, -3, 0)


def _join(x: Array) -> Array:
  """The inverse of `_split`."""
  x = jnp.moveaxis(x, 0, -3)
  return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _band_scores(q, k, own_k, bounds, keys: list[slice]):
  """Scores of each run of keys, and of the own keys if there are any."""
  scores = []
  for run, (start, end) in zip(keys, bounds, strict=True):
    slot = jnp.arange(run.start, run.stop)[None, None, :]
    seen = (slot >= start[..., None]) & (slot < end[..., None])
    scores.append(_scores(q, k[:, :, run], seen))
  if own_k is None:
    return scores, None
  return scores, (q.astype(jnp.float32) * own_k).sum(-1, keepdims=True)


def _forward(q, k, v, index: TokenIndex, intervals: KeyIntervals):
  mixed, log_totals = [], []
  for band in _bands(index, intervals):

    def piece(q, bounds, own, keys=band.keys):
      scores, own_score = _band_scores(q, k, own and own[0], bounds, keys)
      own = (own_score, own[1]) if own else None
      return _mix(scores, [v[:, :, run] for run in keys], q.dtype, own)

    args = _band_arguments(band, q, k, v)
    if q[:, :, band.queries].shape[2] > PIECE:
      out, log_total = jax.lax.map(lambda x, f=piece: f(*x), _split_all(args))
      out, log_total = _join(out), _join(log_total)
    else:
      out, log_total = piece(*args)
    mixed.append(out)
    log_totals.append(log_total)
  return jnp.concatenate(mixed, axis=2), jnp.concatenate(log_totals, axis=2)


def _band_arguments(band: _Band, q, k, v):
  """What a band's pieces are cut from: queries, bounds, own keys and values."""
  here = (slice(None), slice(None), band.queries)
  return q[here], band.bounds, (k[here], v[here]) if band.own else None


def _split_all(tree):
  """`_split` of [B, H, P, X] and of [B, P] arrays."""
  cut = lambda x: _split(x) if x.ndim == 4 else _split(x[..., None])[..., 0]
  return jax.tree.map(cut, tree)


@jax.custom_vjp
def _interval_attention(q, k, v, index: TokenIndex, intervals: KeyIntervals):
  """Attention without a cache; memory is linear in T, in the backward pass too.

  Only the inputs, the output and the log-sum-exp of each query are kept; the scores
  are computed again piece by piece.
  """
  return _forward(q, k, v, index, intervals)[0]


def _save(q, k, v, index, intervals):
  out, log_total = map(saved, _forward(q, k, v, index, intervals))
  return out, (q, k, v, index, intervals, out, log_total)


def _backward(kept, d_out):
  q, k, v, index, intervals, out, log_total = kept
  dtype = q.dtype
  d_out = d_out.astype(dtype)
  inner = (d_out.astype(jnp.float32) * out).sum(-1, keepdims=True)
  d_q = []
  # Those of keys and values are summed transposed, [B, H, Dh, K]: on CPU products that
  # are laid out like this are two to three times faster.
  turned = lambda x: jnp.swapaxes(x, 2, 3)
  zeros = lambda x: jnp.zeros(turned(x).shape, jnp.float32)
  d_k, d_v = zeros(k), zeros(v)
  for band in _bands(index, intervals):
    here = (slice(None), slice(None), band.queries)

    def piece(sums, arguments, keys=band.keys):
      """Adds to the sums of each run; returns gradients of what is the piece's own."""
      (q, bounds, own), d_out, inner, log_total = arguments
      scores, own_score = _band_scores(q, k, own and own[0], bounds, keys)
      d_q, after = jnp.zeros(q.shape, jnp.float32), []
      for score, run, (sum_k, sum_v) in zip(scores, keys, sums, strict=True):
        weight = jnp.exp(score - log_total)
        d_weight = _product("bhqd,bhkd->bhqk", d_out, v[:, :, run])
        d_score = (weight * (d_weight - inner)).astype(dtype)
        d_q += _product("bhqk,bhkd->bhqd", d_score, k[:, :, run])
        sum_k += _product("bhdq,bhqk->bhdk", turned(q), d_score)
        sum_v += _product("bhdq,bhqk->bhdk", turned(d_out), weight.astype(dtype))
        after.append((sum_k, sum_v))
      if own is None:
        return after, (d_q, None)
      weight = jnp.exp(own_score - log_total)
      d_weight = (d_out.astype(jnp.float32) * own[1]).sum(-1, keepdims=True)
      d_score = weight * (d_weight - inner)
      return after, (d_q + d_score * own[0], (d_score * q, weight * d_out))

    sums = [(zeros(k[:, :, run]), zeros(v[:, :, run])) for run in band.keys]
    args = _band_arguments(band, q, k, v), d_out[here], inner[here], log_total[here]
    if q[here].shape[2] > PIECE:
      sums, results = jax.lax.scan(piece, sums, _split_all(args))
      d_q_band, own = jax.tree.map(_join, results)
    else:
      sums, (d_q_band, own) = piece(sums, args)
    d_q.append(d_q_band)
    for run, (sum_k, sum_v) in zip(band.keys, sums, strict=True):
      d_k, d_v = d_k.at[..., run].add(sum_k), d_v.at[..., run].add(sum_v)
    if own:
      queries = (..., band.queries)
      d_k = d_k.at[queries].add(turned(own[0]))
      d_v = d_v.at[queries].add(turned(own[1]))
  d_q, d_k, d_v = jnp.concatenate(d_q, axis=2), turned(d_k), turned(d_v)
  return d_q.astype(dtype), d_k.astype(dtype), d_v.astype(dtype), None, None


_interval_attention.defvjp(_save, _backward)
