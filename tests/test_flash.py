"""The kernel for GPUs, interpreted, against dense attention; and lowered for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import sharding
from set_diffusion_jax.config import MeshConfig
from set_diffusion_jax.diffusion.draws import training_keys
from set_diffusion_jax.diffusion.index import two_streams
from set_diffusion_jax.diffusion.order import Order
from set_diffusion_jax.model import build_network, flash
from tests import tiny
from tests.dense import KINDS, assert_dense, random_index
from tests.traced import equations


@pytest.fixture
def mesh():
  return sharding.make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(flash, "OWN", 8)
  monkeypatch.setattr(flash, "VISITED", 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streams", ["clean", "noisy", "both"])
def test_small_tiles_equal_dense_attention(kind, streams, mesh, small_tiles):
  index = random_index(kind, streams)
  # Of blocks, one head of keys and values for two of queries.
  assert_dense(
    flash.Flash.of(index, mesh, interpret=True),
    index,
    2,
    1 if kind == "blocks" else 2,
    size=8,
  )


def general(length, rows):
  rank = np.sort(np.random.default_rng(0).integers(0, 40, (rows, length)), -1)
  order = Order(jnp.asarray(rank * 0, jnp.int32), jnp.asarray(rank, jnp.int32))
  valid = np.arange(length) < np.array([length] * (rows - 1) + [100])[:, None]
  return two_streams(order, jnp.asarray(valid), reach=length)


@pytest.mark.parametrize("key_heads", [1, 2])
def test_rows_and_heads_over_devices(key_heads):
  """Tiles as they are; one head of keys cannot be shared out over the tensor axis."""
  mesh = sharding.make_mesh(MeshConfig(1, 2, 1, 2), jax.devices()[:4])
  index = general(256, rows=2)
  assert_dense(
    flash.Flash.of(index, mesh, interpret=True), index, 4, key_heads, size=16
  )


@pytest.mark.parametrize("kind", ["singletons", "blocks", "one", "general"])
@pytest.mark.parametrize("streams", ["clean", "noisy", "both"])
def test_scored_pairs_are_those_of_the_tiles_visited(kind, streams, small_tiles):
  index = random_index(kind, streams)
  index = index.replace(valid=jnp.ones_like(index.valid), aligned=kind != "general")
  kernel = flash.Flash.of(index, None)
  runs = kernel.runs
  visited = (runs.keys[..., 1] - runs.keys[..., 0]).sum((1, 2)) * 8 * 4
  if kind == "general":
    assert max(visited) <= kernel.scored_pairs
  else:
    np.testing.assert_array_equal(visited, kernel.scored_pairs)


def test_it_lowers_for_cuda(mesh):
  """Three kernels: forward, and the gradients by queries and by keys."""
  index = general(256, rows=2)
  shape = jax.ShapeDtypeStruct((2, 2, index.slots, 64), jnp.bfloat16)
  gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
  described = mesh.abstract_mesh.update(abstract_device=gpu)
  kernel = flash.Flash.of(index, described)
  attend = lambda q, k, v: kernel(q, k, v).sum()
  traced = jax.jit(jax.grad(attend, (0, 1, 2))).trace(shape, shape, shape)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  for name in ("_forward_kernel", "_d_queries_kernel", "_d_keys_kernel"):
    assert name in text


def test_what_the_kernel_is_used_for(mesh, monkeypatch):
  index = general(256, rows=2)
  obstacle = lambda index, size=64, dtype=jnp.bfloat16, mesh=mesh: flash.obstacle(
    index, size, dtype, mesh
  )
  assert obstacle(index) is not None  # on a mesh of CPUs
  monkeypatch.setattr(sharding, "platform", lambda mesh: "gpu")
  assert obstacle(index) is None
  assert obstacle(index.replace(causal=True)) is None
  assert obstacle(index, dtype=jnp.float32) is not None
  assert obstacle(index, size=96) is not None
  assert obstacle(index, mesh=None) is not None
  assert obstacle(general(200, rows=2)) is not None
  monkeypatch.setattr(flash, "triton", None)
  assert obstacle(index) is not None


MODEL = {"model__width": 32, "data__length": 128, "model__dtype": "bfloat16"}


def kernels(jaxpr) -> int:
  """Calls of kernels whose results are used, each loop body once."""
  found = [eqn for eqn, _ in equations(jaxpr) if eqn.primitive.name == "pallas_call"]
  return len(found)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("remat, forward", [("none", 1), ("layer", 2)])
def test_what_is_kept_for_the_gradient(platform, remat, forward, mesh, monkeypatch):
  """One kernel forward, a second one only if asked for, and two backward."""
  monkeypatch.setattr(sharding, "platform", lambda mesh: platform)
  obj = tiny.objective(**MODEL, model__remat=remat)
  obj = type(obj)(obj.config, build_network(obj.config.model, 12, mesh), 11, 9)
  batch = tiny.batch(length=128)
  keys = training_keys(jax.random.key(0), 0, batch.row)
  total = lambda p: tiny.drawn_nats(obj, p, batch, keys)[0]
  traced = jax.make_jaxpr(jax.grad(total))(tiny.params(obj))
  assert kernels(traced.jaxpr) == forward + 2


@pytest.mark.parametrize("name", ["ar", "set", "block", "general", "masked"])
def test_a_model_with_the_kernel(name, mesh, monkeypatch):
  """Nats and gradients are as far from those of float32 as they are without it."""
  changes = {**MODEL, "method__name": name, "method__block_size": 4}
  obj = tiny.objective(**changes)
  exact_obj = tiny.objective(**{**changes, "model__dtype": "float32"})
  params, batch = tiny.params(obj, scale=0.1), tiny.batch(length=128)
  keys = training_keys(jax.random.key(0), 0, batch.row)

  def both(obj):
    total = lambda params: tiny.drawn_nats(obj, params, batch, keys)
    gradients, nats = jax.jit(jax.grad(total, has_aux=True))(params)
    return nats, gradients

  exact, without = both(exact_obj), both(obj)
  chosen, of = [], functools.partial(flash.Flash.of, interpret=True)
  interpreted = lambda *args: chosen.append(args) or of(*args)
  monkeypatch.setattr(sharding, "platform", lambda mesh: "gpu")
  monkeypatch.setattr(flash.Flash, "of", interpreted)
  obj = type(obj)(obj.config, build_network(obj.config.model, 12, mesh), 11, 9)
  found = both(obj)
  assert chosen
  distance = lambda x, y: jnp.linalg.norm(x - y) / jnp.linalg.norm(y)
  near, far = (jax.tree.map(distance, x, exact) for x in (found, without))
  rows = zip(jax.tree.leaves(near), jax.tree.leaves(far), strict=True)
  assert all(x < 1.5 * y for x, y in rows)
