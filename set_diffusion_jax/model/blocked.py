"""Attention anywhere: blocked XLA over intervals of keys.

The queries of a stream are cut into at most BANDS bands. A band's keys are the static
slice that any of its queries can see, so that most of the upper half of a causal mask
is never computed. Within a band, pieces of PIECE queries go one after another, so that
memory is BANDS x PIECE x T, linear in T, even where bands run side by side.

Legend: B batch, T slots, K keys of a run, P queries of a piece, H heads, Dh head size.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from set_diffusion_jax.diffusion.index import KeyIntervals, TokenIndex, key_intervals
from set_diffusion_jax.model.layers import saved
from set_diffusion_jax.model.mix import EXCLUDED, mix, product

# Queries that are scored at once, and the most bands of keys that they are scored by.
PIECE, BANDS = 128, 8


@flax.struct.dataclass
class Blocked:
  """Attention under the mask of an index, for any layer; see `attention`.

  Attributes:
    index: of the slots; of it, static knowledge alone is used later.
    intervals: of keys that each query sees.
    products: of a score, forward and backward: those for scores, weights and their
      gradients, and the scores once more.
  """

  index: TokenIndex
  intervals: KeyIntervals
  products: ClassVar[int] = 7

  @classmethod
  def of(cls, index: TokenIndex) -> "Blocked":
    """For slots in generation order."""
    return cls(index, key_intervals(index))

  def __call__(self, q: Array, k: Array, v: Array) -> Array:
    """The mixture [B, H, T, Dh] of scaled queries."""
    k, v = _spread(k, q), _spread(v, q)
    return _interval_attention(q, k, v, self.index, self.intervals)

  @property
  def scored_pairs(self) -> int:
    """Query-key pairs whose score is computed, of one row and one head."""
    found = 0
    for band in _bands(self.index, self.intervals):
      keys = sum(run.stop - run.start for run in band.keys)
      found += (band.queries.stop - band.queries.start) * (keys + band.own)
    return found


def _spread(x: Array, q: Array) -> Array:
  """G heads of keys or values for H heads of queries."""
  return jnp.repeat(x.astype(q.dtype), q.shape[1] // x.shape[1], axis=1)


def _scores(q, k, seen: Bool[Array, "B P K"]) -> Float[Array, "B H P K"]:
  scores = product("bhqd,bhkd->bhqk", q, k)
  return jnp.where(seen[:, None], scores, EXCLUDED)


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
      return mix(scores, [v[:, :, run] for run in keys], q.dtype, own)

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
        d_weight = product("bhqd,bhkd->bhqk", d_out, v[:, :, run])
        d_score = (weight * (d_weight - inner)).astype(dtype)
        d_q += product("bhqk,bhkd->bhqd", d_score, k[:, :, run])
        sum_k += product("bhdq,bhqk->bhdk", turned(q), d_score)
        sum_v += product("bhdq,bhqk->bhdk", turned(d_out), weight.astype(dtype))
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
