"""Floating-point operations of a training step, by hand.

Legend: B rows, T slots fed, R slots that predict, D width, H heads, G heads of keys,
Dh head size, F ffn, N layers, V vocabulary, P query-key pairs of a row and a head.
A multiplication and an addition are two operations. What is not a matrix product
(norms, softmax, rotary positions, optimiser) is left out: one to three per cent.
"""

import dataclasses

from set_diffusion_jax.config import MethodConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class Flops:
  """Of one forward pass over the global batch, by part, and what a step makes of them.

  Attributes:
    layers: matrix products with weights, in all layers.
    last: those of each layer that are its last; nothing needs them a second time.
    visible: attention over the pairs that the mask allows.
    scored: attention over the pairs that are computed.
    products: of a scored pair in a step; two of them are forward.
    head: the output layer.
    remat: whether layers are computed again in the backward pass.
  """

  layers: float
  last: float
  visible: float
  scored: float
  products: int
  head: float
  remat: bool

  @property
  def model(self) -> float:
    """Of a step, without anything computed twice: what MFU counts.

    The backward pass of a product is two products.
    """
    return 3 * (self.layers + self.visible + self.head)

  @property
  def executed(self) -> float:
    """Of a step as it is computed."""
    again = self.layers - self.last if self.remat else 0
    attention = self.scored / 2 * (self.products + 2 * self.remat)
    return 3 * (self.layers + self.head) + again + attention


def layer_weights(model: ModelConfig) -> int:
  """Weights of a layer's matrices."""
  heads, keys = model.heads * model.head_width, model.key_heads * model.head_width
  attention = 2 * model.width * heads + 2 * model.width * keys
  matrices = 2 if model.backbone == "dit" else 3  # SwiGLU has a gate
  return attention + matrices * model.width * model.ffn


def visible_pairs(method: MethodConfig, length: int) -> int:
  """P that the mask allows in a row of `length` tokens without padding.

  For `general` sets it depends on the drawn order and is at least that of singletons,
  which is taken.
  """
  # In each stream a token sees all of its own set and as many as in the sets before.
  size = method.reach(length) if method.aligned_sets else 1
  return method.streams * length * (length + size) // 2


def forward_flops(
  model: ModelConfig,
  vocab_size: int,
  rows: int,
  slots: int,
  predicted: int,
  visible: int,
  scored: int,
  products: int,
) -> Flops:
  """The operations of a model.

  Args:
    model: sizes.
    vocab_size: V.
    rows: B.
    slots: T.
    predicted: R.
    visible: P that the mask allows.
    scored: P that the attention kernel computes.
    products: that it takes for each of them, forward and backward.
  """
  linear = 2.0 * rows * slots * model.layers
  pair = 2 * 2 * model.heads * model.head_width * model.layers
  return Flops(
    layers=linear * layer_weights(model),
    last=linear * model.width * model.ffn,
    visible=float(rows) * visible * pair,
    scored=float(rows) * scored * pair,
    products=products,
    head=2.0 * rows * predicted * model.width * vocab_size,
    remat=model.remat == "layer",
  )
