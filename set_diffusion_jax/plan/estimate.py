"""Machines without a compiler for them: exact state, estimated temporaries."""

import dataclasses
import math

import jax
import numpy as np

from set_diffusion_jax.config import Config, MeshConfig
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.diffusion.draws import TRAIN, stream_key, training_keys
from set_diffusion_jax.likelihood.loss import PIECE_ELEMENTS
from set_diffusion_jax.plan.hlo import Collective
from set_diffusion_jax.sharding import abstract_mesh, row_ways
from set_diffusion_jax.training.step import Program


def temporaries(program: Program, vocabulary: Vocabulary) -> int:
  """Bytes a device, by hand: gradients, what is kept for the backward pass, logits.

  What is kept is traced for the rows of one device and one micro-batch; a compiler may
  keep less (it can recompute) or more (buffers of kernels).
  """
  config, shape = program.config, program.mesh.shape
  ways = row_ways(program.mesh) * config.train.accumulate
  rows = config.train.batch_size // ways
  train = dataclasses.replace(config.train, batch_size=rows, accumulate=1)
  local = Program.of(
    dataclasses.replace(config, train=train),
    vocabulary,
    abstract_mesh(MeshConfig(1, 1, 1, 1), 1),
  )

  def kept(params, batch, clip):
    keys = training_keys(stream_key(train.seed, TRAIN), 0, batch.row)
    streams = local.objective.training_streams(batch, keys, clip)
    priced = lambda params: local.objective.priced_nats(
      params, streams, keys.dropout, streams.weight[None]
    )
    return jax.vjp(priced, params, has_aux=True)[1]

  state = local.abstract_state()
  found = jax.eval_shape(kept, state.params, local.abstract_batch(), state.clip)
  size = lambda tree: sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
  head, _ = local.objective.network.split_head(state.params)
  # Weights are among it: of the layers themselves, of the head their gradient.
  weights = size(state.params["blocks"]) + size(head)
  activations = max(0, size(found) - weights) // shape["tensor"]
  vocab_size = vocabulary.size * rows * config.data.length
  logits = 2 * 4 * min(PIECE_ELEMENTS["gpu"], vocab_size) // shape["tensor"]
  gradients = 2 * program.held().parameters  # of a micro-batch, and their sum
  return gradients + activations + logits


def collectives(program: Program, config: Config) -> list[Collective]:
  """What the layout of the state makes necessary, by hand.

  Each micro-batch: weights are gathered over fsdp forward and backward, gradients are
  scattered over fsdp and reduced over slice and data; each layer's activations are
  reduced over tensor twice forward and twice backward.
  """
  shape, model = program.mesh.shape, config.model
  item = 2 if model.dtype == "bfloat16" else 4
  weights, gradients = program.parameters() // shape["tensor"], program.gradients()
  micro = config.train.accumulate
  rows = config.train.batch_size // (row_ways(program.mesh) * micro)
  activations = rows * config.method.streams * config.data.length * model.width * item
  wanted = [
    ("all-gather", ("fsdp",), weights * item, 2 * micro),
    ("reduce-scatter", ("fsdp",), gradients, micro),
    ("all-reduce", ("tensor",), activations, 4 * model.layers * micro),
    ("all-reduce", ("slice", "data"), gradients // shape["fsdp"], micro),
  ]
  found = [
    Collective(kind, size, _groups(program.mesh, axes), times, False)
    for kind, axes, size, times in wanted
  ]
  return [one for one in found if one.groups.shape[-1] > 1]


def _groups(mesh, axes: tuple[str, ...]) -> np.ndarray:
  sizes = tuple(mesh.shape.values())
  devices = np.arange(math.prod(sizes)).reshape(sizes)
  where = [mesh.axis_names.index(axis) for axis in axes]
  last = list(range(-len(where), 0))
  together = math.prod(sizes[i] for i in where)
  return np.moveaxis(devices, where, last).reshape(-1, together)
