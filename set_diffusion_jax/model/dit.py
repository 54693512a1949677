"""The DiT-shaped transformer: pre-LN blocks, rotary positions, GELU MLP.

One module serves every method: what differs is in the index arrays.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from set_diffusion_jax.config import ModelConfig
from set_diffusion_jax.index import TokenIndex
from set_diffusion_jax.model.attention import Cache, attention
from set_diffusion_jax.model.layers import (
  LayerNorm,
  Linear,
  dropout,
  gelu,
  rotary_angles,
  rotate,
  trailing,
)
from set_diffusion_jax.rng import split_rows

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


class Shared(NamedTuple):
  """What all layers are given alike."""

  index: TokenIndex
  angles: Float[Array, "B 1 T half"]
  cache_index: TokenIndex | None
  condition: Float[Array, " C"] | None


class Block(nn.Module):
  """Attention and MLP, each `x + gate * f(modulate(norm(x)))`."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "B T D"],
    cached: tuple[Array, Array] | None,
    keys: Key[Array, " B"] | None,
    shared: Shared,
  ):
    """Returns h and, with cached keys and values, those of the T slots."""
    c = self.config
    cache = None if cached is None else Cache(*cached, shared.cache_index)
    size = c.width // c.heads
    residual = 1 / (2 * c.layers)  # the variance of h does not grow with depth
    modulation = [None] * 6
    if shared.condition is not None:
      modulation = Modulation(6, c.width, name="adaln")(shared.condition, h.dtype)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
    key_1, key_2 = (None, None) if keys is None else split_rows(keys)

    x = modulate(LayerNorm(name="norm_attention")(h), shift_1, scale_1)
    shape = (3, c.heads, size)
    qkv = Linear((c.width,), shape, bias=False, name="qkv")(x)
    q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))  # [3, B, H, T, Dh]
    q, k = rotate(q, shared.angles), rotate(k, shared.angles)
    x = jnp.moveaxis(attention(q, k, v, shared.index, cache), 1, 2)  # [B, T, H, Dh]
    x = Linear((c.heads, size), (c.width,), bias=False, scale=residual, name="out")(x)
    h += _gated(dropout(x, key_1, c.dropout), gate_1)

    x = modulate(LayerNorm(name="norm_mlp")(h), shift_2, scale_2)
    x = gelu(Linear((c.width,), (c.ffn,), name="up")(x))
    x = Linear((c.ffn,), (c.width,), scale=residual, name="down")(x)
    h += _gated(dropout(x, key_2, c.dropout), gate_2)
    return h, None if cache is None else (k, v)


def _gated(x: Array, gate: Array | None) -> Array:
  return x if gate is None else x * trailing(gate, x)


class DiT(nn.Module):
  """Embedding, N scanned blocks, and a separate output layer with bias."""

  config: ModelConfig
  vocab_size: int

  def setup(self):
    c = self.config
    init = nn.initializers.normal(0.02)
    self.embedding = self.param("embedding", init, (self.vocab_size, c.width))
    block = nn.remat(Block, prevent_cse=False) if c.remat == "layer" else Block
    self.blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, 0, nn.broadcast),
      length=c.layers,
    )(c)
    self.norm = LayerNorm()
    # Zero: the first loss is log(V - 1), whatever the rest does.
    self.head = Linear((c.width,), (self.vocab_size,), scale=0.0)
    if c.adaln:
      self.condition = Condition(c.condition_width)
      self.head_adaln = Modulation(2, c.width)

  def hidden(
    self,
    tokens: Int[Array, "B T"],
    index: TokenIndex,
    cache: Cache | None = None,
    dropout_keys: Key[Array, " B"] | None = None,
  ):
    """Hidden states of the T slots.

    Args:
      tokens: ids, in memory order.
      index: of the T slots.
      cache: earlier clean tokens that the T slots may see as well.
      dropout_keys: one a row, or None for no dropout.

    Returns:
      h [B, T, D] before the final norm, and with a cache the rotated keys and the
      values of the T slots, each [N, B, H, T, Dh]; without one, None.
    """
    c = self.config
    h = self.embedding[tokens].astype(c.dtype)
    angles = rotary_angles(index.position, c.width // c.heads, c.rotary_base)
    keys = None
    if dropout_keys is not None:
      layers = jnp.arange(c.layers)
      fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
      keys = fold(dropout_keys, layers)
    condition = self.condition() if c.adaln else None
    cached, cache_index = None, None
    if cache is not None:
      cached, cache_index = (cache.k, cache.v), cache.index
    return self.blocks(h, cached, keys, Shared(index, angles, cache_index, condition))

  def unembed(self, h: Float[Array, "B P D"]) -> Float[Array, "B P V"]:
    """Logits in the compute dtype; [MASK] is not suppressed here."""
    shift, scale = None, None
    if self.config.adaln:
      shift, scale = self.head_adaln(self.condition(), h.dtype)
    return self.head(modulate(self.norm(h), shift, scale))

  def __call__(self, tokens: Int[Array, "B T"], index: TokenIndex):
    """Logits of every slot; touches every parameter, so it serves to initialise."""
    return self.unembed(self.hidden(tokens, index)[0])
