"""`plan` with XLA's compiler for GPUs; skipped where the extra `gpu` is not installed.

Each in a process of its own: once JAX has started, a plugin without a GPU stays out.
"""

import json
import os
import subprocess
import sys

import pytest

from set_diffusion_jax.plan import cuda

pytestmark = pytest.mark.skipif(not cuda.installed(), reason="needs the extra gpu")


def run(*arguments):
  """What a fresh interpreter prints, which must be all that it says."""
  others = ("JAX_PLATFORMS", "XLA_FLAGS")
  environment = {k: v for k, v in os.environ.items() if k not in others}
  done = subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    env=environment,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, "")
  return done.stdout


@pytest.mark.parametrize("kind", ["a100", "h100", "b300", "gb200"])
def test_every_generation_of_gpus_has_a_compiled_plan(kind, tmp_path):
  path = tmp_path / "plan.json"
  run(
    *("-m", "set_diffusion_jax", "plan", "--config=configs/scale.py"),
    *("--config.model.layers=2", "--vocabulary-size=512"),
    f"--topology=gpu:{kind}x16",
    "--config.mesh.fsdp=8",
    "--config.train.batch_size=32",
    f"--json={path}",
  )
  found = json.loads(path.read_text())
  assert found["memory"]["peak"]["source"] == "compiler"
  assert found["memory"]["usable"]["source"] == "JAX's share, spec sheet"
  assert any("reduce-scatter over fsdp" in name for name in found["collectives"])
  assert not any("collectives" in note for note in found["notes"])


KERNELS = """
import jax

jax.config.update("jax_platforms", "cpu")
from set_diffusion_jax.config import Config
from set_diffusion_jax.plan import topology
from set_diffusion_jax.plan.compiled import compile_step
from set_diffusion_jax.training.step import Program, make_mesh
from tests import tiny

devices = topology.described_devices(topology.parse_topology("gpu:KINDx2"))
for name in METHODS:
  c = tiny.config(
    model__dtype="bfloat16", model__width=128, data__length=128, train__batch_size=8,
    method__name=name, method__block_size=4,
  )
  text = compile_step(Program.of(c, tiny.vocabulary(64), make_mesh(c, devices))).text
  print(name, text.count("__gpu$xla.gpu.triton"))
"""


@pytest.mark.parametrize(
  "kind, names",
  [
    ("a100", ["set"]),
    ("h100", ["ar", "set", "masked", "block", "general"]),
    ("b200", ["set"]),
    ("b300", ["set"]),
  ],
)
def test_the_step_for_gpus_has_the_kernels(kind, names):
  """One forward, two backward, in the loop over layers; sm_80, 90, 100, 103."""
  code = KERNELS.replace("KIND", kind).replace("METHODS", repr(names))
  assert run("-c", code).splitlines() == [f"{name} 3" for name in names]
