"""The other side's forward pass: a published directory's logits, computed by PyTorch.

Written from the published names and formulas, not from this project's modules, so that
a conversion is checked against an implementation of its own. Needs torch, which is no
requirement of the package.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from set_diffusion_jax.config import ModelConfig

_NOISE_FEATURES = 128  # cosines, then as many sines, of the noise level 0


def forward(
  config: ModelConfig,
  tensor: Callable[[str], Tensor],
  tokens: Tensor,
  position: Tensor,
  mask: Tensor,
) -> Tensor:
  """Logits [B, T, V] in float32.

  Args:
    config: sizes.
    tensor: a parameter by its canonical published name.
    tokens: int64 [B, T].
    position: int64 [B, T], places in the text.
    mask: bool [B, T, T], which key each query sees.
  """
  run = _dit if config.backbone == "dit" else _qwen3
  with torch.no_grad():
    return run(config, tensor, tokens, position, mask[:, None])


def _rotated(x: Tensor, position: Tensor, base: float) -> Tensor:
  """Rotary positions of [B, H, T, Dh], halves rotated against each other."""
  half = x.shape[-1] // 2
  frequency = base ** (-torch.arange(half, dtype=torch.float32) / half)
  angle = position[:, None, :, None].float() * frequency
  first, second = x[..., :half], x[..., half:]
  cos, sin = angle.cos(), angle.sin()
  return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
  """[B, T, H Dh]; keys and values may have fewer heads."""
  k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
  mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
  return mixed.transpose(1, 2).flatten(2)


def _dit(c: ModelConfig, tensor, tokens, position, mask) -> Tensor:
  def linear(x, name, bias=True):
    return F.linear(
      x, tensor(f"{name}.weight"), tensor(f"{name}.bias") if bias else None
    )

  def norm(x, name):
    weight = tensor(f"{name}.weight")
    return F.layer_norm(x, weight.shape, weight, None, c.norm_epsilon)

  def chunks(name, count) -> Sequence[Tensor | float]:
    if not c.adaln:  # shift, scale, gate that change nothing
      return [0.0, 0.0, 1.0, 0.0, 0.0, 1.0][:count]
    return linear(condition, name).chunk(count, -1)

  if c.adaln:
    level = torch.cat([torch.ones(_NOISE_FEATURES), torch.zeros(_NOISE_FEATURES)])
    condition = linear(F.silu(linear(level, "sigma_map.mlp.0")), "sigma_map.mlp.2")
    condition = F.silu(condition)
  x = F.embedding(tokens, tensor("vocab_embed.embedding"))
  for i in range(c.layers):
    block = f"blocks.{i}"
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = chunks(
      f"{block}.adaLN_modulation", 6
    )
    y = norm(x, f"{block}.norm1") * (1 + scale_1) + shift_1
    y = linear(y, f"{block}.attn_qkv", bias=False)
    q, k, v = y.unflatten(-1, (3, c.heads, c.head_width)).permute(2, 0, 3, 1, 4)
    q, k = (_rotated(z, position, c.rotary_base) for z in (q, k))
    y = linear(_attention(q, k, v, mask), f"{block}.attn_out", bias=False)
    x = x + gate_1 * y
    y = norm(x, f"{block}.norm2") * (1 + scale_2) + shift_2
    y = F.gelu(linear(y, f"{block}.mlp.0"), approximate="tanh")
    x = x + gate_2 * linear(y, f"{block}.mlp.2")
  shift, scale = chunks("output_layer.adaLN_modulation", 2)
  x = norm(x, "output_layer.norm_final") * (1 + scale) + shift
  return linear(x, "output_layer.linear")


def _qwen3(c: ModelConfig, tensor, tokens, position, mask) -> Tensor:
  def norm(x, name):
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + c.norm_epsilon)
    return x * scale * tensor(f"{name}.weight")

  def heads(x, name):
    y = F.linear(x, tensor(f"{name}.weight"))
    return y.unflatten(-1, (-1, c.head_width)).transpose(1, 2)

  table = tensor("embed_tokens.weight")
  x = F.embedding(tokens, table)
  for i in range(c.layers):
    layer, attention = f"layers.{i}", f"layers.{i}.self_attn"
    y = norm(x, f"{layer}.input_layernorm")
    q, k, v = (heads(y, f"{attention}.{name}_proj") for name in "qkv")
    q, k = (
      _rotated(norm(z, f"{attention}.{name}_norm"), position, c.rotary_base)
      for z, name in ((q, "q"), (k, "k"))
    )
    mixed = _attention(q, k, v, mask)
    x = x + F.linear(mixed, tensor(f"{attention}.o_proj.weight"))
    y = norm(x, f"{layer}.post_attention_layernorm")
    gate = F.silu(F.linear(y, tensor(f"{layer}.mlp.gate_proj.weight")))
    y = gate * F.linear(y, tensor(f"{layer}.mlp.up_proj.weight"))
    x = x + F.linear(y, tensor(f"{layer}.mlp.down_proj.weight"))
  x = norm(x, "norm")
  return F.linear(x, table if c.tied else tensor("lm_head.weight"))
