"""The two halves of a decoding step: what it sees, and what it keeps of that.

    state, place, logits = look(decoder, params, state)
    state = commit(decoder, state, place, token, confidence, chosen)

Between the halves stands whoever decides on the tokens: the commit rule of generation,
the acceptance of drafts, or a text that is given.

Legend: B rows, S positions of the text, F tokens that are read, W candidates.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from set_diffusion_jax.decode import rules
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.slots import first_slots
from set_diffusion_jax.decode.state import DecodeState

# What is made of the logits [B, P, V] of P candidates at the positions [B, P]: arrays
# [B, P, ...].
Take = Callable[[Array, Array], object]


def _all(logits, place):
  return logits


def look(decoder: Decoder, params, state: DecodeState, take: Take = _all):
  """Reads the final tokens that the cache lacks, and predicts the next candidates.

  Args:
    decoder: says how.
    params: of `Decoder.ready`.
    state: before the step.
    take: what is wanted of the logits. It is called for a few candidates at a time
      where the logits of all would be large, and they never exist at once.

  Returns the state with its new cache and one more step, the candidates' positions
  int32 [B, W], S where there are fewer, and what `take` makes of their logits, the
  logits [B, W, V] themselves if it is not given.
  """
  if decoder.reads_ahead:
    state = read_ahead(decoder, params, state)
  fresh = first_slots(state.fresh, state.rank, decoder.fresh)
  if decoder.objective.one_stream:
    place = jnp.minimum(fresh + 1, state.tokens.shape[-1])
  else:
    place = rules.candidates(decoder, state)
  state, found = look_at(decoder, params, state, fresh, place, take)
  return state, place, found


def look_at(
  decoder: Decoder,
  params,
  state: DecodeState,
  fresh: Int[Array, "B F"],
  place: Int[Array, "B W"],
  take: Take = _all,
  before: Bool[Array, "B W S"] | None = None,
):
  """`look` where the caller says which tokens are read, and which are the candidates.

  Args:
    decoder: says how.
    params: of `Decoder.ready`.
    state: before.
    fresh: positions of the final tokens that are read; S where a slot is unused.
    place: positions of the candidates; S where a slot is unused.
    take: as of `look`.
    before: which positions hold a token for each candidate; None: those committed.

  Returns the state with its new cache and one more step, and what `take` makes of the
  logits.
  """
  fed = place[:, :0] if decoder.objective.one_stream else place
  h, after = decoder.feed(params, state, fresh, fed)

  def piece(h, place, before=state.committed):
    seen = state.replace(committed=before)
    return take(decoder.logits(params, seen, h, place), place)

  each = (h, place) if before is None else (h, place, before)
  vocab_size = decoder.objective.network.vocab_size
  size = decoder.objective.piece_elements // (len(place) * vocab_size)
  found = _in_pieces(piece, each, max(size, 1))
  return after.replace(steps=state.steps + decoder.unfinished(state)), found


def _in_pieces(function, arrays, size: int):
  """A function of arrays [B, W, ...], for at most `size` of the W at a time."""
  if arrays[0].shape[1] <= size:
    return function(*arrays)
  slots = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], arrays)
  found = jax.lax.map(lambda slot: function(*slot), slots, batch_size=size)
  return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), found)


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
