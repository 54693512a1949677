"""Transformers as pure functions of a parameter tree."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from set_diffusion_jax.config import ModelConfig
from set_diffusion_jax.diffusion.index import clean_stream
from set_diffusion_jax.diffusion.order import left_to_right
from set_diffusion_jax.model.cached import Cache, Layers
from set_diffusion_jax.model.transformer import Transformer
from set_diffusion_jax.sharding import row_ways

__all__ = ["Cache", "Layers", "Network", "build_network"]


@dataclasses.dataclass(frozen=True)
class Network:
  """A module and its two halves; parameters are always an argument."""

  module: nn.Module
  vocab_size: int

  @property
  def ways(self) -> int:
    """Parts that the rows of a batch are laid out in; 1 without a mesh."""
    mesh = self.module.mesh
    return 1 if mesh is None else row_ways(mesh)

  def init(self, key: jax.Array) -> dict:
    """Fresh float32 parameters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    index = clean_stream(left_to_right(1, 2), jnp.ones((1, 2), bool), reach=1)
    return self.module.init(key, tokens, index)["params"]

  def by_layer(self, params: dict) -> dict:
    """Parameters as `hidden` takes them with a cache: each layer on its own.

    Taken apart before a decoding loop, they are not copied in each of its steps.
    """
    layers = range(self.module.config.layers)
    one = lambda i: jax.tree.map(lambda x: x[i], params["blocks"])
    return {**params, "blocks": {str(i): one(i) for i in layers}}

  def hidden(self, params, tokens, index, cache=None, dropout_keys=None):
    """See `Transformer.hidden`."""
    return self.module.apply(
      {"params": params}, tokens, index, cache, dropout_keys, method="hidden"
    )

  def unembed(self, params, h):
    """See `Transformer.unembed`; the blocks need not be among the parameters."""
    return self.module.apply({"params": params}, h, method="unembed")

  def split_head(self, params: dict) -> tuple[dict, dict]:
    """Parameters that `unembed` reads, and the others without the blocks."""
    tied = self.module.config.tied
    unread = {"blocks"} if tied else {"blocks", "embedding"}
    head = {name: x for name, x in params.items() if name not in unread}
    rest = unread - {"blocks"}
    return head, {name: params[name] for name in rest}


def build_network(
  config: ModelConfig,
  vocab_size: int,
  mesh: Mesh | AbstractMesh | None = None,
) -> Network:
  """The transformer that a configuration asks for.

  Args:
    config: sizes.
    vocab_size: V.
    mesh: that activations are laid out on, by their rows, and whose devices decide on
      the kernels of attention.
  """
  return Network(Transformer(config, vocab_size, mesh), vocab_size)
