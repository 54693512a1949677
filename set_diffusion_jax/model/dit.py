"""The DiT block: layer norms, fused qkv without bias, tanh-GELU MLP, optional adaLN."""

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
  LayerNorm,
  Linear,
  by_row,
  dropout,
  rotate,
  saved,
  trailing,
)

# Published checkpoints embed the noise level; in every method it is 0. The embedding
# of 0 is cosines of 0 and sines of 0.
_NOISE_FEATURES = 128


class Condition(nn.Module):
  """The adaLN conditioning vector [C]: an MLP of the embedded noise level, always 0."""

  width: int

  @nn.compact
  def __call__(self) -> Float[Array, " C"]:
    features = jnp.repeat(jnp.array([1.0, 0.0]), _NOISE_FEATURES)
    x = Linear((2 * _NOISE_FEATURES,), (self.width,), name="up")(features)
    return nn.silu(Linear((self.width,), (self.width,), name="down")(nn.silu(x)))


class Modulation(nn.Module):
  """adaLN: `chunks` vectors [D] from the conditioning vector, zero at the start."""

  chunks: int
  width: int

  @nn.compact
  def __call__(self, condition: Float[Array, " C"], dtype) -> list[Array]:
    shape = (*condition.shape, self.chunks, self.width)
    kernel = self.param("kernel", nn.initializers.zeros, shape)
    bias = self.param("bias", nn.initializers.zeros, shape[1:])
    return list((jnp.einsum("c,cnd->nd", condition, kernel) + bias).astype(dtype))


def modulate(x: Array, shift: Array | None, scale: Array | None) -> Array:
  """The affine map x (1 + scale) + shift; x itself where there is no modulation."""
  if shift is None:
    return x
  return x * trailing(1 + scale, x) + trailing(shift, x)


class DiTBlock(nn.Module):
  """Attention and MLP, each `x + gate * f(modulate(norm(x)))`."""

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
    size = c.head_width
    linear = functools.partial(Linear, dtypes=Dtypes(gradient=c.summed_in))
    residual = 1 / (2 * c.layers)  # the variance of h does not grow with depth
    modulation = [None] * 6
    if shared.condition is not None:
      modulation = Modulation(6, c.width, name="adaln")(shared.condition, h.dtype)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
    key_1, key_2 = (None, None) if keys is None else split_rows(keys)

    h = by_row(h, self.rows)
    x = modulate(LayerNorm(c.norm_epsilon, name="norm_attention")(h), shift_1, scale_1)
    shape = (3, c.heads, size)
    qkv = linear((c.width,), shape, bias=False, name="qkv")(x)
    q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))  # [3, B, H, T, Dh]
    q, k = rotate(q, shared.turns), rotate(k, shared.turns)
    q, k, v = map(saved, (q, k, v))
    if cached is None:
      x = attention(q, k, v, shared.kernel)
    else:
      x, cached = cached_attention(q, k, v, shared.index, shared.cache, cached)
    x = jnp.moveaxis(x, 1, 2)  # [B, T, H, Dh]
    x = linear((c.heads, size), (c.width,), bias=False, scale=residual, name="out")(x)
    h = saved(h + _gated(dropout(x, key_1, c.dropout), gate_1))

    x = modulate(LayerNorm(c.norm_epsilon, name="norm_mlp")(h), shift_2, scale_2)
    x = nn.gelu(saved(linear((c.width,), (c.ffn,), name="up")(x)), approximate=True)
    x = linear((c.ffn,), (c.width,), scale=residual, name="down")(x)
    h += _gated(dropout(x, key_2, c.dropout), gate_2)
    return h, cached


def _gated(x: Array, gate: Array | None) -> Array:
  return x if gate is None else x * trailing(gate, x)
