"""The transformer around the blocks: one module for every method and backbone.

What differs between methods is in the index arrays.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int, Key

from set_diffusion_jax.config import ModelConfig
from set_diffusion_jax.diffusion.index import TokenIndex
from set_diffusion_jax.model.attention import Shared, choose_kernel
from set_diffusion_jax.model.cached import Cache, Layers
from set_diffusion_jax.model.dit import Condition, DiTBlock, Modulation, modulate
from set_diffusion_jax.model.layers import (
  SAVED,
  Dtypes,
  LayerNorm,
  Linear,
  RMSNorm,
  affine,
  by_row,
  rotary_turns,
)
from set_diffusion_jax.model.qwen3 import Qwen3Block
from set_diffusion_jax.sharding import activation_sharding

_BLOCKS = {"dit": DiTBlock, "qwen3": Qwen3Block}


class Transformer(nn.Module):
  """Embedding, N scanned blocks, a norm, and an output layer.

  dit: layer norm and an output layer of its own with bias, optionally modulated.
  qwen3: RMS norm, and an output layer without bias that may be the embedding.
  """

  config: ModelConfig
  vocab_size: int
  mesh: Mesh | AbstractMesh | None = None  # that all is laid out on

  def setup(self):
    c = self.config
    self.rows = activation_sharding(self.mesh)
    init = nn.initializers.normal(0.02)
    self.embedding = self.param("embedding", init, (self.vocab_size, c.width))
    block = _BLOCKS[c.backbone]
    keep = jax.checkpoint_policies.save_only_these_names(SAVED)
    policy = None if c.remat == "layer" else keep
    block = nn.remat(block, prevent_cse=False, policy=policy)
    self.blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, 0, nn.broadcast),
      length=c.layers,
    )(c, self.rows)
    self.norm = (LayerNorm if c.backbone == "dit" else RMSNorm)(c.norm_epsilon)
    if not c.tied:
      # Zero: the first loss is log(V - 1), whatever the rest does.
      bias = c.backbone == "dit"
      sizes = (c.width,), (self.vocab_size,)
      self.head = Linear(*sizes, bias, scale=0.0, dtypes=self._logits)
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
      cache: clean tokens that the T slots may see as well, earlier ones and those fed;
        the parameters must be `by_layer` then.
      dropout_keys: one a row, or None for no dropout.

    Returns:
      h [B, T, D] before the final norm, and the layers of the cache with what was fed
      clean in them; None without a cache.
    """
    c = self.config
    h = self.embedding[tokens].astype(c.dtype)
    turns = rotary_turns(index.position, c.head_width, c.rotary_base)
    keys = None
    if dropout_keys is not None and c.dropout:
      layers = jnp.arange(c.layers)
      fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
      keys = fold(dropout_keys, layers)
    condition = self.condition() if c.adaln else None
    if cache is None:
      kernel = choose_kernel(index, c.head_width, h.dtype, self.mesh)
      shared = Shared(index, turns, kernel, None, condition)
      h, layers = self.blocks(h, None, keys, shared)
    else:
      shared = Shared(index, turns, None, cache.replace(layers=[]), condition)
      h, layers = self._with_cache(h, cache.layers, shared)
    return by_row(h, self.rows), layers

  def _with_cache(self, h, cached: Layers, shared: Shared):
    """The blocks one by one: a scan would copy each layer's weights and cache first."""
    block = _BLOCKS[self.config.backbone](self.config, self.rows, parent=None)
    params, layers = self.blocks.variables["params"], []
    for i, layer in enumerate(cached):
      h, layer = block.apply({"params": params[str(i)]}, h, layer, None, shared)
      layers.append(layer)
    return h, layers

  def unembed(self, h: Float[Array, "B P D"]) -> Float[Array, "B P V"]:
    """Logits, never rounded below float32; [MASK] is not suppressed here."""
    shift, scale = None, None
    if self.config.adaln:
      shift, scale = self.head_adaln(self.condition(), h.dtype)
    h = modulate(self.norm(by_row(h, self.rows)), shift, scale)
    if not self.config.tied:
      return by_row(self.head(h), self.rows)
    slots = h.reshape(-1, h.shape[-1])
    logits = affine(slots, self.embedding.T, None, self._logits)
    return by_row(logits.reshape(*h.shape[:2], -1), self.rows)

  @property
  def _logits(self) -> Dtypes:
    """Logits are float32: rounded to bfloat16 they would be off by up to 2^-9."""
    return Dtypes("float32", self.config.summed_in)

  def __call__(self, tokens: Int[Array, "B T"], index: TokenIndex):
    """Logits of every slot; touches every parameter, so it serves to initialise."""
    return self.unembed(self.hidden(tokens, index)[0])
