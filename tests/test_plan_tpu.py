"""`plan` with libtpu's compiler; skipped where it is not installed."""

import json
import os

import jax
import numpy as np
import pytest

from set_diffusion_jax import cli
from set_diffusion_jax.hardware.chips import chip_of
from set_diffusion_jax.plan import make_plan, parse_topology
from set_diffusion_jax.plan.compiled import TooLarge, compile_step, usable_memory
from set_diffusion_jax.plan.hlo import collectives
from set_diffusion_jax.plan.topology import described_devices
from set_diffusion_jax.training.step import Program, make_mesh
from tests import tiny

pytest.importorskip("libtpu")


@pytest.fixture(autouse=True)
def _kernels_promote_ranks():
  with jax.numpy_rank_promotion("allow"):
    yield


def settings(**changes):
  common = {
    "model__dtype": "bfloat16",
    "model__width": 128,
    "data__length": 128,
    "train__batch_size": 8,
  }
  return tiny.config(**{**common, **changes})


def step(topology, **changes):
  c = settings(**changes)
  mesh = make_mesh(c, described_devices(topology))
  return Program.of(c, tiny.vocabulary(64), mesh)


def test_every_kind_of_chip_is_known():
  before, limits = dict(os.environ), {}
  for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"):
    topology = parse_topology(name)
    devices = described_devices(topology)
    assert len(devices) == topology.devices
    assert chip_of(devices[0].device_kind) is topology.chip
    assert dict(os.environ) == before  # start-up of several processes looks there
    limits[name[:3]] = usable_memory(devices[0]) / 2**30
  assert limits == pytest.approx(
    {"v4:": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "tpu": 94.75}, abs=0.01
  )


def test_a_topology_that_libtpu_does_not_know(capsys):
  arguments = ["plan", "--config=configs/scale.py", "--topology=v5e:3x5"]
  assert cli.main(arguments) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: --topology=v5e:3x5: libtpu: ")


def test_the_step_for_tpus_has_the_kernel(tmp_path):
  """One axis is one torus axis; the mask is computed in a Mosaic kernel."""
  topology = parse_topology("v5e:4x4")
  program = step(topology, mesh__data=4, mesh__fsdp=4, train__batch_size=16)
  for axis in (
    0,
    1,
  ):  # rows of the mesh lie along one torus axis, columns along another
    along = np.vectorize(lambda d, a=axis: d.coords[a])(program.mesh.devices[0, ..., 0])
    assert (along == along[:1]).all() or (along == along[:, :1]).all()
  compiled = compile_step(program)
  assert "splash" in compiled.text
  assert "tpu_custom_call" in compiled.text
  found, problems = collectives(compiled.text)
  assert not problems
  assert found


@pytest.mark.parametrize(
  ("chosen", "dtype"), [("float32", "float32"), ("compute", "bfloat16")]
)
def test_gradients_go_over_the_links_in_the_dtype_asked_for(chosen, dtype):
  """What the compiler adds up across chips is what the plan says by hand."""
  program = step(parse_topology("v5e:2x2"), model__gradient_dtype=chosen)
  found, problems = collectives(compile_step(program).text)
  assert not problems
  sums = sum(x.bytes * x.times for x in found if x.kind == "all-reduce")
  matrices = program.parameters() * np.dtype(dtype).itemsize
  assert matrices <= program.gradients() < 1.1 * matrices
  assert 0 <= sums - program.gradients() <= 16  # loss and number of tokens


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {"method__name": "ar"},
    {"method__name": "masked"},
    {"method__name": "block", "method__block_size": 4},
    {"model__backbone": "qwen3", "model__kv_heads": 1, "model__remat": "layer"},
    {"mesh__fsdp": 1, "mesh__tensor": 2},
  ],
)
def test_the_kernel_compiles_for_every_method(changes):
  compiled = compile_step(step(parse_topology("v5e:2x2"), **changes))
  assert "splash" in compiled.text


def test_general_sets_and_float32_keep_the_plain_path():
  for changes in ({"method__name": "general"}, {"model__dtype": "float32"}):
    program = step(parse_topology("v5e:2x2"), **changes)
    traced = program.step.trace(program.abstract_state(), program.abstract_batch())
    assert "splash" not in str(traced.jaxpr)


@pytest.mark.slow
def test_slices_exchange_gradients_over_the_network():
  topology = parse_topology("v5e:2x2", slices=2)
  found = make_plan(settings(), topology, tiny.vocabulary(64))
  assert found.fits
  assert found.topology.chips == 8
  assert any("slice" in x.name for x in found.lines if x.section == "collectives")


@pytest.mark.slow
def test_what_is_too_large_is_refused_with_its_numbers():
  program = step(parse_topology("v5e:2x2"), model__width=16384, model__ffn=65536)
  refused = compile_step(program)
  assert isinstance(refused, TooLarge)
  assert refused.needed > refused.limit == round(15.75 * 2**30)


@pytest.mark.slow
def test_the_command(capsys, tmp_path):
  path = tmp_path / "plan.json"
  arguments = [
    "plan", "--config=configs/scale.py", "--topology=v5e:2x2", "--vocabulary-size=512",
    "--config.model.layers=2", "--config.train.batch_size=8", f"--json={path}",
  ]  # fmt: skip
  assert cli.main(arguments) == 0
  assert "fits: " in capsys.readouterr().out
  found = json.loads(path.read_text())
  assert found["memory"]["peak"]["source"] == "compiler"
