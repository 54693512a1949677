"""Generation as one compiled loop over a small state (METHOD section 5).

Each step feeds the tokens that became final in the step before (fresh, clean stream)
and candidates (noisy stream) against the cache; the fresh ones enter the cache, and a
commit rule picks among the candidates:

    cache of final tokens | fresh F | candidates W
    fresh token           sees the cache and fresh tokens up to its own set
    candidate             sees the cache, all fresh tokens, and its own set

A token is final once its set is complete. Methods differ in the sets: where each
position is a set of its own, a commit is final at once, and ranks are handed out in the
order of commitment. Elsewhere ranks are those of the order, the candidates are all
positions of the first incomplete set, and those already committed are seen by the
others as they are.

Keys and values of a final token never change, so this equals a forward pass without a
cache. The cache is indexed by text position, whatever the order.

Legend: B rows, S positions of the text, F fresh slots, W candidates.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.decode.choose import allowed_logits, choose
from set_diffusion_jax.decode.state import DecodeState, Task
from set_diffusion_jax.index import TokenIndex, noisy_stream
from set_diffusion_jax.model import Cache
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.order import Order

# Positions of a prompt that are fed at once.
PREFILL = 256


def _first(mask: Bool[Array, "B S"], by: Int[Array, "B S"], count: int):
  """The `count` first positions of a mask in ascending `by`; S where it has fewer."""
  length = mask.shape[-1]
  lowest, place = jax.lax.top_k(-jnp.where(mask, by, 2**30), min(count, length))
  place = jnp.where(lowest > -(2**30), place, length)
  pad = count - place.shape[-1]
  return jnp.pad(place, ((0, 0), (0, pad)), constant_values=length)


def _at(x: Array, place: Int[Array, "B P"]) -> Array:
  """Values of [B, S] at positions; of the last position where a slot is unused."""
  return jnp.take_along_axis(x, jnp.minimum(place, x.shape[-1] - 1), axis=-1)


def _marked(place: Int[Array, "B P"], on: Bool[Array, "B P"], length: int):
  """A mask [B, S] of the positions that are on."""
  mark = jax.vmap(lambda at: jnp.zeros(length, bool).at[at].set(True, mode="drop"))
  return mark(jnp.where(on, place, length))


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Decoding of one objective; every method is a pure function.

  Attributes:
    objective: what was trained.
    decode: how to decode.
    widest: positions of the largest set of the orders that are decoded.
    late: given tokens that may become fresh in one step, over all rows at most.
  """

  objective: Objective
  decode: DecodeConfig
  widest: int = 1
  late: int = 0

  @property
  def singletons(self) -> bool:
    """Whether a committed token is final at once."""
    return self.objective.one_at_a_time

  @property
  def single_set(self) -> bool:
    """Whether the whole text is one set (masked diffusion): nothing is ever cached."""
    return self.objective.config.method.name == "masked"

  @property
  def most(self) -> int:
    """The most tokens that a step commits."""
    if not self.singletons:
      return self.widest
    if self.objective.one_stream:
      return 1
    fixed = math.ceil(self.decode.tokens_per_step)
    return min(fixed, self.window) if self.decode.threshold is None else self.window

  @property
  def window(self) -> int:
    """W, the candidates of a step; one-stream AR has none."""
    if self.objective.one_stream:
      return 0
    if not self.singletons:
      return self.widest
    fixed = math.ceil(self.decode.tokens_per_step)
    if self.decode.commit == "order" and self.decode.threshold is None:
      return fixed  # no other candidate could be committed
    size = max(fixed, round(self.objective.config.method.max_set_size))
    return self.decode.window or size

  @property
  def fresh(self) -> int:
    """F, the tokens that become final in a step."""
    return 0 if self.single_set else self.most + self.late

  def start(self, params, task: Task, prefill: int) -> DecodeState:
    """The state before the first step: what is given is in the cache.

    Args:
      params: of the network.
      task: what is to be generated.
      prefill: at least as many as any row has given tokens that are final.
    """
    config = self.objective.config.model
    rows, length = task.tokens.shape
    given, wanted = task.given, task.wanted
    place = jnp.broadcast_to(jnp.arange(length), given.shape)
    turn = jnp.argsort(task.order.position, axis=-1).astype(jnp.int32)
    text_turn = turn
    if not self.singletons:  # within a set, a random order
      draw = lambda key: jax.random.permutation(jax.random.fold_in(key, length), length)
      turn = jax.vmap(draw)(task.key).astype(jnp.int32)
    first = jnp.where(wanted, place, length).min(-1)
    final, late = given, jnp.zeros_like(given)
    if self.singletons:
      if self.decode.promotion == "passed":
        late = given & (place > first[:, None])
        final = given & ~late
      rank = jnp.cumsum(final, axis=-1) - 1
      next_rank = final.sum(-1)
    else:
      rank = jnp.take_along_axis(task.order.rank, text_turn, axis=-1)
      # A set is read once all before it are complete: its keys depend on them.
      open_ = jnp.where(wanted, rank, length).min(-1, keepdims=True)
      final = given & (rank < open_)
      next_rank = jnp.zeros(rows, jnp.int32)
    cached = 0 if self.single_set else length
    shape = (config.layers, rows, config.key_heads, cached, config.head_width)
    empty = jnp.zeros(shape, config.dtype)
    zero = jnp.zeros(rows, jnp.int32)
    none = jnp.zeros_like(given)
    state = DecodeState(
      tokens=jnp.where(given, task.tokens, self.objective.mask_id),
      committed=given,
      wanted=wanted,
      rank=rank.astype(jnp.int32),
      next_rank=next_rank.astype(jnp.int32),
      fresh=none,
      confidence=jnp.zeros(given.shape),
      late=late,
      cached=none,
      k=empty,
      v=empty,
      turn=turn,
      prompt_length=first.astype(jnp.int32),
      total=wanted.sum(-1).astype(jnp.int32),
      key=task.key,
      steps=zero,
      since=zero,
    )
    if self.single_set:
      return state
    if self.objective.one_stream:  # the last token is what the first step reads
      last = final & (state.rank == state.next_rank[:, None] - 1)
      state, final = state.replace(fresh=last), final & ~last
    # What is final is fed by rank in pieces; a set must not be torn apart.
    most = min(PREFILL, max(prefill, 1), self.objective.config.data.length)
    piece = -(-most // self.widest) * self.widest
    if prefill == 0:
      return state
    fed = _first(final, state.rank * length + place, -(-prefill // piece) * piece)
    pieces = jnp.moveaxis(fed.reshape(rows, -1, piece), 1, 0)
    unused = fed[:, :0]
    feed = lambda state, fed: (self._feed(params, state, fed, unused)[1], None)
    return jax.lax.scan(feed, state, pieces)[0]

  def unfinished(self, state: DecodeState) -> Bool[Array, " B"]:
    """Which rows go on: something is wanted, and no EOS ends the text before it."""
    missing = state.wanted & ~state.committed
    if not self.decode.stop_at_eos:
      return missing.any(-1)
    length = state.tokens.shape[-1]
    place = jnp.arange(length)[None, :]
    hole = jnp.where(missing, place, length).min(-1, keepdims=True)
    ends = state.wanted & (state.tokens == self.objective.eos_id) & (place < hole)
    return missing.any(-1) & ~ends.any(-1)

  def step(self, params, state: DecodeState) -> DecodeState:
    """One forward pass and the commitment that it allows."""
    going = self.unfinished(state)
    if not self.singletons:
      state, waits = self._next_set(state)
      going &= ~waits
    fresh = _first(state.fresh, state.rank, self.fresh)
    if self.objective.one_stream:
      h, after = self._feed(params, state, fresh, fresh[:, :0])
      place = jnp.minimum(fresh + 1, state.tokens.shape[-1])
    else:
      place = self._candidates(state)
      h, after = self._feed(params, state, fresh, place)
    logits = self._logits(params, state, h, place)
    keys = jax.vmap(jax.random.fold_in)(state.key, state.steps)
    token, confidence, margin = choose(self.decode, logits, place, keys)
    length = state.tokens.shape[-1]
    open_ = _at(state.wanted & ~state.committed, place) & (place < length)
    chosen = self._commit(state, place, open_ & going[:, None], confidence, margin)
    after = self._settle(state, after, place, chosen, going)
    where = jnp.where(chosen, place, length)
    write = jax.vmap(lambda x, at, value: x.at[at].set(value, mode="drop"))
    return after.replace(
      tokens=write(state.tokens, where, token.astype(state.tokens.dtype)),
      confidence=write(state.confidence, where, confidence),
      steps=state.steps + self.unfinished(state),
    )

  def _next_set(self, state: DecodeState) -> tuple[DecodeState, Bool[Array, " B"]]:
    """Sets of several positions: what is fresh, and which rows must wait for more.

    Fresh is the first complete set that the cache has not read. Where given tokens make
    several sets complete at once, they are read one a step.
    """
    missing = state.wanted & ~state.committed
    first = jnp.where(missing, state.rank, 2**30).min(-1, keepdims=True)
    ready = state.committed & ~state.cached & (state.rank < first)
    lowest = jnp.where(ready, state.rank, 2**30).min(-1, keepdims=True)
    fresh = ready & (state.rank == lowest)
    return state.replace(fresh=fresh), (ready & ~fresh).any(-1)

  def _logits(self, params, state: DecodeState, h, place):
    return allowed_logits(
      self.decode,
      self.objective.network.unembed(params, h),
      place,
      state.tokens,
      state.committed,
      state.prompt_length,
      self.objective.mask_id,
      self.objective.eos_id,
    )

  def _feed(self, params, state: DecodeState, fresh, candidates):
    """Feeds clean fresh tokens and candidates; the fresh ones enter the cache.

    Returns h of the slots whose logits are wanted, and the state with its new cache.
    """
    length = state.tokens.shape[-1]
    if self.single_set:
      every = Order(candidates, jnp.zeros_like(candidates))
      index = noisy_stream(every, jnp.ones_like(state.committed), length)
      return self.objective.network.hidden(params, state.tokens, index)[0], state
    at = jnp.concatenate([fresh, candidates], axis=-1)
    used = at < length
    rank = _at(state.rank, at)
    if self.singletons:  # candidates do not see one another
      ahead = jnp.arange(candidates.shape[-1])[None, :]
      rank = rank.at[:, fresh.shape[-1] :].set(state.next_rank[:, None] + ahead)
    at_text = jnp.minimum(at, length - 1)
    index = TokenIndex(at_text, rank, used, clean=fresh.shape[-1], reach=at.shape[-1])
    place = jnp.broadcast_to(jnp.arange(length), state.tokens.shape)
    seen = self._within_context(state, used.sum(-1))
    cache_index = TokenIndex(place, state.rank, seen, length, length)
    h, (k, v) = self.objective.network.hidden(
      params, _at(state.tokens, at), index, Cache(state.k, state.v, cache_index)
    )
    write = jax.vmap(
      lambda cache, new, at: cache.at[:, :, at].set(new, mode="drop"),
      in_axes=(1, 1, 0),
      out_axes=1,
    )
    clean = slice(0, fresh.shape[-1])
    state = state.replace(
      k=write(state.k, k[:, :, :, clean].astype(state.k.dtype), fresh),
      v=write(state.v, v[:, :, :, clean].astype(state.v.dtype), fresh),
      cached=seen | _marked(fresh, fresh < length, length),
    )
    wanted = slice(fresh.shape[-1], None) if candidates.shape[-1] else clean
    return h[:, wanted], state

  def _within_context(self, state: DecodeState, fed: Int[Array, " B"]):
    """What the cache still holds where the text outgrows the training length.

    The tokens of lowest rank are dropped until cache and fed tokens fit.
    """
    context, length = self.objective.config.data.length, state.tokens.shape[-1]
    if length <= context:
      return state.cached
    excess = state.cached.sum(-1) + fed - context
    ranks = jnp.sort(jnp.where(state.cached, state.rank, 2**30), axis=-1)
    last = jnp.take_along_axis(ranks, jnp.maximum(excess - 1, 0)[:, None], axis=-1)
    return state.cached & ((excess[:, None] <= 0) | (state.rank > last))

  def _candidates(self, state: DecodeState) -> Int[Array, "B W"]:
    """Positions of the tokens that a step looks at; S where there are fewer."""
    length = state.tokens.shape[-1]
    place = jnp.broadcast_to(jnp.arange(length), state.tokens.shape)
    missing = state.wanted & ~state.committed
    if self.single_set:
      return place
    if not self.singletons:
      there = state.wanted | state.committed
      return _first(there & self._current(state), place, self.window)
    if self.decode.commit == "order":
      return _first(missing, state.turn, self.window)
    first = jnp.where(missing, place, length).min(-1, keepdims=True)
    return _first(missing & (place < first + self.window), place, self.window)

  def _current(self, state: DecodeState) -> Bool[Array, "B S"]:
    """The positions of the first incomplete set."""
    missing = state.wanted & ~state.committed
    first = jnp.where(missing, state.rank, 2**30).min(-1, keepdims=True)
    return state.rank == first

  def _commit(self, state: DecodeState, place, open_, confidence, margin):
    """Which candidates a step commits: bool [B, W]."""
    method = self.objective.config.method
    if self.objective.one_stream or (
      method.name == "general" and not self.objective.has_levels
    ):
      return open_  # fully masked sets are generated at once
    if self.single_set and self.decode.window is not None:
      # Windows from left to right, one after another.
      window = (place - state.prompt_length[:, None]) // self.decode.window
      open_ &= window == self._window_of(state, state.committed)[:, None]
    total, done = state.total, state.since
    if self.single_set and self.decode.window is not None:
      total = jnp.full_like(total, self.decode.window)
    elif not self.singletons and not self.single_set:
      total = self._current(state).sum(-1)
    steps = jnp.ceil(total / self.decode.tokens_per_step).astype(jnp.int32)
    if self.decode.commit == "posterior":
      keys = jax.vmap(lambda k, n: jax.random.fold_in(jax.random.fold_in(k, n), 1))(
        state.key, state.steps
      )
      uniform = jax.vmap(lambda k: jax.random.uniform(k, place.shape[-1:]))(keys)
      return open_ & (uniform * jnp.maximum(steps - done, 1)[:, None] < 1)
    count = _between(total, done, steps)
    count = jnp.where(done < steps, count, math.ceil(self.decode.tokens_per_step))
    score = {"order": -_at(state.turn, place), "margin": margin}
    score = score.get(self.decode.commit, confidence)
    score = jnp.where(open_, score.astype(jnp.float32), -jnp.inf)
    place_in_line = jnp.argsort(jnp.argsort(-score, axis=-1, stable=True), axis=-1)
    chosen = place_in_line < count[:, None]
    if self.decode.threshold is not None:
      chosen |= confidence >= self.decode.threshold
    return chosen & open_

  def _window_of(self, state: DecodeState, committed) -> Int[Array, " B"]:
    """Masked diffusion with decode.window: the first window that is not complete."""
    length = state.tokens.shape[-1]
    missing = state.wanted & ~committed
    first = jnp.where(missing, jnp.arange(length)[None, :], length).min(-1)
    return (first - state.prompt_length) // self.decode.window

  def _settle(self, before: DecodeState, after: DecodeState, place, chosen, going):
    """The state after a commitment, but for the tokens: which are final now."""
    length = before.tokens.shape[-1]
    new = _marked(place, chosen, length)
    committed = before.committed | new
    rank, next_rank, late = before.rank, before.next_rank, before.late
    since = before.since + going
    if self.singletons:
      fresh = new
      if self.late:
        text = jnp.broadcast_to(jnp.arange(length), new.shape)
        passed = jnp.where(new | before.fresh, text, -1).max(-1, keepdims=True)
        promoted = late & (text <= passed) & new.any(-1, keepdims=True)
        fresh, late = fresh | promoted, late & ~promoted
      by = before.turn if self.decode.commit == "order" else None
      by = jnp.arange(length)[None, :] if by is None else by
      line = jnp.argsort(jnp.argsort(jnp.where(fresh, by, 2**30), axis=-1), axis=-1)
      rank = jnp.where(fresh, next_rank[:, None] + line, rank)
      next_rank = next_rank + fresh.sum(-1)
    else:
      there = before.wanted | before.committed
      current = self._current(before) & there
      fresh = before.fresh
      whole = (committed | ~current).all(-1) & going
      if self.single_set and self.decode.window is not None:
        same = self._window_of(before, committed)
        whole = same != self._window_of(before, before.committed)
      since = jnp.where(whole, 0, since)
    return after.replace(
      committed=committed,
      rank=rank.astype(jnp.int32),
      next_rank=next_rank.astype(jnp.int32),
      fresh=fresh,
      late=late,
      since=since,
    )


def _between(total, done, steps):
  """round(t total) - round(t' total) for t = 1 - done / steps and the next t'.

  Exact, halves to the even number, as the published schedule rounds.
  """

  def rounded(done):
    whole, rest = jnp.divmod(total * (steps - done), jnp.maximum(steps, 1))
    up = (2 * rest > steps) | ((2 * rest == steps) & (whole % 2 == 1))
    return whole + up

  return rounded(done) - rounded(done + 1)


def decode(
  decoder: Decoder, params, state: DecodeState, most: int | Array
) -> DecodeState:
  """At most so many steps, until every row is finished."""

  def going(carry):
    state, count = carry
    return decoder.unfinished(state).any() & (count < most)

  return jax.lax.while_loop(
    going,
    lambda carry: (decoder.step(params, carry[0]), carry[1] + 1),
    (state, jnp.zeros((), jnp.int32)),
  )[0]
