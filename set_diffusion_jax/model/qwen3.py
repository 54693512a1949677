"""The Qwen3 block: RMS norms, grouped-query attention with normed heads, SwiGLU."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Key

from set_diffusion_jax.config import ModelConfig
from set_diffusion_jax.diffusion.draws import split_rows
from set_diffusion_jax.model.attention import Shared, attention
from set_diffusion_jax.model.cached import cached_attention
from set_diffusion_jax.model.layers import (
  Dtypes,
  Linear,
  RMSNorm,
  by_row,
  dropout,
  rotate,
  saved,
)


class Qwen3Block(nn.Module):
  """Attention and MLP, each `x + f(norm(x))`; no biases."""

  config: ModelConfig
  rows: NamedSharding | None

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "B T D"],
    cached: tuple[Array, Array] | None,
    keys: Key[Array, " B"] | None,
    shared: Shared,
  ):
    """Returns h, and the cached keys and values with those that were fed clean."""
    c = self.config
    width, size, residual = (c.width,), c.head_width, 1 / (2 * c.layers)
    linear = functools.partial(Linear, dtypes=Dtypes(gradient=c.summed_in))
    key_1, key_2 = (None, None) if keys is None else split_rows(keys)

    def heads(x, count: int, name: str):
      """[B, count, T, Dh]."""
      x = saved(linear(width, (count, size), bias=False, name=name)(x))
      return jnp.moveaxis(x, 1, 2)

    def normed(x, name: str):
      return rotate(RMSNorm(c.norm_epsilon, name=name)(x), shared.turns)

    h = by_row(h, self.rows)
    x = RMSNorm(c.norm_epsilon, name="norm_attention")(h)
    q = normed(heads(x, c.heads, "q"), "q_norm")
    k = normed(heads(x, c.key_heads, "k"), "k_norm")
    v = heads(x, c.key_heads, "v")
    if cached is None:
      x = attention(q, k, v, shared.kernel)
    else:
      x, cached = cached_attention(q, k, v, shared.index, shared.cache, cached)
    x = jnp.moveaxis(x, 1, 2)  # [B, T, H, Dh]
    x = linear((c.heads, size), width, bias=False, scale=residual, name="out")(x)
    h = saved(h + dropout(x, key_1, c.dropout))

    x = RMSNorm(c.norm_epsilon, name="norm_mlp")(h)
    gate = nn.silu(saved(linear(width, (c.ffn,), bias=False, name="gate")(x)))
    x = gate * saved(linear(width, (c.ffn,), bias=False, name="up")(x))
    x = linear((c.ffn,), width, bias=False, scale=residual, name="down")(x)
    h += dropout(x, key_2, c.dropout)
    return h, cached
