"""Which positions a step looks at, and which of them it commits.

Legend: B rows, S positions of the text, W candidates.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.slots import NEVER, at_slots, first_slots, line, places
from set_diffusion_jax.decode.state import DecodeState


def candidates(decoder: Decoder, state: DecodeState) -> Int[Array, "B W"]:
  """Positions of the tokens that a step looks at; S where there are fewer."""
  missing = state.wanted & ~state.committed
  if decoder.single_set:  # what is committed is read, and not predicted again
    return first_slots(missing & scheduled(decoder, state), None, decoder.window)
  if not decoder.singletons:
    return first_slots(scheduled(decoder, state), None, decoder.window)
  if decoder.decode.commit == "posterior":  # what the step's interval reveals
    missing &= state.interval == _lowest(state.interval, missing)
    return first_slots(missing, state.turn, decoder.window)
  if decoder.takes_turns:
    return first_slots(missing, state.turn, decoder.window)
  place = jnp.broadcast_to(jnp.arange(missing.shape[-1]), missing.shape)
  near = place < _lowest(place, missing) + decoder.window
  return first_slots(missing & near, None, decoder.window)


def scheduled(decoder: Decoder, state: DecodeState) -> Bool[Array, "B S"]:
  """The positions of the first incomplete set, or window of it: one schedule's."""
  found = current_set(state) & (state.wanted | state.committed)
  if decoder.single_set and decoder.decode.window is not None:
    found &= _in_window(decoder, state)
  return found


def current_set(state: DecodeState) -> Bool[Array, "B S"]:
  """The positions of the first incomplete set."""
  return state.rank == _first_incomplete(state)


def next_turn(state: DecodeState) -> Int[Array, "B 1"]:
  """The first turn whose position is not committed; NEVER if all are."""
  return _lowest(state.turn, state.wanted & ~state.committed)


def _first_incomplete(state: DecodeState) -> Int[Array, "B 1"]:
  """The rank of the first incomplete set; NEVER if there is none."""
  return _lowest(state.rank, state.wanted & ~state.committed)


def _lowest(x: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Int[Array, "B 1"]:
  """The lowest value at a position of a mask; NEVER if there is none."""
  return jnp.where(mask, x, NEVER).min(-1, keepdims=True)


def unread_set(state: DecodeState) -> Bool[Array, "B S"]:
  """The positions of the first set that is complete and has not been read."""
  unread = state.committed & (state.rank >= state.next_rank[:, None])
  unread &= state.rank < _first_incomplete(state)
  return unread & (state.rank == _lowest(state.rank, unread))


def chosen(
  decoder: Decoder,
  state: DecodeState,
  place: Int[Array, "B W"],
  confidence: Float[Array, "B W"],
  margin: Float[Array, "B W"],
  keys: Key[Array, " B"],
) -> Bool[Array, "B W"]:
  """Which candidates a step commits.

  Args:
    decoder: says by which rule.
    state: before they are committed.
    place: of each candidate.
    confidence: the probability of each candidate's token.
    margin: how far its likeliest token is ahead of the next.
    keys: for what posterior sampling reveals.
  """
  options = decoder.decode
  open_ = at_slots(state.wanted & ~state.committed, place)
  open_ &= (place < state.tokens.shape[-1]) & decoder.unfinished(state)[:, None]
  if decoder.objective.one_stream or not (
    decoder.singletons or decoder.objective.has_levels
  ):
    return open_  # fully masked sets are generated at once
  if options.commit == "posterior":
    if decoder.singletons:
      return open_  # the candidates are what was drawn to be revealed in this step
    return open_ & _revealed(decoder, state, place, keys)
  total, steps = _budget(decoder, state)
  count = between(total, state.since, steps)
  count = jnp.where(state.since < steps, count, math.ceil(options.tokens_per_step))
  score = {"order": -at_slots(state.turn, place), "margin": margin}
  score = score.get(options.commit, confidence)
  score = jnp.where(open_, score.astype(jnp.float32), -jnp.inf)
  best = places(score) < count[:, None]
  if options.threshold is not None:
    best |= confidence >= options.threshold
  return best & open_


def _revealed(decoder: Decoder, state: DecodeState, place, keys) -> Bool[Array, "B W"]:
  """Posterior sampling inside a set: what a step of its grid of noise levels reveals.

  The schedule is linear: with n steps left each is revealed with probability 1 / n.
  Draws are keyed by row and by the position's place in the set.
  """
  _, steps = _budget(decoder, state)
  length = state.tokens.shape[-1]
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(keys)
  uniform = at_slots(uniform, at_slots(line(current_set(state), None), place))
  return uniform * jnp.maximum(steps - state.since, 1)[:, None] < 1


def _budget(decoder: Decoder, state: DecodeState):
  """Tokens of the row, set or window that is being generated, and steps for them."""
  total = state.total
  if decoder.single_set and decoder.decode.window is not None:
    total = jnp.full_like(total, decoder.decode.window)
  elif not decoder.singletons and not decoder.single_set:
    total = scheduled(decoder, state).sum(-1)  # none beyond the end of the text
  return total, jnp.ceil(total / decoder.decode.tokens_per_step).astype(jnp.int32)


def _in_window(decoder: Decoder, state: DecodeState) -> Bool[Array, "B S"]:
  """Masked diffusion in windows: the positions of the first that is not complete."""
  first = state.prompt_length[:, None] * (not decoder.decode.aligned)
  number = lambda place: (place - first) // decoder.decode.window
  place = jnp.broadcast_to(jnp.arange(state.tokens.shape[-1]), state.tokens.shape)
  gap = _lowest(place, state.wanted & ~state.committed)
  return number(place) == number(gap)


def between(total: Int[Array, "*B"], done: Int[Array, "*B"], steps: Int[Array, "*B"]):
  """round(t total) - round(t' total) for t = 1 - done / steps and the next t'.

  Exact, halves to the even number, as the published schedule rounds.
  """

  def rounded(done):
    whole, rest = jnp.divmod(total * (steps - done), jnp.maximum(steps, 1))
    up = (2 * rest > steps) | ((2 * rest == steps) & (whole % 2 == 1))
    return whole + up

  return rounded(done) - rounded(done + 1)
