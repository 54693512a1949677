"""The output layer and its cross-entropy, forward and backward, tokens a second.

Ours takes it in pieces of tokens; the peer computes all logits, of both streams, as
the published code does, and differentiates through them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import measure
from benchmarks.shapes import Shape, every_shape
from benchmarks.torch_peer import noisy_nats
from set_diffusion_jax.likelihood.loss import PIECE_ELEMENTS, priced_nats

REPEATS = 5


def case(name: str, shape: Shape, rates: dict[str, float]) -> dict:
  """The row of one shape."""
  rng = np.random.default_rng(0)
  size = (shape.batch, shape.length)
  h = rng.standard_normal((*size, shape.width)).astype(np.float32)
  kernel = 0.02 * rng.standard_normal((shape.width, shape.vocab_size), np.float32)
  target, mask = shape.texts(shape.batch), shape.vocabulary.mask

  def unembed(kernel, _, h):
    return jnp.einsum("bpd,dv->bpv", h, kernel, precision="highest")

  def loss(h, kernel, target):
    prices = jnp.full((1, *target.shape), 1 / target.size)
    elements = PIECE_ELEMENTS[jax.default_backend()]
    sizes = shape.vocab_size, mask, elements
    return priced_nats(unembed, kernel, None, h, target, prices, *sizes)[0][0]

  ours = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  arguments = jax.device_put((h, kernel, target))
  temporary = ours.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
  both = torch.from_numpy(np.concatenate([h, h], axis=1)).requires_grad_()
  weight = torch.from_numpy(kernel.T.copy()).requires_grad_()
  right = torch.from_numpy(target.astype(np.int64))

  def peer():
    both.grad = weight.grad = None
    value = noisy_nats(F.linear(both, weight), right, mask).mean()
    value.backward()
    return value.item()

  value, theirs = float(ours(*arguments)[0]), peer()
  assert abs(value - theirs) < 1e-4 * theirs, f"{name}: {value} is not {theirs}"
  runs = {"ours": functools.partial(ours, *arguments), "peer": peer}
  times = measure.alternating(runs, REPEATS)
  return measure.row(
    name,
    str(shape),
    "tokens/s",
    shape.tokens,
    times["ours"],
    times["peer"],
    flops=6.0 * shape.tokens * shape.width * shape.vocab_size,
    transferred=3 * kernel.nbytes,
    rates=rates,
    temporary_bytes=temporary,
  )


def main() -> dict:
  """Prints a row for each shape; returns them."""
  return every_shape(case)
