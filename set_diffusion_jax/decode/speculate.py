"""Exact speculative decoding of singletons in a drawn order (METHOD section 5).

A round takes two forward passes. The first drafts the next D tokens of the order, each
from q_r = p(. | what is committed). The second reads the drafts as clean tokens next to
a masked copy of each, and of the position after them, which gives
p_r = p(. | what is committed, drafts before r). In the order, draft r is accepted with
probability min(1, p_r / q_r); the first that is not is replaced by a draw from
max(p_r - q_r, 0), normalised, and ends the round; if all are accepted, the position
after them is drawn from its p. What is committed follows one-token-at-a-time decoding
of the same order exactly.

Legend: B rows, S positions of the text, D drafts, V tokens of the vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from set_diffusion_jax.decode.choose import distribution, probability
from set_diffusion_jax.decode.commit import commit
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.look import look, look_at
from set_diffusion_jax.decode.slots import first_slots, marked, write_slots
from set_diffusion_jax.decode.state import DecodeState
from set_diffusion_jax.diffusion.draws import decoding_keys


def speculative_step(decoder: Decoder, params, state: DecodeState) -> DecodeState:
  """One round: drafts, and the commitment of those that are accepted and one more."""
  length, count = state.tokens.shape[-1], decoder.window
  missing = state.wanted & ~state.committed
  place = first_slots(missing, state.turn, count + 1)  # the drafts, and one more
  there = (place < length) & decoder.unfinished(state)[:, None]
  keys = decoding_keys(state.key, state.steps)

  propose = lambda logits, place: distribution(decoder.decode, logits)
  state, _, q = look(decoder, params, state, propose)
  token = draw(keys.token, q)

  drafts = jnp.where(there, place, length)[:, :count]
  ahead = state.next_rank[:, None] + jnp.arange(count)[None, :]
  drafted = state.replace(
    tokens=write_slots(state.tokens, drafts, token),
    rank=write_slots(state.rank, drafts, ahead),
  )
  before = _with_drafts_before(state.committed, drafts)
  verified, logits = look_at(decoder, params, drafted, drafts, place, before=before)
  p = distribution(decoder.decode, logits)

  accepted = accept(keys.accept, p[:, :count], q, token) & there[:, :count]
  kept = jnp.cumprod(accepted, axis=-1).astype(bool)
  n = kept.sum(-1)
  last = draw(keys.last, replacement(p, q, n)[:, None])

  slot = jnp.arange(count + 1)[None, :]
  token = jnp.where(slot == n[:, None], last, jnp.pad(token, ((0, 0), (0, 1))))
  state = state.replace(
    layers=verified.layers,
    cached=state.cached | marked(drafts, kept, length),
    steps=verified.steps,
  )
  chosen = there & (slot <= n[:, None])
  return commit(decoder, state, place, token, probability(logits, token), chosen)


def _with_drafts_before(committed, drafts: Int[Array, "B D"]) -> Bool[Array, "B D1 S"]:
  """What counts as committed for each masked copy: also the drafts before it."""
  length, count = committed.shape[-1], drafts.shape[-1]
  first = lambda r: jnp.broadcast_to(jnp.arange(count) < r, drafts.shape)
  earlier = lambda r: marked(drafts, first(r), length)
  return committed[:, None] | jnp.stack([earlier(r) for r in range(count + 1)], axis=1)


def draw(keys: Key[Array, " B"], p: Float[Array, "B P V"]) -> Int[Array, "B P"]:
  """A token from each distribution."""
  # mode: whatever JAX_HIGH_DYNAMIC_RANGE_GUMBEL says.
  sample = lambda key, p: jax.random.categorical(key, jnp.log(p), axis=-1, mode="low")
  return jax.vmap(sample)(keys, p)


def accept(
  keys: Key[Array, " B"],
  p: Float[Array, "B D V"],
  q: Float[Array, "B D V"],
  token: Int[Array, "B D"],
) -> Bool[Array, "B D"]:
  """Which drafts are accepted, each with probability min(1, p / q) of its token."""
  at = lambda x: jnp.take_along_axis(x, token[..., None], axis=-1)[..., 0]
  uniform = jax.vmap(lambda key: jax.random.uniform(key, token.shape[1:]))(keys)
  return uniform * at(q) < at(p)


def replacement(
  p: Float[Array, "B D1 V"], q: Float[Array, "B D V"], n: Int[Array, " B"]
) -> Float[Array, "B V"]:
  """What position n is drawn from, up to a constant: max(p - q, 0), or p after all.

  Where p and q are equal but for rounding and the draft was rejected all the same,
  p - q can be zero throughout; then it is p.
  """
  at = lambda x: jnp.take_along_axis(x, n[:, None, None], axis=1)[:, 0]
  proposed = at(jnp.pad(q, ((0, 0), (0, 1), (0, 0))))
  rest = jnp.maximum(at(p) - proposed, 0)
  return jnp.where(rest.sum(-1, keepdims=True) > 0, rest, at(p))
