"""What a training step holds and does, from shapes alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from set_diffusion_jax.config import Config, ModelConfig
from set_diffusion_jax.diffusion.draws import TRAIN, stream_key, training_keys
from set_diffusion_jax.hardware.flops import Flops, forward_flops, visible_pairs
from set_diffusion_jax.model.attention import kernel_work

_FLOAT32 = {"adaln", "head_adaln", "condition"}  # are computed in it


@dataclasses.dataclass(frozen=True)
class Held:
  """Bytes a device of what a step is given, without padding of the memory layout."""

  parameters: int
  ema: int
  optimizer: int
  batch: int

  @property
  def total(self) -> int:
    """All of it."""
    return self.parameters + self.ema + self.optimizer + self.batch


def held(state, batch) -> Held:
  """A training state and a batch, by kind; both may be shapes with their shardings."""
  size = lambda tree: sum(map(_shard_bytes, jax.tree.leaves(tree)))
  return Held(size(state.params), size(state.ema), size(state.optimizer), size(batch))


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def parameters(params) -> int:
  """How many parameters there are in a tree of arrays or of their shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def gradients(model: ModelConfig, params, tensor: int) -> int:
  """Bytes of the gradients that a device adds to those of others, each micro-batch.

  Those of matrices and their biases are in `model.summed_in`; those of embeddings,
  norms and adaLN are float32 always.

  Args:
    model: sizes.
    params: tree of arrays or of their shapes.
    tensor: devices along the tensor axis, which share out the parameters.
  """

  def size(path, leaf):
    names = [str(key.key) for key in path]
    product = names[-1] in ("kernel", "bias") and not _FLOAT32 & set(names)
    dtype = model.summed_in if product else "float32"
    return math.prod(leaf.shape) * jnp.dtype(dtype).itemsize

  return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, params))) // tensor


def weights_read(config: Config, count: int, tensor: int) -> int:
  """Bytes of weights that a device's products read in a step, in the compute dtype.

  Once forward, once for each of the two products backward, once more with remat; in
  every micro-batch, gathered from all devices but those of the tensor axis.

  Args:
    config: the experiment.
    count: of parameters.
    tensor: devices along the tensor axis.
  """
  model, train = config.model, config.train
  passes = (4 if model.remat == "layer" else 3) * train.accumulate
  return passes * count * jnp.dtype(model.dtype).itemsize // tensor


def step_flops(objective, batch, mesh) -> Flops:
  """Of one training step.

  Args:
    objective: what is learnt.
    batch: the global batch, or its shapes.
    mesh: that the attention kernel is chosen for.
  """
  config = objective.config
  rows, length = config.train.batch_size, config.data.length

  def streams(batch, clip):
    keys = training_keys(stream_key(config.train.seed, TRAIN), 0, batch.row)
    return objective.training_streams(batch, keys, clip)

  clip = jax.ShapeDtypeStruct((2,), jnp.float32)
  found = jax.eval_shape(streams, batch, clip)
  return forward_flops(
    config.model,
    objective.network.vocab_size,
    rows,
    found.index.slots,
    found.target.shape[-1],
    visible_pairs(config.method, length),
    *kernel_work(
      found.index,
      config.model.head_width,
      jnp.dtype(config.model.dtype),
      mesh,
    ),
  )
