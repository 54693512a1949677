"""The parts of a decoding step: its sizes, the first state, and the forward pass.

Each step feeds the tokens that became final in the step before (fresh, clean stream)
and candidates (noisy stream) against the cache; the fresh ones enter the cache. Sets of
several positions are fed on their own once they are complete.

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
from jaxtyping import Array, Bool, Float, Int

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.decode.choose import allowed_logits
from set_diffusion_jax.decode.slots import NEVER, at_slots, first_slots, line, marked
from set_diffusion_jax.decode.state import DecodeState, Task
from set_diffusion_jax.diffusion.draws import split_rows
from set_diffusion_jax.diffusion.index import TokenIndex, noisy_stream
from set_diffusion_jax.diffusion.order import Order, random_turns
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.model import Cache

# Positions of a prompt that are fed at once.
PREFILL = 256


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Decoding of one objective; every method is a pure function.

  Attributes:
    objective: what was trained.
    decode: how to decode.
    widest: positions of the largest set of the orders that are decoded; in posterior
      sampling of singletons, of what is revealed at once.
  """

  objective: Objective
  decode: DecodeConfig
  widest: int = 1

  @property
  def singletons(self) -> bool:
    """Whether a committed token is final at once."""
    return self.objective.one_at_a_time

  @property
  def single_set(self) -> bool:
    """Whether the whole text is one set (masked diffusion): nothing is ever cached."""
    return self.objective.config.method.single_set

  @property
  def takes_turns(self) -> bool:
    """Of singletons: whether candidates are the next ones of the drawn order."""
    options = self.decode
    return options.commit in ("order", "posterior") or options.candidates == "order"

  @property
  def backlog(self) -> bool:
    """Whether more tokens can become final in a step than it commits."""
    options = self.decode
    waits = options.promotion == "passed" or options.candidates == "order"
    return self.singletons and waits

  @property
  def window(self) -> int:
    """W, the candidates of a step; one-stream AR has none."""
    options = self.decode
    if self.objective.one_stream:
      return 0
    if self.single_set and options.window is not None:
      return min(options.window, self.widest)
    if not self.singletons:
      return self.widest
    if options.drafts is not None:
      return options.drafts
    if options.commit == "posterior":
      return self.widest  # an interval of the grid is revealed at once
    fixed = math.ceil(options.tokens_per_step)
    if options.commit == "order" and options.threshold is None:
      return fixed  # no other candidate could be committed
    config = self.objective.config
    return options.window or max(fixed, config.method.max_active(config.data.length))

  @property
  def fresh(self) -> int:
    """F, the final tokens that a step reads: the most that a step commits."""
    options = self.decode
    if not self.singletons:
      return 0  # a set is read once, not in each of its steps: see `reads`
    if self.objective.one_stream or options.drafts is not None:
      return 1
    if options.threshold is not None or options.commit == "posterior":
      return self.window
    return min(math.ceil(options.tokens_per_step), self.window)

  @property
  def reads_ahead(self) -> bool:
    """Whether there can be more final tokens than a step reads."""
    return self.backlog or not (self.singletons or self.single_set)

  @property
  def reads(self) -> int:
    """Final tokens that are read at once, without candidates, where there are more."""
    return self.fresh if self.singletons else self.widest

  @property
  def reads_as_drawn(self) -> bool:
    """Of singletons: whether what became final together is read in the drawn order."""
    return self.takes_turns or self.decode.fresh_order == "drawn"

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
    set_ = jnp.take_along_axis(task.order.rank, turn, axis=-1)
    turn_keys, step_keys = split_rows(task.key)
    if not self.singletons:  # within a set, a random order
      turn = random_turns(turn_keys, length)
    first = jnp.where(wanted, place, length).min(-1)
    final, waiting = given, jnp.zeros_like(given)
    if self.singletons:
      if self.decode.promotion == "passed":
        waiting = given & (place > first[:, None])
        final = given & ~waiting
      rank = line(final, turn if self.reads_as_drawn else None)
      next_rank = final.sum(-1)
    else:
      # A set is read once all before it are complete: its keys depend on them.
      rank = set_
      open_ = jnp.where(wanted, rank, length).min(-1, keepdims=True)
      final = given & (rank < open_)
      next_rank = open_[:, 0]
    cached = 0 if self.single_set else length
    heads, size = config.key_heads, config.head_width
    # Behind a barrier: the compiler would else work out what zeros attend to.
    empty = lambda *shape: jax.lax.optimization_barrier(
      jnp.zeros((rows, heads, *shape), config.dtype)
    )
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
      waiting=waiting,
      cached=none,
      layers=[(empty(size, cached), empty(cached, size))] * config.layers,
      turn=turn,
      interval=set_,
      prompt_length=first.astype(jnp.int32),
      end=jnp.where(given, place + 1, 0).max(-1).astype(jnp.int32),
      total=wanted.sum(-1).astype(jnp.int32),
      key=step_keys,
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
    params = self.ready(params)
    by = jnp.argsort(jnp.argsort(state.rank, axis=-1), axis=-1)
    fed = first_slots(final, by, -(-prefill // piece) * piece)
    pieces = jnp.moveaxis(fed.reshape(rows, -1, piece), 1, 0)
    unused = fed[:, :0]
    feed = lambda state, fed: (self.feed(params, state, fed, unused)[1], None)
    return jax.lax.scan(feed, state, pieces)[0]

  def ready(self, params: dict) -> dict:
    """Parameters as `feed` and `step` take them; for once before a loop."""
    return params if self.single_set else self.objective.network.by_layer(params)

  def unfinished(self, state: DecodeState) -> Bool[Array, " B"]:
    """Which rows go on: something is wanted, and no EOS ends the text before it."""
    missing = state.wanted & ~state.committed
    if not self.decode.stop_at_eos:
      return missing.any(-1)
    length = state.tokens.shape[-1]
    place = jnp.arange(length)[None, :]
    hole = jnp.where(missing, place, length).min(-1, keepdims=True)
    ends = state.wanted & (state.tokens == self.objective.eos_id) & (place < hole)
    ends &= place >= state.end[:, None]
    return missing.any(-1) & ~ends.any(-1)

  def logits(
    self, params, state: DecodeState, h, place: Int[Array, "B W"]
  ) -> Float[Array, "B W V"]:
    """Logits of candidates, after all that the options change in them."""
    return allowed_logits(
      self.decode,
      self.objective.network.unembed(params, h),
      place,
      place >= state.end[:, None],
      state.tokens,
      state.committed,
      state.prompt_length,
      self.objective.mask_id,
      self.objective.eos_id,
      self.objective.unused,
    )

  def feed(
    self,
    params,
    state: DecodeState,
    fresh: Int[Array, "B F"],
    candidates: Int[Array, "B W"],
  ):
    """Feeds clean fresh tokens and candidates; the fresh ones enter the cache.

    Candidates that are singletons are masked, whatever the text holds there, and do
    not see one another: each has the rank of one that would follow the ones before it.

    Args:
      params: of `ready`.
      state: before.
      fresh: positions of the clean tokens, those of one set together.
      candidates: positions of the noisy ones.

    Returns h of the slots whose logits are wanted, and the state with its new cache.
    """
    length = state.tokens.shape[-1]
    if self.single_set:
      place = jnp.broadcast_to(jnp.arange(length), state.tokens.shape)
      every = Order(place, jnp.zeros_like(place))
      index = noisy_stream(every, jnp.ones_like(state.committed), length)
      h, _ = self.objective.network.hidden(params, state.tokens, index)
      at = jnp.minimum(candidates, length - 1)[..., None]
      return jnp.take_along_axis(h, at, axis=1), state
    at = jnp.concatenate([fresh, candidates], axis=-1)
    used = at < length
    rank, tokens = at_slots(state.rank, at), at_slots(state.tokens, at)
    if self.singletons:
      ahead = jnp.arange(candidates.shape[-1])[None, :]
      noisy = (slice(None), slice(fresh.shape[-1], None))
      rank = rank.at[noisy].set(state.next_rank[:, None] + ahead)
      tokens = tokens.at[noisy].set(self.objective.mask_id)
    at_text = jnp.minimum(at, length - 1)
    index = TokenIndex(at_text, rank, used, clean=fresh.shape[-1], reach=at.shape[-1])
    place = jnp.broadcast_to(jnp.arange(length), state.tokens.shape)
    fed = marked(fresh, fresh < length, length)
    held = self._within_context(state, used.sum(-1)) | fed
    cache_index = TokenIndex(place, state.rank, held, length, length)
    h, layers = self.objective.network.hidden(
      params, tokens, index, Cache(state.layers, cache_index, fresh)
    )
    state = state.replace(layers=layers, cached=held, fresh=state.fresh & ~fed)
    clean = slice(0, fresh.shape[-1])
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
    ranks = jnp.sort(jnp.where(state.cached, state.rank, NEVER), axis=-1)
    last = jnp.take_along_axis(ranks, jnp.maximum(excess - 1, 0)[:, None], axis=-1)
    return state.cached & ((excess[:, None] <= 0) | (state.rank > last))
