"""What is never rounded to the compute dtype: logits and, if asked, gradients."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from set_diffusion_jax import sharding
from set_diffusion_jax.config import MeshConfig
from set_diffusion_jax.diffusion.draws import stream_key, training_keys
from set_diffusion_jax.model import build_network
from set_diffusion_jax.training.step import micro_gradients
from tests import tiny

HALF = {"model__dtype": "bfloat16"}
QWEN = {"model__backbone": "qwen3", "model__kv_heads": 1}
MODELS = [{}, QWEN, {**QWEN, "model__tied": True}]


def rounded(x) -> np.ndarray:
  """To bfloat16, in float64."""
  return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize("changes", MODELS)
def test_logits_of_a_rounded_model_are_not_rounded(changes):
  """Against the float64 product of the same bfloat16 numbers."""
  obj = tiny.objective(vocab_size=50, **HALF, **changes)
  params = tiny.params(obj)
  h = jax.random.normal(jax.random.key(0), (3, 5, 16)).astype("bfloat16")
  normed = obj.network.module.apply(
    {"params": params}, h, method=lambda module, h: module.norm(h)
  )
  assert normed.dtype == jnp.bfloat16
  if obj.config.model.tied:
    weights, bias = params["embedding"].T, 0.0
  else:
    weights, bias = params["head"]["kernel"], params["head"].get("bias", 0.0)
  expected = rounded(normed) @ rounded(weights) + np.asarray(bias, np.float64)
  logits = obj.network.unembed(params, h)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-5)


def gradients(mesh, **changes):
  """Of a training step's loss, on as many devices as a mesh has."""
  obj = tiny.objective(**HALF, **changes)
  network = build_network(obj.config.model, 12, mesh)
  obj = type(obj)(obj.config, network, obj.mask_id, obj.eos_id)
  params, batch = tiny.params(obj), tiny.batch(rows=8)
  rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  keys = training_keys(stream_key(0, 0), 0, batch.row)
  step = jax.jit(
    functools.partial(micro_gradients, obj),
    in_shardings=(whole, whole, rows, rows),
    out_shardings=whole,
    compiler_options={"xla_allow_excess_precision": False},  # else CPUs skip roundings
  )
  return jax.device_get(step(params, tiny.CLIP, batch, keys).gradient)


def mesh_of(devices: int):
  return sharding.make_mesh(MeshConfig(), jax.devices()[:devices])


def products(gradient) -> dict:
  """Those of the layers' matrices."""
  blocks = jax.tree_util.tree_leaves_with_path(gradient["blocks"])
  found = {jax.tree_util.keystr(path): x for path, x in blocks}
  return {name: x for name, x in found.items() if "kernel" in name}


@pytest.mark.multidevice
@pytest.mark.parametrize("changes", [MODELS[0], MODELS[2]])
def test_gradients_of_devices_are_added_up_in_float32(changes):
  """So they are the same on any number, to the precision of float32."""
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  one, four = (gradients(mesh_of(n), **changes) for n in (1, 4))
  for name, x in products(one).items():
    error = np.abs(x - products(four)[name]).max()
    assert error < 1e-5 * np.abs(x).max(), name


@pytest.mark.parametrize("dtype", ["float32", "compute"])
def test_gradients_are_rounded_if_that_is_asked_for(dtype):
  found = products(gradients(mesh_of(1), model__gradient_dtype=dtype))
  assert len(found) == 4
  for name, x in found.items():
    changed = (x != rounded(x)).mean()
    assert changed == 0 if dtype == "compute" else changed > 0.9, name
