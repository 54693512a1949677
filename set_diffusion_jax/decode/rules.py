"""Which positions a step looks at, which of them it commits, and what is final then.

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
  length = state.tokens.shape[-1]
  place = jnp.broadcast_to(jnp.arange(length), state.tokens.shape)
  if decoder.single_set:
    return place
  if not decoder.singletons:
    there = state.wanted | state.committed
    return first_slots(there & current_set(state), None, decoder.window)
  missing = state.wanted & ~state.committed
  if decoder.decode.commit == "posterior":  # what the step's interval reveals
    missing &= state.interval == _lowest(state.interval, missing)
    return first_slots(missing, state.turn, decoder.window)
  if decoder.takes_turns:
    return first_slots(missing, state.turn, decoder.window)
  first = jnp.where(missing, place, length).min(-1, keepdims=True)
  return first_slots(missing & (place < first + decoder.window), None, decoder.window)


def current_set(state: DecodeState) -> Bool[Array, "B S"]:
  """The positions of the first incomplete set."""
  return state.rank == _first_incomplete(state)


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


def commit(
  decoder: Decoder,
  state: DecodeState,
  place: Int[Array, "B W"],
  open_: Bool[Array, "B W"],
  confidence: Float[Array, "B W"],
  margin: Float[Array, "B W"],
  keys: Key[Array, " B"],
) -> Bool[Array, "B W"]:
  """Which candidates a step commits.

  Args:
    decoder: says by which rule.
    state: before the step.
    place: of each candidate.
    open_: which candidates can be committed.
    confidence: the probability of each candidate's token.
    margin: how far its likeliest token is ahead of the next.
    keys: for what posterior sampling reveals.
  """
  options = decoder.decode
  if decoder.objective.one_stream or not (
    decoder.singletons or decoder.objective.has_levels
  ):
    return open_  # fully masked sets are generated at once
  windowed = decoder.single_set and options.window is not None
  if windowed:
    open_ &= _in_window(decoder, state, place)
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
  chosen = places(score) < count[:, None]
  if options.threshold is not None:
    chosen |= confidence >= options.threshold
  return chosen & open_


def _revealed(decoder: Decoder, state: DecodeState, place, keys) -> Bool[Array, "B W"]:
  """Posterior sampling inside a set: what a step of its grid of noise levels reveals.

  The schedule is linear: with n steps left each is revealed with probability 1 / n.
  """
  _, steps = _budget(decoder, state)
  uniform = jax.vmap(lambda k: jax.random.uniform(k, place.shape[-1:]))(keys)
  return uniform * jnp.maximum(steps - state.since, 1)[:, None] < 1


def _budget(decoder: Decoder, state: DecodeState):
  """Tokens of the row, set or window that is being generated, and steps for them."""
  total = state.total
  if decoder.single_set and decoder.decode.window is not None:
    total = jnp.full_like(total, decoder.decode.window)
  elif not decoder.singletons and not decoder.single_set:
    total = current_set(state).sum(-1)
  return total, jnp.ceil(total / decoder.decode.tokens_per_step).astype(jnp.int32)


def _in_window(decoder: Decoder, state: DecodeState, place) -> Bool[Array, "B P"]:
  """Masked diffusion in windows: the positions of the first that is not complete."""
  first = state.prompt_length * (not decoder.decode.aligned)
  of = lambda at: (at - first[:, None]) // decoder.decode.window
  missing = state.wanted & ~state.committed
  length = state.tokens.shape[-1]
  gap = jnp.where(missing, jnp.arange(length)[None, :], length).min(-1, keepdims=True)
  return of(place) == of(gap)


def between(total: Int[Array, "*B"], done: Int[Array, "*B"], steps: Int[Array, "*B"]):
  """round(t total) - round(t' total) for t = 1 - done / steps and the next t'.

  Exact, halves to the even number, as the published schedule rounds.
  """

  def rounded(done):
    whole, rest = jnp.divmod(total * (steps - done), jnp.maximum(steps, 1))
    up = (2 * rest > steps) | ((2 * rest == steps) & (whole % 2 == 1))
    return whole + up

  return rounded(done) - rounded(done + 1)


def settle(
  decoder: Decoder,
  before: DecodeState,
  after: DecodeState,
  new: Bool[Array, "B S"],
  going: Bool[Array, " B"],
) -> DecodeState:
  """`after` once the new positions are committed: which are final, and their ranks.

  Args:
    decoder: says which sets there are.
    before: the state before the step.
    after: with the cache of after the step.
    new: what the step commits.
    going: which rows took part.
  """
  committed = before.committed | new
  since = before.since + going
  after = after.replace(committed=committed, since=since)
  if decoder.singletons:
    return _hand_out_ranks(decoder, before, after, new)
  if decoder.single_set and decoder.decode.window is not None:
    every = jnp.broadcast_to(jnp.arange(new.shape[-1]), new.shape)
    window = _in_window(decoder, before, every) & before.wanted
  else:
    window = current_set(before) & (before.wanted | before.committed)
  whole = (committed | ~window).all(-1) & going
  return after.replace(since=jnp.where(whole, 0, since))


def _hand_out_ranks(decoder, before, after, new) -> DecodeState:
  """The next ranks go to what the next step reads."""
  drawn = before.turn if decoder.reads_as_drawn else None
  ready, waiting = new, before.waiting
  if decoder.backlog:
    text = jnp.broadcast_to(jnp.arange(new.shape[-1]), new.shape)
    key = text if drawn is None else drawn
    reached = jnp.where(new | before.fresh, key, -1).max(-1, keepdims=True)
    passed = (key <= reached) & new.any(-1, keepdims=True)
    in_turn = jnp.ones_like(new)
    if decoder.decode.candidates == "order":
      missing = before.wanted & ~after.committed
      in_turn = before.turn < _lowest(before.turn, missing)
    waiting |= new
    ready = waiting & jnp.where(before.wanted, in_turn, passed)
    waiting &= ~ready
  next_rank = before.next_rank
  rank = jnp.where(ready, next_rank[:, None] + line(ready, drawn), before.rank)
  return after.replace(
    rank=rank.astype(jnp.int32),
    next_rank=(next_rank + ready.sum(-1)).astype(jnp.int32),
    fresh=ready,
    waiting=waiting,
  )
