"""The settings of the transformer."""

import dataclasses

BACKBONES = ("dit", "qwen3")
DTYPES = ("float32", "bfloat16")
GRADIENT_DTYPES = ("float32", "compute")
REMATS = ("none", "layer")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The transformer. `ffn` is the width of the MLP's hidden layer.

  dit: layer norm, GELU, an output layer with bias; `head_size` is width / heads.
  qwen3: RMS norm, SwiGLU, grouped-query attention; the output layer may be `tied`.

  Logits are float32 whatever the `dtype`. `gradient_dtype` is what a weight's gradient
  is rounded to in each micro-batch, and in which devices add theirs up: with compute
  and dtype=bfloat16, half as many bytes go over the links, and each sum keeps 8 bits.
  """

  backbone: str = "dit"
  layers: int = 12
  width: int = 768
  heads: int = 12
  kv_heads: int | None = None  # qwen3: heads of keys and values; None: as many
  head_size: int | None = None  # qwen3; None: width / heads
  ffn: int = 3072
  dropout: float = 0.0
  adaln: bool = False
  condition_width: int = 128  # width of the adaLN conditioning vector
  tied: bool = False  # qwen3: the output layer is the embedding
  norm_epsilon: float = 1e-5
  rotary_base: float = 10_000.0
  dtype: str = "float32"  # of the computation; parameters are always float32
  gradient_dtype: str = "float32"  # of weights' gradients; or "compute": as `dtype`
  remat: str = "none"  # "layer": matrix products of layers are computed again, too

  @property
  def summed_in(self) -> str:
    """The dtype of the gradients of matrices and their biases."""
    return self.dtype if self.gradient_dtype == "compute" else self.gradient_dtype

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.kv_heads or self.heads

  @property
  def head_width(self) -> int:
    """Dh."""
    return self.head_size or self.width // self.heads
