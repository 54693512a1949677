"""The small parts: norm, linear maps, rotary positions, dropout. No hidden state."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key

SAVED = "saved"


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


class Dtypes(NamedTuple):
  """What the products of a linear map are rounded to.

  Attributes:
    result: of the map itself; None: to the dtype of its input.
    gradient: of its weights' gradients, in which devices add them up as well.
  """

  result: str | None = None
  gradient: str = "float32"


class Linear(nn.Module):
  """x [..., *inputs] -> [..., *outputs], a matrix product with optional bias."""

  inputs: Sequence[int]
  outputs: Sequence[int]
  bias: bool = True
  scale: float = 1.0  # variance of an output over that of an input, at the start
  dtypes: Dtypes = Dtypes()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fan_in = len(self.inputs)
    shape = (*self.inputs, *self.outputs)
    kernel = self.param("kernel", _normal(self.scale, fan_in), shape)
    bias = None
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, tuple(self.outputs))
    leading = x.shape[: x.ndim - fan_in]
    y = affine(x.reshape(-1, *self.inputs), kernel, bias, self.dtypes)
    return y.reshape(*leading, *self.outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: Array, kernel: Array, bias: Array | None, dtypes: Dtypes) -> Array:
  """The map x W + b of x [N, *I], W [*I, *O] and b [*O]; its gradients are products.

  Every product is of arrays in the dtype of x, adds up in float32 on the way, and is
  rounded once to what `dtypes` says. The parameters are float32.

  Gradients are laid out like what they are of. Left to itself, the CPU compiler takes
  the gradient by W transposed and copies it, and sums that by b up to 60 times slower
  than a product with ones does. Axes stay apart, since those of W can be sharded.
  """
  kernel, result = kernel.astype(x.dtype), dtypes.result or x.dtype
  y = _dot(x, kernel, range(1, x.ndim), range(x.ndim - 1), result)
  return y if bias is None else y + bias.astype(result)[None]


def _affine_backward(dtypes, kept, d_y):
  x, kernel, bias = kept
  d_y, gradient = d_y.astype(x.dtype), dtypes.gradient
  of_parameter = lambda x: _dot(x, d_y, (0,), (0,), gradient).astype(kernel.dtype)
  outputs = range(x.ndim - 1, kernel.ndim)
  d_x = _dot(d_y, kernel.astype(x.dtype), range(1, d_y.ndim), outputs, x.dtype)
  if bias is None:
    return d_x, of_parameter(x), None
  ones = jnp.ones_like(d_y, shape=d_y.shape[:1])
  return d_x, of_parameter(x), of_parameter(ones)


def _dot(x: Array, y: Array, one: Sequence[int], other: Sequence[int], dtype) -> Array:
  """A product of arrays of one dtype, over these axes of theirs, in another dtype."""
  product = functools.partial(
    jax.lax.dot_general,
    dimension_numbers=((tuple(one), tuple(other)), ((), ())),
    precision=precision(x.dtype),
    preferred_element_type=dtype,
  )
  if x.dtype == dtype:
    return product(x, y)
  # XLA for CPUs has no such product of several axes: there it is one of float32.
  wide = lambda x, y: product(x.astype(dtype), y.astype(dtype))
  return jax.lax.platform_dependent(x, y, cpu=wide, default=product)


affine.defvjp(lambda *x: (affine(*x), x[:3]), _affine_backward)


def saved(x: Array) -> Array:
  """Marks what the backward pass gets from the forward pass with remat=none.

  That is what would take a matrix product to compute again, and nothing else.
  """
  return checkpoint_name(x, SAVED)


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
  keep = saved(keep)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
