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
    params: the parameter tree of the same model here; None: random ones.
  """

  def __init__(self, config: ModelConfig, vocab_size: int, params: dict | None):
    super().__init__()
    self.base, self.head_width = config.rotary_base, config.head_width
    self.vocab_embed = nn.Module()
    self.vocab_embed.embedding = nn.Parameter(torch.empty(vocab_size, config.width))
    self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
    self.output_layer = nn.Module()
    norm = nn.LayerNorm(config.width, config.norm_epsilon, bias=False)
    self.output_layer.norm_final = norm
    self.output_layer.linear = nn.Linear(config.width, vocab_size)
    if params is not None:
      self.load_state_dict(tensors(config, vocab_size, params))
    else:
      nn.init.normal_(self.vocab_embed.embedding, std=0.02)

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

  def two_streams(self, tokens: Tensor, rank: Tensor, mask_id: int) -> Tensor:
    """Logits [B, 2L, V] of a clean and a noisy copy of each token.

    Two streams, each in the order of the text, under one dense mask, so that a noisy
    token sees those of earlier sets; the output layer is applied to both, as the
    published code does.

    Args:
      tokens: int64 [B, L].
      rank: int64 [B, L], the set of each token.
      mask_id: the id of [MASK].
    """
    length = tokens.shape[1]
    earlier = rank[:, None, :] < rank[:, :, None]
    same = rank[:, None, :] == rank[:, :, None]
    clean = torch.cat([earlier | same, torch.zeros_like(same)], 2)
    mask = torch.cat([clean, torch.cat([earlier, same], 2)], 1)[:, None]
    both = torch.cat([tokens, torch.full_like(tokens, mask_id)], 1)
    position = torch.arange(length).repeat(2)[None]
    return self(both, position, mask)[0]

  def nats(self, tokens: Tensor, rank: Tensor, mask_id: int) -> Tensor:
    """-log p of each token given those of earlier sets [B, L]."""
    return noisy_nats(self.two_streams(tokens, rank, mask_id), tokens, mask_id)


def noisy_nats(logits: Tensor, tokens: Tensor, mask_id: int) -> Tensor:
  """-log p of tokens [B, L] by the second half of logits [B, 2L, V], which it changes.

  [MASK] gets probability zero in both halves, as the published code has it.
  """
  logits[..., mask_id] = -1e12
  log_p = logits[:, tokens.shape[1] :].log_softmax(-1)
  return -log_p.gather(2, tokens[..., None])[..., 0]


class Trainer:
  """The training step of a peer: AdamW after clipping by the global norm, and EMA."""

  def __init__(self, config: ModelConfig, vocab_size: int, params: dict | None = None):
    self.peer, self.mask_id = Peer(config, vocab_size, params), vocab_size - 1
    self.ema = [p.detach().clone() for p in self.peer.parameters()]
    self.optimizer = torch.optim.AdamW(
      self.peer.parameters(), 3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )

  def step(self, tokens: np.ndarray, rank: np.ndarray) -> float:
    """The loss in nats a token, after one step on int32 [B, L] each."""
    tokens, rank = (torch.from_numpy(x.astype(np.int64)) for x in (tokens, rank))
    self.optimizer.zero_grad(set_to_none=True)
    loss = self.peer.nats(tokens, rank, self.mask_id).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(self.peer.parameters(), 1.0)
    self.optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, list(self.peer.parameters()), 1e-4)
    return loss.item()


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
