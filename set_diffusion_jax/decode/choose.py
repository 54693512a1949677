"""Which token goes to a position: what changes the logits, and the draw from them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.data.vocabulary import Runs, among


def allowed_logits(
  options: DecodeConfig,
  logits: Float[Array, "B W V"],
  place: Int[Array, "B W"],
  may_end: Bool[Array, "B W"],
  tokens: Int[Array, "B S"],
  committed: Bool[Array, "B S"] | Bool[Array, "B W S"],
  prompt_length: Int[Array, " B"],
  mask_id: int,
  eos_id: int,
  unused: Runs = (),
) -> Float[Array, "B W V"]:
  """Logits after every rule but temperature and truncation, in float32.

  [MASK], `forbidden` and `unused` ids get probability zero, and so does EOS where it
  would leave
  fewer than `minimum_length` new tokens, or would end a text (`stop_at_eos`) before
  tokens that are given (unless no other id is left). Logits of tokens that are in the
  text already are divided (positive) or multiplied (negative) by `repetition_penalty`;
  with `repetition_context` = "left" only those before the position count. From
  `length_penalty_start` new tokens on the logit of EOS grows by
  |logit| (length_penalty^n - 1) at the n-th token after it.

  Args:
    options: how to decode.
    logits: of each candidate.
    place: text position of each candidate; S where a slot is unused.
    may_end: whether no token is given after it.
    tokens: of the text.
    committed: which of them count, for all candidates of a row or for each.
    prompt_length: position of the first new token in each row.
    mask_id: the id of [MASK].
    eos_id: the id of EOS.
    unused: runs of ids without a token.
  """
  logits = logits.astype(jnp.float32)
  if options.repetition_penalty != 1:
    logits = _repetition(options, logits, place, tokens, committed)
  written = (place - prompt_length[:, None])[..., None]  # new tokens before this one
  is_eos = (jnp.arange(logits.shape[-1]) == eos_id)[None, None, :]
  if options.length_penalty != 1:
    beyond = jnp.maximum(written + 1 - options.length_penalty_start, 0)
    grown = jnp.abs(logits) * (options.length_penalty**beyond - 1)
    logits = jnp.where(is_eos, logits + grown, logits)
  never = among(unused, logits.shape[-1])
  never[[mask_id, *options.forbidden]] = True
  early = written[..., 0] < options.minimum_length
  nothing_else = never.sum() + (not never[eos_id]) == never.size
  if options.stop_at_eos and not nothing_else:
    early |= ~may_end
  excluded = never[None, None, :] | (is_eos & early[..., None])
  return jnp.where(excluded, -jnp.inf, logits)


def _repetition(options, logits, place, tokens, committed):
  """Logits with those of tokens that occur already made less likely."""
  window, vocab_size = logits.shape[1:]

  def occurring(tokens, counted, place):
    where = jnp.arange(tokens.shape[0])
    seen = counted & (
      (where[None, :] < place[:, None]) | (options.repetition_context == "both")
    )
    table = jnp.zeros((window, vocab_size), bool)
    rows = jnp.broadcast_to(jnp.arange(window)[:, None], seen.shape)
    return table.at[rows, jnp.broadcast_to(tokens[None, :], seen.shape)].max(seen)

  if committed.ndim == 2:
    committed = committed[:, None]
  occurs = jax.vmap(occurring)(tokens, committed, place)
  penalty = options.repetition_penalty
  lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
  return jnp.where(occurs, lowered, logits)


def truncated(options: DecodeConfig, logits: Float[Array, "*B V"]):
  """Logits / temperature, with all but the top-k and the nucleus excluded."""
  logits = logits / options.temperature
  if options.top_k is not None:
    least = jax.lax.top_k(logits, min(options.top_k, logits.shape[-1]))[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if options.top_p is not None:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    share = jax.nn.softmax(ordered, axis=-1)
    # A token stays while those above it hold less than top_p.
    kept = jnp.cumsum(share, axis=-1) - share < options.top_p
    least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def distribution(
  options: DecodeConfig, logits: Float[Array, "B W V"]
) -> Float[Array, "B W V"]:
  """What tokens are drawn from: all on the likeliest one at temperature 0."""
  if options.temperature == 0:
    return jax.nn.one_hot(_likeliest(logits), logits.shape[-1])
  return jax.nn.softmax(truncated(options, logits), axis=-1)


def choose(
  options: DecodeConfig,
  logits: Float[Array, "B W V"],
  place: Int[Array, "B W"],
  keys: Key[Array, " B"],
) -> tuple[Int[Array, "B W"], Float[Array, "B W"], Float[Array, "B W"]]:
  """A token for each candidate, its probability, and the margin of the likeliest one.

  Draws are keyed by row and text position. Probabilities are those of `logits`, before
  temperature and truncation. The margin is 0 unless commit=margin asks for it.
  """
  if options.temperature == 0:
    token = _likeliest(logits)
  else:
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    # mode: whatever JAX_HIGH_DYNAMIC_RANGE_GUMBEL says.
    sample = jax.vmap(jax.vmap(lambda k, x: jax.random.categorical(k, x, mode="low")))
    token = sample(fold(keys, place), truncated(options, logits))
  confidence = probability(logits, token)
  margin = jnp.zeros_like(confidence)
  if options.commit == "margin":
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    highest = jnp.exp(jax.lax.top_k(logits, 2)[0] - total)
    margin = highest[..., 0] - highest[..., 1]
  return token, confidence, margin


def probability(
  logits: Float[Array, "B W V"], token: Int[Array, "B W"]
) -> Float[Array, "B W"]:
  """Of these tokens only: a softmax would write all of them."""
  chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
  return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))


def _likeliest(logits: Float[Array, "B W V"]) -> Int[Array, "B W"]:
  """The first of the highest logits: argmax as two plain reductions, which are fast."""
  ids = jnp.arange(logits.shape[-1])[None, None, :]
  highest = logits.max(-1, keepdims=True)
  return jnp.where(logits == highest, ids, logits.shape[-1] - 1).min(-1)
