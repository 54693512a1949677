"""Generation as one compiled loop over a small state (METHOD section 5).

Each step feeds the tokens committed in the step before (fresh, clean stream) and masked
candidates (noisy stream) against the cache. The fresh tokens enter the cache, some of
the candidates are committed and are the next step's fresh tokens:

    cache of earlier tokens | fresh F | candidates W
    fresh token             sees the cache and fresh tokens up to itself
    candidate               sees the cache, all fresh tokens, and itself

The keys and values of a committed token never change, so this equals a forward pass
without a cache. The cache is indexed by text position, whatever the order.

Legend: B rows, S positions of the text, F fresh slots, W candidates.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.index import TokenIndex
from set_diffusion_jax.model import Cache
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.rng import split_rows


@flax.struct.dataclass
class DecodeState:
  """What a decoding step carries to the next one.

  Attributes:
    tokens: [B, S], [MASK] where nothing is committed yet.
    committed: [B, S], which positions hold a token.
    rank: [B, S], when a position was committed; consecutive from 0.
    next_rank: [B], the rank that comes next.
    fresh: [B, F], positions committed but not in the cache; S where a slot is unused.
    cached: [B, S], which positions the cache holds.
    k, v: [N, B, G, S, Dh], the cache, of G heads of keys and values.
    turn: [B, S], each position's place in the drawn order.
    key: [B], of the row's own draws.
    steps: [B], forward passes taken while the row was unfinished.
  """

  tokens: Int[Array, "B S"]
  committed: Bool[Array, "B S"]
  rank: Int[Array, "B S"]
  next_rank: Int[Array, " B"]
  fresh: Int[Array, "B F"]
  cached: Bool[Array, "B S"]
  k: Float[Array, "N B G S Dh"]
  v: Float[Array, "N B G S Dh"]
  turn: Int[Array, "B S"]
  key: Key[Array, " B"]
  steps: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Decoding of one objective; every method is a pure function."""

  objective: Objective
  decode: DecodeConfig

  @property
  def window(self) -> int:
    """W, the candidates of a step; one-stream AR has none."""
    if self.objective.one_stream:
      return 0
    if self.decode.commit == "order":
      return self.decode.tokens_per_step  # no other candidate could be committed
    size = self.decode.window or round(self.objective.config.method.max_set_size)
    return max(size, self.decode.tokens_per_step)

  def start(
    self,
    params,
    prompt: Int[Array, "B S"],
    given: Bool[Array, "B S"],
    key: Key[Array, " B"],
    prefill: int,
  ) -> DecodeState:
    """The state before the first step: the prompt is in the cache but for its end.

    Args:
      params: of the network.
      prompt: tokens where `given`, anything elsewhere.
      given: the prompt, a run of positions from 0 on in each row.
      key: one a row.
      prefill: how many positions to feed at once: the longest prompt minus one.
    """
    config = self.objective.config.model
    rows, length = prompt.shape
    count = given.sum(-1)
    order_key, key = split_rows(key)
    row = jnp.arange(rows)
    batch = Batch(prompt, jnp.ones_like(given), given, row)
    order = self.objective.draw_order(batch, order_key, False)
    shape = (config.layers, rows, config.key_heads, length, config.head_width)
    empty = jnp.zeros(shape, config.dtype)
    unused = jnp.full((rows, self.decode.tokens_per_step), length)
    positions = jnp.broadcast_to(jnp.arange(length), prompt.shape)
    state = DecodeState(
      tokens=jnp.where(given, prompt, self.objective.mask_id),
      committed=given,
      rank=positions,
      next_rank=count,
      fresh=unused.at[:, 0].set(jnp.where(count > 0, count - 1, length)),
      cached=jnp.zeros_like(given),
      k=empty,
      v=empty,
      turn=jnp.argsort(order.position, axis=-1).astype(jnp.int32),
      key=key,
      steps=jnp.zeros(rows, jnp.int32),
    )
    if not prefill:
      return state
    fed = positions[:, :prefill]
    fed = jnp.where(fed < count[:, None] - 1, fed, length)
    return self._feed(params, state, fed, unused[:, :0])[1]

  def unfinished(self, state: DecodeState) -> Bool[Array, " B"]:
    """Which rows still have a position to fill."""
    return ~state.committed.all(-1)

  def step(self, params, state: DecodeState) -> DecodeState:
    """One forward pass and the commitment that it allows."""
    length = state.tokens.shape[-1]
    if self.objective.one_stream:
      h, after = self._feed(params, state, state.fresh, state.fresh[:, :0])
      place = jnp.minimum(state.fresh + 1, length)
    else:
      place = self._candidates(state)
      h, after = self._feed(params, state, state.fresh, place)
    token, confidence = self._choose(params, state, h)
    place, token = self._commit(place, token, confidence, length)
    added = (place < length).sum(-1)
    turn = jnp.cumsum(place < length, axis=-1) - 1
    write = jax.vmap(lambda x, at, value: x.at[at].set(value, mode="drop"))
    return after.replace(
      tokens=write(state.tokens, place, token),
      committed=write(state.committed, place, jnp.ones_like(place, bool)),
      rank=write(state.rank, place, state.next_rank[:, None] + turn),
      next_rank=state.next_rank + added,
      fresh=place,
      steps=state.steps + self.unfinished(state),
    )

  def _feed(self, params, state: DecodeState, fresh, candidates):
    """Feeds clean fresh tokens and masked candidates; the fresh ones enter the cache.

    Returns h of the slots whose logits are wanted, and the state with its new cache.
    """
    length = state.tokens.shape[-1]
    slots = fresh.shape[-1] + candidates.shape[-1]
    at = jnp.concatenate([fresh, candidates], axis=-1)
    used = at < length
    at_text = jnp.minimum(at, length - 1)
    look = lambda x: jnp.take_along_axis(x, at_text, axis=-1)
    ahead = jnp.arange(candidates.shape[-1])[None, :]
    rank = look(state.rank)
    rank = rank.at[:, fresh.shape[-1] :].set(state.next_rank[:, None] + ahead)
    index = TokenIndex(at_text, rank, used, clean=fresh.shape[-1], reach=slots)
    place = jnp.broadcast_to(jnp.arange(length), state.tokens.shape)
    cache_index = TokenIndex(place, state.rank, state.cached, length, length)
    h, (k, v) = self.objective.network.hidden(
      params, look(state.tokens), index, Cache(state.k, state.v, cache_index)
    )
    write = jax.vmap(
      lambda cache, new, at: cache.at[:, :, at].set(new, mode="drop"),
      in_axes=(1, 1, 0),
      out_axes=1,
    )
    clean = slice(0, fresh.shape[-1])
    mark = jax.vmap(lambda cached, at: cached.at[at].set(True, mode="drop"))
    state = state.replace(
      k=write(state.k, k[:, :, :, clean].astype(state.k.dtype), fresh),
      v=write(state.v, v[:, :, :, clean].astype(state.v.dtype), fresh),
      cached=mark(state.cached, fresh),
    )
    wanted = slice(fresh.shape[-1], None) if candidates.shape[-1] else clean
    return h[:, wanted], state

  def _candidates(self, state: DecodeState) -> Int[Array, "B W"]:
    """Positions of the masked tokens that a step looks at; S where there are fewer."""
    length = state.tokens.shape[-1]
    place = jnp.broadcast_to(jnp.arange(length), state.tokens.shape)
    urgency = state.turn
    eligible = ~state.committed
    if self.decode.commit == "confidence":
      urgency = place
      first = jnp.where(eligible, place, length).min(-1, keepdims=True)
      eligible &= place < first + self.window
    urgency = jnp.where(eligible, urgency, length)
    window = min(self.window, length)
    lowest, place = jax.lax.top_k(-urgency, window)
    place = jnp.where(-lowest < length, place, length)
    # Rows of one shape, also where the text is shorter than the window.
    return jnp.pad(place, ((0, 0), (0, self.window - window)), constant_values=length)

  def _choose(self, params, state: DecodeState, h: Float[Array, "B W D"]):
    """A token for each slot, and the probability that the model gives it."""
    logits = self.objective.network.unembed(params, h).astype(jnp.float32)
    logits = logits.at[..., self.objective.mask_id].set(-jnp.inf)
    if self.decode.temperature == 0:
      token = jnp.argmax(logits, axis=-1)
    else:
      keys = jax.vmap(jax.random.fold_in)(state.key, state.steps)
      sample = jax.vmap(jax.random.categorical)
      token = sample(keys, logits / self.decode.temperature)
    probability = jax.nn.softmax(logits, axis=-1)
    return token, jnp.take_along_axis(probability, token[..., None], axis=-1)[..., 0]

  def _commit(self, place, token, confidence, length: int):
    """The positions and tokens that a step commits, in the order of their ranks."""
    if self.objective.one_stream or self.decode.commit == "order":
      return place, token
    confidence = jnp.where(place < length, confidence, -1.0)
    _, best = jax.lax.top_k(confidence, self.decode.tokens_per_step)
    best = jnp.sort(best, axis=-1)  # candidates are in the order of the text
    take = lambda x: jnp.take_along_axis(x, best, axis=-1)
    return take(place), take(token)


def decode(
  decoder: Decoder,
  params,
  prompt: Int[Array, "B S"],
  given: Bool[Array, "B S"],
  key: Key[Array, " B"],
  prefill: int,
) -> DecodeState:
  """Fills every position that is not given; see `Decoder.start` for the arguments."""
  state = decoder.start(params, prompt, given, key, prefill)
  return jax.lax.while_loop(
    lambda state: decoder.unfinished(state).any(),
    lambda state: decoder.step(params, state),
    state,
  )
