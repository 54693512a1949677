"""The other side of a benchmark: a DiT in eager PyTorch, as the published code has it.

Two streams under a dense boolean mask go through `scaled_dot_product_attention`; with a
cache, new keys are concatenated to the old ones in every step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from set_diffusion_jax.config import ModelConfig
from set_diffusion_jax.convert import layout

Layers = list[tuple[Tensor, Tensor]]  # keys and values [B, H, K, Dh] of each layer


class Block(nn.Module):
  """Attention and a tanh-GELU MLP, each after a layer norm, with residuals."""

  def __init__(self, c: ModelConfig):
    super().__init__()
    self.heads = c.heads
    self.norm1 = nn.LayerNorm(c.width, c.norm_epsilon, bias=False)
    self.attn_qkv = nn.Linear(c.width, 3 * c.width, bias=False)
    self.attn_out = nn.Linear(c.width, c.width, bias=False)
    self.norm2 = nn.LayerNorm(c.width, c.norm_epsilon, bias=False)
    mlp = nn.Linear(c.width, c.ffn), nn.GELU("tanh"), nn.Linear(c.ffn, c.width)
    self.mlp = nn.Sequential(*mlp)

  def forward(self, x: Tensor, rotary, mask: Tensor, cache):
    """Returns x [B, T, D], and the keys and values of the T slots."""
    y = self.attn_qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
    q, k, v = y.permute(2, 0, 3, 1, 4)
    q, k = _rotate(q, *rotary), _rotate(k, *rotary)
    new = k, v
    if cache is not None:
      k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + self.attn_out(y.transpose(1, 2).flatten(2))
    return x + self.mlp(self.norm2(x)), new


class Peer(nn.Module):
  """A DiT without modulation.

  Args:
    config: sizes.
    vocab_size: V.
    params: the parameter tree of the same model here.
  """

  def __init__(self, config: ModelConfig, vocab_size: int, params: dict):
    super().__init__()
    self.base, self.head_width = config.rotary_base, config.head_width
    self.vocab_embed = nn.Module()
    self.vocab_embed.embedding = nn.Parameter(torch.empty(vocab_size, config.width))
    self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
    self.output_layer = nn.Module()
    norm = nn.LayerNorm(config.width, config.norm_epsilon, bias=False)
    self.output_layer.norm_final = norm
    self.output_layer.linear = nn.Linear(config.width, vocab_size)
    self.load_state_dict(tensors(config, vocab_size, params))

  def forward(
    self, tokens: Tensor, position: Tensor, mask: Tensor, cache: Layers | None = None
  ) -> tuple[Tensor, Layers]:
    """Logits [B, T, V], and the keys and values of the T slots.

    Args:
      tokens: int64 [B, T].
      position: int64 [B, T], places in the text.
      mask: bool [B, 1, T, K], which keys each slot sees, those of the cache first.
      cache: of earlier slots.
    """
    half = self.head_width // 2
    frequency = self.base ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = position[:, None, :, None].float() * frequency
    rotary, new = (angle.cos(), angle.sin()), []
    x = F.embedding(tokens, self.vocab_embed.embedding)
    for i, block in enumerate(self.blocks):
      x, layer = block(x, rotary, mask, cache and cache[i])
      new.append(layer)
    return self.output_layer.linear(self.output_layer.norm_final(x)), new


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  first, second = x.chunk(2, -1)
  return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def tensors(config: ModelConfig, vocab_size: int, params: dict) -> dict[str, Tensor]:
  """A parameter tree under the published names."""
  found = {}
  for parameter in layout.parameters(config, vocab_size):
    array = params
    for key in parameter.path.split("/"):
      array = array[key]
    array, rows = np.asarray(array), {}
    for piece in parameter.pieces():
      part = parameter.to_rows(array[parameter.index(piece)], piece)
      rows.setdefault(parameter.tensor_name(piece.layer), []).append(part)
    for name, parts in rows.items():
      found[name] = torch.from_numpy(np.concatenate(parts).copy())
  return found
