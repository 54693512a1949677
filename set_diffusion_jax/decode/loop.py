"""Generation as one compiled loop over a small state (METHOD section 5)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from set_diffusion_jax.decode import rules
from set_diffusion_jax.decode.choose import choose
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.slots import (
  NEVER,
  at_slots,
  first_slots,
  marked,
  write_slots,
)
from set_diffusion_jax.decode.speculate import speculative_step
from set_diffusion_jax.decode.state import DecodeState


def step(decoder: Decoder, params, state: DecodeState) -> DecodeState:
  """One look at the candidates, and the commitment that it allows.

  Args:
    decoder: says how.
    params: of `Decoder.ready`.
    state: is not finished in every row.
  """
  if decoder.decode.drafts is not None:
    return speculative_step(decoder, params, state)
  going = decoder.unfinished(state)
  if not decoder.singletons:
    state, waits = next_set(state)
    going &= ~waits
  before = state
  if decoder.backlog:
    state = _catch_up(decoder, params, state)
  length = state.tokens.shape[-1]
  fresh = first_slots(state.fresh, state.rank, decoder.fresh)
  if decoder.objective.one_stream:
    h, after = decoder.feed(params, state, fresh, fresh[:, :0])
    place = jnp.minimum(fresh + 1, length)
  else:
    place = rules.candidates(decoder, state)
    h, after = decoder.feed(params, state, fresh, place)
  logits = decoder.logits(params, state, h, place)
  keys = jax.vmap(jax.random.fold_in)(state.key, state.steps)
  token, confidence, margin = choose(decoder.decode, logits, place, keys)
  open_ = at_slots(state.wanted & ~state.committed, place) & (place < length)
  open_ &= going[:, None]
  chosen = rules.commit(decoder, state, place, open_, confidence, margin)
  where = jnp.where(chosen, place, length)
  new = marked(place, chosen, length)
  after = rules.settle(decoder, before, after, new, going)
  return after.replace(
    tokens=write_slots(state.tokens, where, token),
    confidence=write_slots(state.confidence, where, confidence),
    steps=state.steps + decoder.unfinished(state),
  )


def next_set(state: DecodeState) -> tuple[DecodeState, Bool[Array, " B"]]:
  """Sets of several positions: what is fresh, and which rows must wait for more.

  Fresh is the first complete set that the cache has not read. Where given tokens make
  several sets complete at once, they are read one a step.
  """
  missing = state.wanted & ~state.committed
  first = jnp.where(missing, state.rank, NEVER).min(-1, keepdims=True)
  ready = state.committed & ~state.cached & (state.rank < first)
  lowest = jnp.where(ready, state.rank, NEVER).min(-1, keepdims=True)
  fresh = ready & (state.rank == lowest)
  return state.replace(fresh=fresh), (ready & ~fresh).any(-1)


def _catch_up(decoder: Decoder, params, state: DecodeState) -> DecodeState:
  """Reads what is fresh until no row has more of it than a step reads."""

  def feed(state):
    fed = first_slots(state.fresh, state.rank, decoder.fresh)
    behind = state.fresh.sum(-1, keepdims=True) > decoder.fresh
    fed = jnp.where(behind, fed, state.tokens.shape[-1])
    return decoder.feed(params, state, fed, fed[:, :0])[1]

  behind = lambda state: (state.fresh.sum(-1) > decoder.fresh).any()
  return jax.lax.while_loop(behind, feed, state)


def decode(
  decoder: Decoder, params, state: DecodeState, most: int | Array
) -> DecodeState:
  """At most so many steps, until every row is finished."""

  def going(carry):
    state, count = carry
    return decoder.unfinished(state).any() & (count < most)

  params = decoder.ready(params)
  return jax.lax.while_loop(
    going,
    lambda carry: (step(decoder, params, carry[0]), carry[1] + 1),
    (state, jnp.zeros((), jnp.int32)),
  )[0]
