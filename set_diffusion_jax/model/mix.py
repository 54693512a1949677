"""Softmax over scores that lie in several parts."""

import jax.numpy as jnp
from jaxtyping import Array

from set_diffusion_jax.model.layers import precision

# What an excluded score becomes. Finite, so that a query without keys (padding) yields
# an average that nobody reads instead of NaN.
EXCLUDED = -1e30


def product(equation: str, x: Array, y: Array) -> Array:
  """An einsum accumulated in float32."""
  return jnp.einsum(
    equation, x, y, precision=precision(x.dtype), preferred_element_type=jnp.float32
  )


def mix(scores: list[Array], values: list[Array], dtype, own=None):
  """Softmax over the keys of all parts together, without concatenating them.

  Args:
    scores: float32 [B, H, P, K] of each part.
    values: [B, H, K, Dh] of each part.
    dtype: of the products and of the result.
    own: (score [B, H, P, 1], value [B, H, P, Dh]), one further key of each query.

  Returns:
    The mixture [B, H, P, Dh], and log sum exp of the scores, float32 [B, H, P, 1].
  """
  every = [*scores, own[0]] if own else scores
  highest = jnp.stack([s.max(-1, keepdims=True) for s in every]).max(0)
  weights = [jnp.exp(s - highest) for s in every]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  mixed = sum(
    product("bhqk,bhkd->bhqd", w.astype(dtype), v)
    for w, v in zip(weights, values, strict=False)
  )
  if own:
    mixed += weights[-1] * own[1]
  return (mixed / total).astype(dtype), highest + jnp.log(total)
