"""`plan`: figures by hand against the compiler's, what is refused, and what is said."""

import dataclasses
import importlib.util
import json
import math

import jax
import numpy as np
import pytest

from set_diffusion_jax import cli, sharding
from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion.index import attends
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.hardware import chips, memory
from set_diffusion_jax.hardware.flops import visible_pairs
from set_diffusion_jax.plan import (
  cuda,
  estimate,
  make_plan,
  nearest,
  parse_topology,
  planner,
  roofline,
)
from set_diffusion_jax.plan.compiled import CompiledStep, compile_step, read_refusal
from set_diffusion_jax.plan.hlo import Collective
from set_diffusion_jax.training.step import Program, make_mesh
from tests import tiny
from tests.traced import equations

WIDE = {"model__width": 128, "model__heads": 2, "model__ffn": 512, "data__length": 64}
QWEN = {"model__backbone": "qwen3", "model__kv_heads": 1, "model__head_size": 32}


def program(vocab_size=64, **changes):
  one = {f"mesh__{axis}": 1 for axis in sharding.AXES}
  c = tiny.config(**{**one, **changes})
  count = c.mesh.data * c.mesh.fsdp * c.mesh.tensor
  mesh = make_mesh(c, jax.devices()[:count])
  return Program.of(c, tiny.vocabulary(vocab_size), mesh)


def products(jaxpr) -> float:
  """Operations of all matrix products of a traced function, loops multiplied."""
  total = 0.0
  for eqn, times in equations(jaxpr):
    if eqn.primitive.name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      depth = math.prod(shape[i] for i in contract)
      total += times * 2 * depth * math.prod(eqn.outvars[0].aval.shape)
  return total


@pytest.mark.parametrize(
  "changes",
  [
    {},
    QWEN,
    {"method__name": "ar"},
    {"method__name": "masked"},
    {"method__name": "block", "method__block_size": 4},
    {"model__remat": "layer"},
    {"train__accumulate": 2, "model__layers": 3},
  ],
)
def test_executed_flops_are_those_of_the_traced_step(changes):
  p = program(**{**WIDE, **changes})
  traced = p.step.trace(p.abstract_state(), p.abstract_batch())
  counted = products(traced.jaxpr)
  assert p.flops().executed == pytest.approx(counted, rel=0.01)


def test_flops_against_an_unrolled_compile():
  """The compiler counts a loop's body once: one layer has no loop."""
  p = program(**WIDE, model__layers=1)
  step = compile_step(p)
  executed = p.flops().executed
  assert executed < step.flops < 1.08 * executed  # norms, softmax, optimiser


@pytest.mark.parametrize("name", ["ar", "set", "masked", "block", "any_order"])
def test_visible_pairs_are_those_of_the_mask(name):
  length = 12
  obj = tiny.objective(method__name=name, method__block_size=4, data__length=length)
  batch = tiny.batch(rows=1, length=length)
  order = obj.draw_order(batch, jax.random.split(jax.random.key(0), 1), True)
  index = tiny.streams(obj, batch, order).index
  pairs = visible_pairs(obj.config.method, length)
  assert pairs == int(attends(index, index).sum())


def test_refusals_of_the_compiler():
  used = read_refusal(
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
    "space hbm. Used 37.61G of 15.75G hbm. Exceeded hbm capacity by 21.86G."
  )
  assert (used.needed, used.limit) == (round(37.61 * 2**30), round(15.75 * 2**30))
  assert not used.temporaries_only
  temporaries = read_refusal(
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (512.5M) exceeds available HBM (15.75G)."
  )
  assert (temporaries.needed, temporaries.temporaries_only) == (
    round(2**29 * 1.0009765625),
    True,
  )
  assert read_refusal("INVALID_ARGUMENT: Used 3G of 2G hbm") is None


def test_nearest_changes_one_thing_before_two():
  c = tiny.config(train__batch_size=64)
  found = list(nearest.candidates(c, {"slice": 1, "data": 4, "fsdp": 1, "tensor": 1}))
  changes = [nearest.overrides(c, x) for x in found]
  assert changes[0] in (
    ["--config.model.remat=layer"],
    ["--config.mesh.fsdp=2"],
    ["--config.train.accumulate=2"],
  )
  counts = [len(x) for x in changes]
  assert counts == sorted(counts)
  assert {tuple(x) for x in changes[:3]} == {
    ("--config.model.remat=layer",),
    ("--config.mesh.fsdp=2",),
    ("--config.train.accumulate=2",),
  }
  assert len(set(map(tuple, changes))) == len(changes) == 2 * 3 * 5 - 1
  for candidate in found:
    Config.from_dict(candidate.to_dict())


@dataclasses.dataclass(frozen=True)
class Described:
  """A device of a topology, as far as links are concerned."""

  coords: tuple[int, int, int]
  slice_index: int = 0


@dataclasses.dataclass(frozen=True)
class Grid:
  """A mesh of described devices."""

  devices: np.ndarray
  axis_names = sharding.AXES

  @property
  def shape(self):
    return dict(zip(self.axis_names, self.devices.shape, strict=True))


def grid(side, slices, shape):
  cells = [
    Described((x, y, 0), s)
    for s in range(slices)
    for x in range(side)
    for y in range(side)
  ]
  devices = np.empty(len(cells), object)
  devices[:] = cells
  return Grid(devices.reshape(shape))


def one(kind, size, groups, times=1):
  return Collective(kind, size, np.array(groups), times, False)


def test_traffic_by_axis_and_link():
  """By hand on v5e: links of 50 GB/s, and rings from 16 chips of an axis on."""
  topology = parse_topology("v5e:16x16")
  mesh = grid(16, 1, (1, 16, 16, 1))
  ids = np.arange(256).reshape(16, 16)
  found = [
    one("all-gather", 16e9, ids, times=3),  # along y, one ring
    one("all-reduce", 16e9, ids.T),  # along x
    one("all-reduce", 256e9, ids.reshape(1, 256)),  # both
  ]
  gather, reduce, both = (
    next(t for t in roofline.traffic(found, mesh, topology) if (t.kind, t.axes) == key)
    for key in (
      ("all-gather", "fsdp"),
      ("all-reduce", "data"),
      ("all-reduce", "data+fsdp"),
    )
  )
  assert (gather.count, gather.sent) == (3, 45e9)
  assert gather.seconds == pytest.approx(45e9 / 100e9)
  assert reduce.seconds == pytest.approx(30e9 / 100e9)
  assert both.seconds == pytest.approx(2 * 255e9 / 200e9)
  small = roofline.traffic(
    [one("all-gather", 4e9, np.arange(16).reshape(4, 4))],
    grid(4, 1, (1, 4, 4, 1)),
    parse_topology("v5e:4x4"),
  )
  assert small[0].seconds == pytest.approx(3e9 / 50e9)  # a line, not a ring


def test_traffic_between_slices():
  """Each of 16 chips of a slice exchanges its sixteenth over the network."""
  topology = parse_topology("v5e:4x4", slices=2)
  mesh = grid(4, 2, (2, 16, 1, 1))
  (found,) = roofline.traffic(
    [one("all-reduce", 32e9, [list(range(32))])], mesh, topology
  )
  assert found.axes == "slice+data"
  assert found.sent == pytest.approx(2 * 32e9 * 15 / 16)
  assert found.network == pytest.approx(2 * 2e9 / 2)
  expected = found.sent / 100e9 + found.network / topology.chip.network
  assert found.seconds == pytest.approx(expected)


def gpus(kind, count, groups, form, size=72e9):
  """The traffic of one collective over GPUs that are a line."""
  topology = parse_topology(f"gpu:{kind}x{count}")
  mesh = sharding.abstract_mesh(tiny.config(mesh__data=count).mesh, count)
  (found,) = roofline.traffic([one(form, size, groups)], mesh, topology)
  return found, topology.chip


@pytest.mark.parametrize("kind, switch", [("h100", 8), ("gb200", 72)])
def test_traffic_between_machines(kind, switch):
  """What crosses a switch goes over the network, whatever the collective."""
  count = 2 * switch
  everyone = [list(range(count))]
  found, chip = gpus(kind, count, everyone, "all-to-all")
  # A GPU keeps one part, sends one to each neighbour and one to each GPU elsewhere.
  assert found.sent == pytest.approx(72e9 * (switch - 1) / count)
  assert found.network == pytest.approx(72e9 * switch / count)
  expected = found.sent / chip.link + found.network / chip.network
  assert found.seconds == pytest.approx(expected)
  inside, _ = gpus(kind, count, np.arange(count).reshape(2, -1), "all-to-all")
  assert inside.network == 0
  assert inside.sent == pytest.approx(72e9 * (switch - 1) / switch)
  # A permute waits for its slowest pair, which is the last one.
  pairs = [[i, i + 1] for i in range(switch)]
  permute, _ = gpus(kind, count, pairs, "collective-permute")
  assert (permute.sent, permute.network) == (0.0, 72e9)
  near, _ = gpus(kind, count, pairs[:-1], "collective-permute")
  assert (near.sent, near.network) == (72e9, 0.0)


def test_the_worst_group_counts():
  """One group within a machine and one across two: all wait for that one."""
  groups = [[0, 1, 2, 3], [6, 7, 8, 9]]
  found, chip = gpus("h100", 16, groups, "all-gather", 8e9)
  assert (found.sent, found.network) == (4e9, 2e9)
  assert found.seconds == pytest.approx(4e9 / chip.link + 2e9 / chip.network)


def test_devices_of_one_chip():
  """TPU7x: two devices share what a chip has, and a connection of their own."""
  topology = parse_topology("tpu7x:2x2x1")
  chip = topology.chip
  assert (topology.chips, topology.devices) == (4, 8)
  assert chip.device.memory == chip.memory / 2 == 96 * 2**30
  assert chip.device.flops == chip.flops / 2
  cells = [Described((x, y, 0)) for x in range(2) for y in range(2) for _ in range(2)]
  devices = np.empty(8, object)
  devices[:] = cells
  mesh = Grid(devices.reshape(1, 4, 2, 1))
  pairs = np.arange(8).reshape(4, 2)
  gather, reduce = roofline.traffic(
    [one("all-gather", 12e9, pairs), one("all-reduce", 1.2e9, pairs.T)], mesh, topology
  )
  assert {gather.kind, reduce.kind} == {"all-gather", "all-reduce"}
  by_kind = {t.kind: t for t in (gather, reduce)}
  assert by_kind["all-gather"].seconds == pytest.approx(6e9 / 600e9)
  # Two axes of two chips, no rings: two links, of which each device has a half.
  assert by_kind["all-reduce"].seconds == pytest.approx(1.8e9 / 100e9)


@pytest.mark.parametrize(
  "variables, share",
  [
    ({}, 0.75),
    ({"XLA_CLIENT_MEM_FRACTION": ".9"}, 0.9),
    ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, 0.5),
    ({"XLA_CLIENT_MEM_FRACTION": "", "XLA_PYTHON_CLIENT_MEM_FRACTION": "1"}, 1.0),
  ],
)
def test_the_share_of_memory_that_jax_takes(monkeypatch, capsys, variables, share):
  for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(cuda, "installed", lambda: False)
  assert cli.main([*SCALE, "--topology=gpu:h100x8"]) == 0
  text = capsys.readouterr().out
  assert f"of {share * 80e9 / 2**30:.2f} GiB a chip" in text
  assert f"JAX takes {share:.0%} of a GPU's memory" in text


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "x", "75%"])
def test_a_share_that_is_none(monkeypatch, capsys, value):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", value)
  monkeypatch.setattr(cuda, "installed", lambda: False)
  assert cli.main([*SCALE, "--topology=gpu:h100x8"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f"XLA_CLIENT_MEM_FRACTION={value}: must be a share" in line


def test_two_shares(monkeypatch, capsys):
  for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.setenv(name, "0.5")
  monkeypatch.setattr(cuda, "installed", lambda: False)
  assert cli.main([*SCALE, "--topology=gpu:h100x8"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "must not both be set" in line


def test_a_roofline():
  chip = chips.TPUS["v5e"]
  found = roofline.roofline(197e12, 2**30, 2**29, 2**31, 0.25, chip)
  assert found.compute == pytest.approx(1.0)
  assert found.memory == pytest.approx(6.5 * 2**30 / 0.819e12)
  assert found.overlapped == found.compute
  assert found.exposed == pytest.approx(1.25 + found.memory)


@pytest.mark.parametrize(
  "name, slices, words",
  [
    ("v7:4x4", 1, "must be one of v4, v5e, v5p, v6e, tpu7x with"),
    ("v5e:4", 1, "v5e has 2 axes, NxN"),
    ("v5p:4x4", 1, "v5p has 3 axes"),
    ("v5e:0x4", 1, "v5e has 2 axes"),
    ("gpu:h100", 1, "gpu:KINDxN"),
    ("gpu:k80x8", 1, "a100, h100"),
    ("gpu:h100x12", 1, "gpu:h100x12: must be up to 8 GPUs, or whole machines of 8"),
    ("gpu:gb200x6", 1, "4 GPUs, or whole machines of 4, beyond 72 whole racks of 72"),
    ("gpu:gb200x76", 1, "4 GPUs, or whole machines of 4, beyond 72 whole racks of 72"),
    ("gpu:h100x8", 2, "--slices=2: must be 1 for GPUs"),
    ("v5e:4x4", 0, "--slices=0: must be at least 1"),
  ],
)
def test_wrong_topologies(name, slices, words):
  with pytest.raises(UserError) as error:
    parse_topology(name, slices)
  assert words in str(error.value)


SCALE = ["plan", "--config=configs/scale.py:recipe=owt_110m", "--vocabulary-size=50258"]


@pytest.mark.parametrize(
  "arguments, words",
  [
    ([*SCALE, "--topology=v9:1"], ["--topology=v9:1", "v5e:16x16"]),
    ([*SCALE, "--topology=gpu:h100x3"], ["train.batch_size = 512", "multiple of 3"]),
    ([*SCALE, "--topology=gpu:h100x8", "--config.mesh.fsdp=3"], ["mesh", "8 devices"]),
    ([*SCALE[:2], "--topology=gpu:h100x8", "--vocabulary-size=1"], ["at least 2"]),
    (
      [*SCALE[:2], "--topology=gpu:h100x8", "--config.data.tokenizer=/nowhere"],
      ["data.tokenizer", "--vocabulary-size=N"],
    ),
    ([*SCALE, "--topology=gpu:h100x8", "--json=/nowhere/x.json"], ["--json=/nowhere"]),
    (SCALE, ["--topology"]),
  ],
)
def test_wrong_requests_end_in_one_line(capsys, arguments, words):
  assert cli.main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  (line,) = captured.err.splitlines()
  for word in words:
    assert word in line


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
  real = importlib.util.find_spec
  missing = lambda name, *more: None if name == "libtpu" else real(name, *more)
  monkeypatch.setattr(importlib.util, "find_spec", missing)
  assert cli.main([*SCALE, "--topology=v5e:16x16"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "needs libtpu; pip install 'set_diffusion_jax[tpu]'" in line


def test_a_gpu_plan_without_a_compiler_is_an_estimate(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(cuda, "installed", lambda: False)
  path = tmp_path / "plan.json"
  arguments = [*SCALE, "--topology=gpu:h100x64", "--config.mesh.fsdp=8"]
  assert cli.main([*arguments, f"--json={path}"]) == 0
  text, found = capsys.readouterr().out, json.loads(path.read_text())
  assert "fits: " in text and "nothing was compiled" in text
  memory = found["memory"]
  weights = found["work"]["parameters"]["value"]
  # Nearly every parameter is split over fsdp, and so are its moments.
  assert memory["parameters"]["value"] == pytest.approx(weights * 4 / 8, rel=0.01)
  assert memory["optimiser"]["value"] == pytest.approx(weights * 8 / 8, rel=0.01)
  assert memory["parameters"]["source"] == "analytic"
  assert {memory[x]["source"] for x in ("temporaries", "needed")} == {"estimate"}
  assert found["mesh"] == {"slice": 1, "data": 8, "fsdp": 8, "tensor": 1}
  assert set(found["collectives"]) == {
    "all-gather over fsdp, 2x",
    "reduce-scatter over fsdp, 1x",
    "all-reduce over data, 1x",
  }
  # Layers are matrices in all but a hundredth, and embeddings stay float32.
  half = [*arguments, f"--json={path}", "--config.model.gradient_dtype=compute"]
  assert cli.main(half) == 0
  rounded = json.loads(path.read_text())
  full, less = (x["work"] for x in (found, rounded))
  saved = full["gradients, float32"]["value"] - less["gradients, bfloat16"]["value"]
  assert 4 * weights == full["gradients, float32"]["value"]
  layers_and_head = weights - 50258 * 768
  assert saved == pytest.approx(2 * layers_and_head, rel=0.01)
  for name in ("reduce-scatter over fsdp, 1x", "all-reduce over data, 1x"):
    sent = [x["collectives"][name]["value"] for x in (found, rounded)]
    assert sent[1] / sent[0] == pytest.approx(1 - saved / (4 * weights), rel=1e-6)
  peak = 64 * chips.GPUS["h100"].flops
  step = found["at best"]["step"]["value"]
  work = found["work"]["model FLOPs a step"]["value"]
  assert found["at best"]["MFU"]["value"] == pytest.approx(work / step / peak)
  hours = 300_000 * step / 3600 * 64
  assert found["at best"]["chip-hours"]["value"] == pytest.approx(hours)


@pytest.mark.parametrize("changes", [{}, {**QWEN, "model__tied": True}])
def test_estimated_temporaries_grow_with_the_rows(changes):
  """By what a row keeps; neither weights nor the head's gradient are among it."""

  def estimated(rows):
    c = tiny.config(**{**WIDE, **changes, "train__batch_size": rows})
    mesh, vocabulary = sharding.abstract_mesh(c.mesh, 1), tiny.vocabulary(4096)
    p = Program.of(c, vocabulary, mesh)
    logits = 2 * 4 * rows * c.data.length * vocabulary.size
    return estimate.temporaries(p, vocabulary) - 2 * p.held().parameters - logits

  one, two, four = estimated(1), estimated(2), estimated(4)
  fixed = 2 * one - two  # whatever the rows: a few vectors
  assert 0 <= fixed < 0.05 * one
  assert four - fixed == pytest.approx(4 * (one - fixed), rel=0.01)


def test_too_large_for_gpus_ends_with_3(capsys, monkeypatch):
  monkeypatch.setattr(cuda, "installed", lambda: False)
  large = ["--config=configs/scale.py:recipe=qwen3_8b", "--vocabulary-size=151936"]
  arguments = ["plan", *large, "--topology=gpu:a100x8"]
  assert cli.main(arguments) == 3
  assert "DOES NOT FIT" in capsys.readouterr().out


def on_this_cpu(monkeypatch, limit):
  """A topology whose compiler is that of this machine's CPU."""
  monkeypatch.setattr(planner, "described_devices", lambda topology: jax.devices())
  monkeypatch.setattr(planner, "usable_memory", lambda device: limit)
  monkeypatch.setattr(roofline, "link_rate", lambda *_: 50e9)
  return parse_topology("v5e:2x2")


@pytest.mark.multidevice
def test_a_compiled_plan(monkeypatch):
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  topology = on_this_cpu(monkeypatch, 2**30)
  found = make_plan(tiny.config(mesh__fsdp=2), topology, tiny.vocabulary(64))
  assert found.fits
  assert found.mesh == {"slice": 1, "data": 2, "fsdp": 2, "tensor": 1}
  # What is held by hand is what the compiler is given, but for step, clip and key.
  state = ("parameters", "EMA", "optimiser", "batch")
  by_hand = sum(found.value("memory", x) for x in state)
  assert 0 <= found.value("memory", "arguments as laid out") - by_hand <= 24
  assert found.value("memory", "EMA") == found.value("memory", "parameters")
  whole = 4 * found.value("work", "parameters")
  assert whole / 2 <= found.value("memory", "parameters") < whole
  parts = ("arguments as laid out", "outputs", "temporaries", "code")
  assert found.value("memory", "peak") == sum(found.value("memory", x) for x in parts)
  assert any(x.section == "collectives" and "fsdp" in x.name for x in found.lines)
  sources = {x.source for x in found.lines if x.section == "memory"}
  assert sources == {"analytic", "compiler", "spec sheet"}
  assert json.loads(json.dumps(found.to_dict()))["fits"] is True


@pytest.mark.multidevice
def test_a_compiler_that_refuses_nothing(monkeypatch):
  """That for GPUs: what is needed is compared with what is usable."""
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  on_this_cpu(monkeypatch, None)
  monkeypatch.delenv(memory.SHARE, raising=False)
  usable = round(0.75 * chips.GPUS["h100"].memory)

  def compile_and_tell(program):
    peak = usable + (program.config.train.accumulate == 1)
    return CompiledStep(0.0, peak, 0, 0, 0, None, None, "")

  monkeypatch.setattr(planner, "compile_step", compile_and_tell)
  topology = parse_topology("gpu:h100x4")
  found = make_plan(tiny.config(train__batch_size=8), topology, tiny.vocabulary(64))
  assert not found.fits
  assert found.value("memory", "peak") == usable + 1
  assert found.suggestion == ["--config.train.accumulate=2"]
  assert "DOES NOT FIT" in found.text()


@pytest.mark.multidevice
def test_what_does_not_fit_comes_with_what_does(monkeypatch):
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  topology = on_this_cpu(monkeypatch, 10**9)
  refused = read_refusal("RESOURCE_EXHAUSTED: Used 5.00G of 1.00G hbm.")
  tried = []

  def compile_or_refuse(program):
    c = program.config
    tried.append((c.model.remat, c.mesh.fsdp, c.train.accumulate))
    enough = c.model.remat == "layer" and c.mesh.fsdp == 2
    return CompiledStep(0.0, 1, 1, 1, 1, 1.0, 1.0, "") if enough else refused

  monkeypatch.setattr(planner, "compile_step", compile_or_refuse)
  found = make_plan(tiny.config(), topology, tiny.vocabulary(64))
  assert not found.fits
  assert found.value("memory", "needed at least") == 5 * 2**30
  assert found.suggestion == ["--config.model.remat=layer", "--config.mesh.fsdp=2"]
  assert len(tried) == len(set(tried)) <= 1 + nearest.TRIES
  assert "--config.mesh.fsdp=2" in found.text()
  assert "DOES NOT FIT: at least 5.00 GiB of 1.00 GiB" in found.text().replace(
    "  ", " "
  )
