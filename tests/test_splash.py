"""Splash attention against a dense softmax under the predicate, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.config import MeshConfig
from set_diffusion_jax.diffusion.index import (
  attends,
  clean_stream,
  key_intervals,
  noisy_stream,
  two_streams,
)
from set_diffusion_jax.diffusion.order import Order
from set_diffusion_jax.model import splash
from set_diffusion_jax.sharding import make_mesh
from tests import tiny
from tests.dense import assert_dense

LENGTH, SIZE = 128, 16  # the least that the kernel takes
STREAMS = {"both": two_streams, "clean": clean_stream, "noisy": noisy_stream}


def aligned(streams, reach, length=LENGTH, rows=2):
  """Aligned sets; the last row has padding."""
  rank = np.tile(np.arange(length) // reach, (rows, 1)).astype(np.int32)
  valid = np.arange(length) < np.array([length] * (rows - 1) + [length - 5])[:, None]
  order = Order(jnp.asarray(rank * 0), jnp.asarray(rank))
  return STREAMS[streams](order, jnp.asarray(valid), reach).replace(aligned=True)


@pytest.mark.parametrize(
  "streams, reach, key_heads",
  [("both", 1, 1), ("both", 5, 2), ("noisy", LENGTH, 2), ("clean", 1, 2)],
)
def test_the_kernel_equals_dense_attention(streams, reach, key_heads):
  index = aligned(streams, reach)
  mesh = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
  assert_dense(splash.Splash(index, mesh, interpret=True), index, 2, key_heads, SIZE)


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("reach", [1, 4, 5, 24])
def test_the_computable_mask_is_the_predicate(streams, reach):
  index = aligned(streams, reach, length=24, rows=1)
  index = index.replace(valid=jnp.ones_like(index.valid))
  mask = splash.AlignedSets(index.slots, index.clean, reach)
  every = slice(0, index.slots)
  np.testing.assert_array_equal(mask[every, every], attends(index, index)[0])


@pytest.mark.parametrize(
  "name", ["ar", "any_order", "set", "masked", "block", "general"]
)
def test_which_methods_have_aligned_sets(name):
  """Where a method says so, its drawn ranks are the runs of slots, on real batches."""
  obj = tiny.objective(method__name=name, method__block_size=4)
  batch = tiny.batch(bos=True)
  order = obj.draw_order(batch, jax.random.split(jax.random.key(0), 3), True)
  index = tiny.streams(obj, batch, order).index
  assert index.aligned == (name != "general")
  if index.aligned:
    mask = splash.AlignedSets(index.slots, index.clean, index.reach)
    every = slice(0, index.slots)
    for row in np.asarray(attends(index, index)):
      np.testing.assert_array_equal(mask[every, every], row)


def test_what_the_kernel_is_used_for(monkeypatch):
  mesh = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
  index = aligned("both", 1)
  assert splash.obstacle(index, jnp.bfloat16, mesh) is not None  # of CPUs
  monkeypatch.setattr(splash.sharding, "platform", lambda mesh: "tpu")
  assert splash.obstacle(index, jnp.bfloat16, mesh) is None
  assert splash.obstacle(index, jnp.float32, mesh) is not None
  assert splash.obstacle(index, jnp.bfloat16, None) is not None
  assert splash.obstacle(index.replace(aligned=False), jnp.bfloat16, mesh) is not None
  assert splash.obstacle(index.replace(causal=True), jnp.bfloat16, mesh) is not None
  assert splash.obstacle(aligned("both", 1, length=100), jnp.bfloat16, mesh) is not None


def test_scored_pairs_are_whole_tiles():
  index = aligned("both", 1, length=1024, rows=1)
  # Tiles of 512: three of each causal half, and two on the noisy diagonal.
  assert splash.Splash(index, None).scored_pairs == 8 * 512**2
  visible = key_intervals(index.replace(valid=jnp.ones_like(index.valid)))
  pairs = visible.clean_end + visible.noisy_end - visible.noisy_start
  assert int(pairs.sum()) == 1024 * 1025 < splash.Splash(index, None).scored_pairs
