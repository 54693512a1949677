"""Negative log-likelihoods in nats, and the denominators that average them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from set_diffusion_jax.data.vocabulary import Runs, among

# Logits of one piece on one device, in elements. On CPU they should stay in its caches;
# elsewhere, where the output layer's weights are sharded, each piece gathers them anew.
PIECE_ELEMENTS = {"cpu": 2**23, "gpu": 2**28, "tpu": 2**28}


class LossTerms(NamedTuple):
  """A loss as a fraction, so that micro-batches and devices add up exactly.

  The loss is numerator / denominator; both are sums over rows.
  """

  numerator: Float[Array, ""]
  denominator: Float[Array, ""]


def negative_log_likelihood(
  logits: Float[Array, "... V"],
  target: Int[Array, "..."],
  suppress: int | None,
  left_out: Runs = (),
) -> Float[Array, "..."]:
  """-log softmax(logits)[target] in nats, computed in float32.

  Args:
    logits: unnormalised.
    target: ids below V.
    suppress: an id that gets probability zero ([MASK]), or None.
    left_out: runs of other ids that get probability zero.
  """
  return _nats(logits, target, suppress, left_out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _nats(logits, target, suppress, left_out):
  return _nats_and_total(logits, target, suppress, left_out)[0]


def _nats_and_total(logits, target, suppress, left_out):
  logits = _without(logits, suppress, left_out)
  total = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
  return total - chosen, total


def _without(logits, suppress, left_out):
  """Logits in float32, -inf at the ids that get probability zero."""
  logits = logits.astype(jnp.float32)
  if left_out:
    logits = jnp.where(_among(left_out, logits), -jnp.inf, logits)
  if suppress is None:
    return logits
  return jnp.where(_ids(logits) == suppress, -jnp.inf, logits)


def _among(left_out, logits):
  """Which rows of the vocabulary are left out, of as many axes as the logits."""
  found = among(left_out, logits.shape[-1])
  return found.reshape((1,) * (logits.ndim - 1) + found.shape)


def _ids(logits):
  return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _nats_forward(logits, target, suppress, left_out):
  nats, total = _nats_and_total(logits, target, suppress, left_out)
  return nats, (logits, target, total)


def _nats_backward(suppress, left_out, saved, d_nats):
  """Softmax minus the one-hot target, in one pass over the logits."""
  logits, target, total = saved
  share = jnp.exp(_without(logits, suppress, left_out) - total[..., None])
  ids = _ids(logits)
  hit = (ids == target[..., None]) & (ids != (-1 if suppress is None else suppress))
  if left_out:
    hit &= ~_among(left_out, logits)
  d_logits = d_nats[..., None] * (share - hit)
  return d_logits.astype(logits.dtype), None


_nats.defvjp(_nats_forward, _nats_backward)


def slot_nats(
  unembed: Callable[[Array], Array],
  h: Float[Array, "B R D"],
  target: Int[Array, "B R"],
  vocab_size: int,
  suppress: int | None,
  elements: int,
  left_out: Runs = (),
) -> Float[Array, "B R"]:
  """Nats of each target, in pieces of slots so that [B, R, V] never exists at once.

  Args:
    unembed: h [B, P, D] -> logits [B, P, V].
    h: hidden states of the slots that predict.
    target: what they are to predict.
    vocab_size: V.
    suppress: see `negative_log_likelihood`.
    elements: logits of a piece, on all devices together; see PIECE_ELEMENTS.
    left_out: see `negative_log_likelihood`.
  """

  def piece(_, hs):
    h, target = hs
    return None, negative_log_likelihood(unembed(h), target, suppress, left_out)

  size = _piece_slots(*target.shape, vocab_size, elements)
  return _in_pieces(piece, size, None, (h, target))[1]


def priced_nats(
  unembed: Callable[[PyTree, PyTree, Array], Array],
  params: PyTree,
  others: PyTree,
  h: Float[Array, "B R D"],
  target: Int[Array, "B R"],
  prices: Float[Array, "K B R"],
  vocab_size: int,
  suppress: int | None,
  elements: int,
) -> tuple[Float[Array, " K"], Float[Array, "B R"]]:
  """K sums of price times nats, and the nats, as `slot_nats` has them.

  What a nat costs is known before it is, so that the gradient is taken while a piece's
  logits are there, and they are never computed again. Gradients flow through the sums
  to `params` and `h` alone.

  Args:
    unembed: (params, others, h [B, P, D]) -> logits [B, P, V].
    params: of the output layer.
    others: what else it needs.
    h: hidden states of the slots that predict.
    target: what they are to predict.
    prices: of each target, in each sum; nats of price 0 are not read.
    vocab_size: V.
    suppress: see `negative_log_likelihood`.
    elements: as of `slot_nats`.
  """
  size = _piece_slots(*target.shape, vocab_size, elements)
  totals, nats = _priced(unembed, suppress, size, params, others, h, target, prices)
  return totals, jax.lax.stop_gradient(nats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _priced(unembed, suppress, size, params, others, h, target, prices):
  return _priced_forward(unembed, suppress, size, params, others, h, target, prices)[0]


def _priced_forward(unembed, suppress, size, params, others, h, target, prices):
  by_slot = jnp.moveaxis(prices, 0, 2)  # [B, R, K]

  def piece(sums, parts):
    h, target, prices = parts

    def nats_of(params, h):
      return negative_log_likelihood(unembed(params, others, h), target, suppress)

    nats, pullback = jax.vjp(nats_of, params, h)
    found = [pullback(prices[..., k]) for k in range(prices.shape[-1])]
    sums = jax.tree.map(jnp.add, sums, [d_params for d_params, _ in found])
    return sums, (nats, jnp.stack([d_h for _, d_h in found], axis=2))

  none = [jax.tree.map(jnp.zeros_like, params) for _ in prices]
  d_params, (nats, d_h) = _in_pieces(piece, size, none, (h, target, by_slot))
  totals = jnp.where(prices != 0, nats[None] * prices, 0.0).sum((1, 2))
  return (totals, nats), (d_params, d_h)


def _priced_backward(unembed, suppress, size, gradients, cotangents):
  (d_params, d_h), (d_totals, _) = gradients, cotangents

  def shared(*each):
    """What is not asked for counts nothing, also where it is not finite."""
    pairs = zip(d_totals, each, strict=True)
    return sum(jnp.where(s != 0, s * x, 0) for s, x in pairs).astype(each[0].dtype)

  d_params = jax.tree.map(shared, *d_params)
  return d_params, None, shared(*jnp.moveaxis(d_h, 2, 0)), None, None


_priced.defvjp(_priced_forward, _priced_backward)


def _in_pieces(piece, size: int, carry, arrays):
  """Scans `piece` over runs of `size` slots of arrays [B, R, ...]."""
  batch, slots = arrays[0].shape[:2]
  if size == slots:
    return piece(carry, arrays)
  split = lambda x: jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)
  carry, found = jax.lax.scan(piece, carry, jax.tree.map(split, arrays))
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, slots, *x.shape[3:])
  return carry, jax.tree.map(join, found)


def _piece_slots(batch: int, slots: int, vocab_size: int, elements: int) -> int:
  """Slots of a piece of the loss, a divisor of all `slots`."""
  size = max(1, min(slots, elements // (batch * vocab_size)))
  while slots % size:
    size -= 1
  return size


def weighted(
  nats: Float[Array, "*B R"], weight: Float[Array, "*B R"]
) -> Float[Array, "*B R"]:
  """Nats times weight; 0 without a weight, also where nats are infinite."""
  return jnp.where(weight > 0, nats * weight, 0.0)


def loss_terms(
  each: Float[Array, "B R"],
  weight: Float[Array, "B R"],
  counted: Bool[Array, "B R"],
  denominator: str,
) -> LossTerms:
  """Sums of a loss.

  Args:
    each: weighted nats of each target.
    weight: of each target, 0 where it is not read.
    counted: which targets are tokens of the text.
    denominator: "tokens", the counted ones, or "masked", those with a weight;
      "sequences" and "masked_sequences", the mean over rows of each row's own mean over
      these (0 for a row without any), as setdlms averages.
  """
  rows = each.sum(-1)
  tokens = (weight > 0 if "masked" in denominator else counted).sum(-1)
  if denominator in ("tokens", "masked"):
    return LossTerms(rows.sum(), tokens.sum().astype(jnp.float32))
  means = rows / jnp.maximum(tokens, 1)
  return LossTerms(means.sum(), jnp.float32(each.shape[0]))
