"""The small parts: norm, linear maps, rotary positions, dropout. No hidden state."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key


def precision(dtype) -> jax.lax.Precision:
  """float32 means float32: no bfloat16 passes on TPU, no TF32 on GPU."""
  exact = dtype == jnp.float32
  return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


def by_row(x: Array, rows: NamedSharding | None) -> Array:
  """An activation laid out by its first axis, on a mesh; x itself without one.

  Left alone, the compiler keeps weights that are sharded by fsdp where they are and
  sends the activations of the whole global batch around instead.
  """
  return x if rows is None else jax.lax.with_sharding_constraint(x, rows)


def trailing(parameter: Array, like: Array) -> Array:
  """A parameter of an array's trailing axes, given leading axes to broadcast along."""
  return jnp.expand_dims(parameter, tuple(range(like.ndim - parameter.ndim)))


class Linear(nn.Module):
  """x [..., *inputs] -> [..., *outputs], a matrix product with optional bias."""

  inputs: Sequence[int]
  outputs: Sequence[int]
  bias: bool = True
  scale: float = 1.0  # variance of an output over that of an input, at the start

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fan_in = len(self.inputs)
    shape = (*self.inputs, *self.outputs)
    kernel = self.param("kernel", _normal(self.scale, fan_in), shape)
    # One leading axis: the gradient by the kernel then sums over one axis instead of
    # two, which on CPU is half again as fast.
    leading = x.shape[: x.ndim - fan_in]
    x = x.reshape(-1, *self.inputs)
    contract = (range(1, 1 + fan_in), range(fan_in))
    y = jax.lax.dot_general(
      x, kernel.astype(x.dtype), (contract, ((), ())), precision=precision(x.dtype)
    )
    y = y.reshape(*leading, *self.outputs)
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, tuple(self.outputs))
      y += trailing(bias, y).astype(y.dtype)
    return y


def _normal(scale: float, fan_in_axes: int):
  def init(key, shape, dtype=jnp.float32):
    fan_in = 1
    for size in shape[:fan_in_axes]:
      fan_in *= size
    return (scale / fan_in) ** 0.5 * jax.random.normal(key, shape, dtype)

  return init


class LayerNorm(nn.Module):
  """(x - mean) / std over the last axis times a scale, no bias, in float32."""

  epsilon: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
    return (y * trailing(scale, y)).astype(x.dtype)


_GELU = (math.sqrt(2 / math.pi), 0.044715)


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """GELU in its tanh form; keeps only x for the backward pass.

  Automatic differentiation would keep four arrays of this size, which a layer scan
  writes out and reads back: a third of the time of a small model's step on CPU.
  """
  return jax.nn.gelu(x, approximate=True)


def _gelu_backward(x, d_y):
  slope, cubic = _GELU
  tanh = jnp.tanh(slope * (x + cubic * x**3))
  d_inner = slope * (1 + 3 * cubic * x**2)
  return (d_y * 0.5 * (1 + tanh + x * (1 - tanh**2) * d_inner),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class RMSNorm(nn.Module):
  """The map x / sqrt(mean(x^2)) over the last axis times a scale, in float32."""

  epsilon: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
    return (y * trailing(scale, y)).astype(x.dtype)


Turns = tuple[Float[Array, "B 1 T half"], Float[Array, "B 1 T half"]]


def rotary_turns(position: Int[Array, "B T"], head_size: int, base: float) -> Turns:
  """Cosines and sines of position * base^(-2i / Dh), i = 0 .. Dh/2 - 1."""
  exponent = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
  position = position[:, None, :, None].astype(jnp.float32)
  angles = position * trailing(base**-exponent, position)
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B H T Dh"], turns: Turns) -> Float[Array, "B H T Dh"]:
  """Rotary embedding: rotates the pairs (x_i, x_(i + Dh/2)) by their angles."""
  cos, sin = turns
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def dropout(
  x: Float[Array, "B T D"], keys: Key[Array, " B"] | None, rate: float
) -> Float[Array, "B T D"]:
  """Zeroes elements with probability `rate`, each row by its own key, if any."""
  if keys is None or rate == 0:
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
