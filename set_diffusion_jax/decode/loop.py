"""Generation as one compiled loop over a small state (METHOD section 5)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from set_diffusion_jax.decode import rules
from set_diffusion_jax.decode.choose import choose
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.slots import (
  at_slots,
  first_slots,
  marked,
  write_slots,
)
from set_diffusion_jax.decode.speculate import speculative_step
from set_diffusion_jax.decode.state import DecodeState
from set_diffusion_jax.rng import decoding_keys


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
  before = state
  if decoder.reads_ahead:
    state = read_ahead(decoder, params, state)
  length = state.tokens.shape[-1]
  fresh = first_slots(state.fresh, state.rank, decoder.fresh)
  if decoder.objective.one_stream:
    h, after = decoder.feed(params, state, fresh, fresh[:, :0])
    place = jnp.minimum(fresh + 1, length)
  else:
    place = rules.candidates(decoder, state)
    h, after = decoder.feed(params, state, fresh, place)
  logits = decoder.logits(params, state, h, place)
  keys = decoding_keys(state.key, state.steps)
  token, confidence, margin = choose(decoder.decode, logits, place, keys.token)
  open_ = at_slots(state.wanted & ~state.committed, place) & (place < length)
  open_ &= going[:, None]
  chosen = rules.commit(decoder, state, place, open_, confidence, margin, keys.reveal)
  where = jnp.where(chosen, place, length)
  new = marked(place, chosen, length)
  after = rules.settle(decoder, before, after, new, going)
  return after.replace(
    tokens=write_slots(state.tokens, where, token),
    confidence=write_slots(state.confidence, where, confidence),
    steps=state.steps + decoder.unfinished(state),
  )


def read_ahead(decoder: Decoder, params, state: DecodeState) -> DecodeState:
  """Reads final tokens, until no row has more of them than a step reads.

  Those of singletons in pieces; complete sets, which no step reads, one by one.
  """
  going = decoder.unfinished(state)[:, None]

  def due(state):
    final = state.fresh if decoder.singletons else rules.unread_set(state)
    final &= going
    return final & (final.sum(-1, keepdims=True) > decoder.fresh)

  def feed(state):
    final = due(state)
    by = state.rank if decoder.singletons else None
    place = first_slots(final, by, decoder.reads)
    state = decoder.feed(params, state, place, place[:, :0])[1]
    if decoder.singletons:
      return state
    read = jnp.where(final, state.rank + 1, 0).max(-1)
    return state.replace(next_rank=jnp.maximum(state.next_rank, read))

  return jax.lax.while_loop(lambda state: due(state).any(), feed, state)


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
