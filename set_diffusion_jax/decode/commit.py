"""The second half of a decoding step: tokens enter the text; see `look`.

Legend: B rows, S positions of the text, W candidates.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from set_diffusion_jax.decode import rules
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.slots import line, marked, write_slots
from set_diffusion_jax.decode.state import DecodeState


def commit(
  decoder: Decoder,
  state: DecodeState,
  place: Int[Array, "B W"],
  token: Int[Array, "B W"],
  confidence: Float[Array, "B W"],
  chosen: Bool[Array, "B W"],
) -> DecodeState:
  """Writes tokens to the text, and settles which are final and their ranks.

  Args:
    decoder: says which sets there are.
    state: after `look`.
    place: of each candidate.
    token: for it.
    confidence: the probability of each token.
    chosen: which candidates are committed; none where the text is there already.
  """
  length = state.tokens.shape[-1]
  where, new = jnp.where(chosen, place, length), marked(place, chosen, length)
  going = decoder.unfinished(state)
  committed, since = state.committed | new, state.since + going
  if not decoder.singletons:
    whole = (committed | ~rules.scheduled(decoder, state)).all(-1) & going
    since = jnp.where(whole, 0, since)
  state = state.replace(
    tokens=write_slots(state.tokens, where, token),
    confidence=write_slots(state.confidence, where, confidence),
    committed=committed,
    since=since,
  )
  return _hand_out_ranks(decoder, state, new) if decoder.singletons else state


def _hand_out_ranks(decoder: Decoder, state: DecodeState, new: Bool[Array, "B S"]):
  """The next ranks go to what became final: it is read next, unless it was already."""
  drawn = state.turn if decoder.reads_as_drawn else None
  ready, waiting = new, state.waiting
  if decoder.backlog:
    text = jnp.broadcast_to(jnp.arange(new.shape[-1]), new.shape)
    key = text if drawn is None else drawn
    written = state.wanted & state.committed
    passed = key <= jnp.where(written, key, -1).max(-1, keepdims=True)
    in_turn = jnp.ones_like(new)
    if decoder.decode.candidates == "order":
      in_turn = state.turn < rules.next_turn(state)
    waiting |= new
    ready = waiting & jnp.where(state.wanted, in_turn, passed)
    waiting &= ~ready
  rank = state.next_rank[:, None] + line(ready, drawn)
  return state.replace(
    rank=jnp.where(ready, rank, state.rank).astype(jnp.int32),
    next_rank=(state.next_rank + ready.sum(-1)).astype(jnp.int32),
    fresh=ready & ~state.cached,
    waiting=waiting,
  )
