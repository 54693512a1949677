"""Generation as one compiled loop over a small state (METHOD section 5)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from set_diffusion_jax.decode import rules
from set_diffusion_jax.decode.choose import choose
from set_diffusion_jax.decode.commit import commit
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.look import look
from set_diffusion_jax.decode.speculate import speculative_step
from set_diffusion_jax.decode.state import DecodeState
from set_diffusion_jax.diffusion.draws import decoding_keys


def step(decoder: Decoder, params, state: DecodeState) -> DecodeState:
  """One look at the candidates, and the commitment that it allows.

  Args:
    decoder: says how.
    params: of `Decoder.ready`.
    state: is not finished in every row.
  """
  if decoder.decode.drafts is not None:
    return speculative_step(decoder, params, state)
  keys = decoding_keys(state.key, state.steps)
  tokens = lambda logits, place: choose(decoder.decode, logits, place, keys.token)
  state, place, found = look(decoder, params, state, tokens)
  token, confidence, margin = found
  chosen = rules.chosen(decoder, state, place, confidence, margin, keys.reveal)
  return commit(decoder, state, place, token, confidence, chosen)


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
