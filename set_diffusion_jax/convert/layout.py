"""One parameter here, one name there: the bijection between the two layouts.

Here layers are stacked, a linear map is [inputs, outputs] and heads have axes of their
own. There each layer has its own tensors, a linear map is [outputs, inputs], and heads
are flattened. Canonical names are the published ones without their prefixes.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from set_diffusion_jax.config import ModelConfig
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown

NOISE_FEATURES = 256  # of the embedded noise level, the input of the adaLN condition
PIECE_BYTES = 32 * 2**20  # what is read, converted and written at a time

FREQUENCIES = "rotary_emb.inv_freq"  # a buffer that the published DiT stores
# Buffers that follow from the configuration; they are left out.
BUFFERS = ("static_attention_mask", "cos_cached", "sin_cached", "mask")

_PREFIX = re.compile(r"^(?:(?:_orig_mod|module|model|backbone)\.)+")


def canonical(name: str) -> str:
  """A tensor's name without the prefixes of compilers, trainers and wrappers."""
  return _PREFIX.sub("", name).replace("_orig_mod.", "")


def published(name: str, backbone: str) -> str:
  """The name in the published layout."""
  if backbone == "dit":
    return f"backbone.{name}"
  inner = "" if name.startswith("lm_head") else "model."
  return f"backbone.model.{inner}{name}"


class Piece(NamedTuple):
  """A part of a parameter: rows of one tensor there.

  Attributes:
    layer: of a stacked parameter; None for one that is not.
    start: first row.
    stop: the row after the last.
  """

  layer: int | None
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter in both layouts.

  Attributes:
    path: here, as "blocks/qkv/kernel".
    name: there, canonical; a stacked one has {} for the layer.
    inputs: axes of a kernel's input; None: no kernel, the same axes on both sides.
    outputs: the other axes.
    layers: how many layers are stacked; None: it is outside the blocks.
  """

  path: str
  name: str
  inputs: tuple[int, ...] | None
  outputs: tuple[int, ...]
  layers: int | None

  @property
  def shape(self) -> tuple[int, ...]:
    """Here."""
    stack = () if self.layers is None else (self.layers,)
    return (*stack, *(self.inputs or ()), *self.outputs)

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """There, of each layer."""
    if self.inputs is not None:
      return math.prod(self.outputs), math.prod(self.inputs)
    if self.layers is not None or self.path.endswith("bias"):
      return (math.prod(self.outputs),)
    return self.outputs

  def tensor_name(self, layer: int | None) -> str:
    """There, canonical."""
    return self.name if layer is None else self.name.format(layer)

  def names(self) -> list[str]:
    """All of its names there."""
    layers = [None] if self.layers is None else range(self.layers)
    return [self.tensor_name(layer) for layer in layers]

  @property
  def _group(self) -> int:
    """Rows there that one index of the first output axis here stands for."""
    return self.tensor_shape[0] // self.outputs[0]

  def rows_at_a_time(self) -> int:
    """Rows there of each piece but the last."""
    row = 4 * math.prod(self.tensor_shape[1:])  # bytes, in float32
    groups = max(1, PIECE_BYTES // (row * self._group))
    return min(groups, self.outputs[0]) * self._group

  def pieces(self) -> Iterator[Piece]:
    """Parts of at most about PIECE_BYTES that make up the parameter."""
    rows, step = self.tensor_shape[0], self.rows_at_a_time()
    for layer in [None] if self.layers is None else range(self.layers):
      for start in range(0, rows, step):
        yield Piece(layer, start, min(start + step, rows))

  @property
  def piece_shape(self) -> tuple[int, ...]:
    """Of the largest piece, here."""
    stack = () if self.layers is None else (1,)
    first = self.rows_at_a_time() // self._group
    return (*stack, *(self.inputs or ()), first, *self.outputs[1:])

  def index(self, piece: Piece) -> tuple[slice, ...]:
    """Where a piece is in the array here."""
    stack = () if piece.layer is None else (slice(piece.layer, piece.layer + 1),)
    rows = slice(piece.start // self._group, piece.stop // self._group)
    return (*stack, *(slice(None) for _ in self.inputs or ()), rows)

  def from_rows(self, rows: np.ndarray, piece: Piece) -> np.ndarray:
    """A piece here, from its rows there."""
    stack = () if piece.layer is None else (1,)
    outputs = ((piece.stop - piece.start) // self._group, *self.outputs[1:])
    if self.inputs is None:
      return rows.reshape(*stack, *outputs)
    return np.ascontiguousarray(rows.T).reshape(*stack, *self.inputs, *outputs)

  def to_rows(self, values: np.ndarray, piece: Piece) -> np.ndarray:
    """The rows there, from a piece here: undoes `from_rows`."""
    count = piece.stop - piece.start
    if self.inputs is None:
      return np.ascontiguousarray(values).reshape(count, *self.tensor_shape[1:])
    return np.ascontiguousarray(values.reshape(math.prod(self.inputs), count).T)


def parameters(model: ModelConfig, vocab_size: int) -> list[Parameter]:
  """Every parameter of a model, in the order of its modules."""
  return (_dit if model.backbone == "dit" else _qwen3)(model, vocab_size)


class _Builder:
  """Collects parameters of one place: inside the blocks or outside."""

  def __init__(self, path: str, name: str, layers: int | None):
    self.found: list[Parameter] = []
    self._path, self._name, self._layers = path, name, layers

  def add(self, path, name, inputs, outputs) -> None:
    self.found.append(
      Parameter(self._path + path, self._name + name, inputs, outputs, self._layers)
    )

  def linear(self, path, name, inputs, outputs, bias=True) -> None:
    """A kernel and, with `bias`, its bias."""
    self.add(f"{path}/kernel", f"{name}.weight", inputs, outputs)
    if bias:
      self.add(f"{path}/bias", f"{name}.bias", None, outputs)

  def scale(self, path, name, width) -> None:
    self.add(f"{path}/scale", f"{name}.weight", None, (width,))


def _dit(c: ModelConfig, vocab_size: int) -> list[Parameter]:
  width, heads = c.width, (c.heads, c.head_width)
  first, last = _Builder("", "", None), _Builder("", "output_layer.", None)
  first.add("embedding", "vocab_embed.embedding", None, (vocab_size, width))
  if c.adaln:
    inner = (c.condition_width,)
    first.linear("condition/up", "sigma_map.mlp.0", (NOISE_FEATURES,), inner)
    first.linear("condition/down", "sigma_map.mlp.2", inner, inner)
  block = _Builder("blocks/", "blocks.{}.", c.layers)
  block.scale("norm_attention", "norm1", width)
  block.linear("qkv", "attn_qkv", (width,), (3, *heads), bias=False)
  block.linear("out", "attn_out", heads, (width,), bias=False)
  block.scale("norm_mlp", "norm2", width)
  block.linear("up", "mlp.0", (width,), (c.ffn,))
  block.linear("down", "mlp.2", (c.ffn,), (width,))
  last.scale("norm", "norm_final", width)
  last.linear("head", "linear", (width,), (vocab_size,))
  if c.adaln:
    block.linear("adaln", "adaLN_modulation", (c.condition_width,), (6, width))
    last.linear("head_adaln", "adaLN_modulation", (c.condition_width,), (2, width))
  return first.found + block.found + last.found


def _qwen3(c: ModelConfig, vocab_size: int) -> list[Parameter]:
  width, size = c.width, c.head_width
  outer = _Builder("", "", None)
  outer.add("embedding", "embed_tokens.weight", None, (vocab_size, width))
  block = _Builder("blocks/", "layers.{}.", c.layers)
  for name, heads in (("q", c.heads), ("k", c.key_heads), ("v", c.key_heads)):
    block.linear(name, f"self_attn.{name}_proj", (width,), (heads, size), bias=False)
  block.linear("out", "self_attn.o_proj", (c.heads, size), (width,), bias=False)
  block.scale("q_norm", "self_attn.q_norm", size)
  block.scale("k_norm", "self_attn.k_norm", size)
  block.linear("gate", "mlp.gate_proj", (width,), (c.ffn,), bias=False)
  block.linear("up", "mlp.up_proj", (width,), (c.ffn,), bias=False)
  block.linear("down", "mlp.down_proj", (c.ffn,), (width,), bias=False)
  block.scale("norm_attention", "input_layernorm", width)
  block.scale("norm_mlp", "post_attention_layernorm", width)
  after = _Builder("", "", None)
  after.scale("norm", "norm", width)
  if not c.tied:
    after.linear("head", "lm_head", (width,), (vocab_size,), bias=False)
  return outer.found + block.found + after.found


def inverse_frequencies(head_size: int, base: float) -> np.ndarray:
  """The DiT's stored buffer base^(-2i / Dh), float32 [Dh / 2], as PyTorch rounds it."""
  exponent = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
  power = np.power(float(base), exponent.astype(np.float64)).astype(np.float32)
  return np.float32(1) / power


def check_frequencies(values: np.ndarray, model: ModelConfig, where: str) -> None:
  """UserError unless stored rotary frequencies are those that are used here.

  Args:
    values: [Dh / 2], as they are stored; narrow dtypes may be off by their rounding.
    model: whose heads and base they must belong to.
    where: names the file in messages.
  """
  right = inverse_frequencies(model.head_width, model.rotary_base)
  tolerance = 1e-6 if values.dtype == np.float32 else 1e-2
  if not np.allclose(values.astype(np.float32), right, rtol=tolerance, atol=0):
    few = lambda values: ", ".join(f"{v:.6g}" for v in values[:3].astype(float))
    raise UserError(
      f"{where}: {FREQUENCIES} is {list(values.shape)} [{few(values)}]; must be "
      f"{list(right.shape)} [{few(right)}]: base {model.rotary_base:g}, "
      f"{model.heads} heads"
    )


def same_names(path: pathlib.Path, found: set[str], wanted: set[str]) -> None:
  """UserError that names one tensor too many or too few."""
  missing, extra = sorted(wanted - found), sorted(found - wanted)
  if missing:
    more = f" and {len(missing) - 1} more" if missing[1:] else ""
    raise UserError(f"{path}: {missing[0]} is missing{more}")
  if extra:
    more = f" and {len(extra) - 1} more" if extra[1:] else ""
    raise UserError(f"{path}: {shown(extra[0])}{more}: is no parameter of this model")
