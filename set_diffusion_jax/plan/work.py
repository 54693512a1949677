"""What a step of a program holds and does, from its shapes alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from set_diffusion_jax.model.attention import kernel_work
from set_diffusion_jax.plan.flops import Flops, forward_flops, visible_pairs
from set_diffusion_jax.rng import TRAIN, row_keys, stream_key
from set_diffusion_jax.step import Program


@dataclasses.dataclass(frozen=True)
class Held:
  """Bytes a chip of what a step is given, without padding of the memory layout."""

  parameters: int
  ema: int
  optimizer: int
  batch: int

  @property
  def total(self) -> int:
    """All of it."""
    return self.parameters + self.ema + self.optimizer + self.batch


def held(program: Program) -> Held:
  """The state and batch of a program, by kind."""
  state, batch = program.abstract_state(), program.abstract_batch()
  size = lambda tree: sum(map(_shard_bytes, jax.tree.leaves(tree)))
  return Held(size(state.params), size(state.ema), size(state.optimizer), size(batch))


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def parameters(program: Program) -> int:
  """How many parameters there are."""
  leaves = jax.tree.leaves(program.abstract_state().params)
  return sum(math.prod(leaf.shape) for leaf in leaves)


def weights_read(program: Program) -> int:
  """Bytes of weights that a chip's products read in a step, in the compute dtype.

  Once forward, once for each of the two products backward, once more with remat; in
  every micro-batch, gathered from all chips but those of the tensor axis.
  """
  model, train = program.config.model, program.config.train
  passes = (4 if model.remat == "layer" else 3) * train.accumulate
  size = parameters(program) * jnp.dtype(model.dtype).itemsize
  return passes * size // program.mesh.shape["tensor"]


def step_flops(program: Program) -> Flops:
  """Of one step over the global batch."""
  config, objective = program.config, program.objective
  rows, length = config.train.batch_size, config.data.length

  def streams(batch, clip):
    keys = row_keys(stream_key(config.train.seed, TRAIN), 0, batch.row)
    return objective.training_streams(batch, keys, clip)[0]

  clip = jax.ShapeDtypeStruct((2,), jnp.float32)
  found = jax.eval_shape(streams, program.abstract_batch(), clip)
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
      program.mesh,
    ),
  )
