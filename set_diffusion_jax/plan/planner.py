"""Plans a configuration: compiles its step for a topology, or estimates it."""

from jax.sharding import Mesh

from set_diffusion_jax import sharding
from set_diffusion_jax.config import Config
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.hardware.memory import SHARE, gpu_share
from set_diffusion_jax.hardware.work import weights_read
from set_diffusion_jax.plan import estimate, nearest
from set_diffusion_jax.plan.compiled import (
  CompiledStep,
  TooLarge,
  compile_step,
  usable_memory,
)
from set_diffusion_jax.plan.hlo import collectives
from set_diffusion_jax.plan.report import (
  ANALYTIC,
  COMPILER,
  ESTIMATE,
  JAX,
  SHEET,
  Line,
  Plan,
)
from set_diffusion_jax.plan.roofline import Traffic, roofline, traffic
from set_diffusion_jax.plan.topology import Topology, described_devices
from set_diffusion_jax.training.step import Program, check_mesh, make_mesh

_LIMITS = f"{ANALYTIC}, {COMPILER}, {SHEET}"
_OVERLAP = (
  "'best' hides the two faster of compute, HBM and links behind the slowest; "
  "'nothing hidden' is their sum. Kernels that miss the chip's peak come on top."
)


def make_plan(
  config: Config, topology: Topology, vocabulary: Vocabulary, search: bool = True
) -> Plan:
  """The plan of a configuration.

  Args:
    config: the experiment.
    topology: where it would run.
    vocabulary: of its tokenizer.
    search: look for a configuration that fits, if this one does not.

  Raises:
    UserError: the mesh does not fit the topology, or the topology cannot be had.
  """
  devices = described_devices(topology)
  if devices is None:
    return _estimate(config, topology, vocabulary)
  mesh = make_mesh(config, devices)
  program = Program.of(config, vocabulary, mesh)
  usable = _usable(topology, devices[0])
  found = compile_step(program)
  suggestion = None
  if search and not _fits(found, usable.value):
    suggestion = _nearest(config, devices, mesh, vocabulary, usable.value)
  if isinstance(found, TooLarge):
    return _refused(program, topology, found, suggestion)
  return _compiled(program, topology, found, usable, suggestion)


def _usable(topology: Topology, device) -> Line:
  """What a program gets of a device's memory."""
  if topology.is_tpu:
    return Line("memory", "usable", usable_memory(device), "bytes", COMPILER)
  return _shared(topology)


def _shared(topology: Topology) -> Line:
  """What JAX takes of a GPU's memory."""
  usable = gpu_share() * topology.chip.memory
  return Line("memory", "usable", usable, "bytes", f"{JAX}, {SHEET}")


def _share_note() -> str:
  return (
    f"JAX takes {gpu_share():.0%} of a GPU's memory for its programs: {SHARE} (0.75 "
    "where it is not set) in the environment of `plan`, and of the run"
  )


def _fits(found: CompiledStep | TooLarge, usable: float) -> bool:
  return isinstance(found, CompiledStep) and found.peak <= usable


def _compiled(
  program, topology, found: CompiledStep, usable: Line, suggestion: list[str] | None
) -> Plan:
  lines = _held(program)
  add = lambda name, value, source: lines.append(
    Line("memory", name, value, "bytes", source)
  )
  add("arguments as laid out", found.arguments, COMPILER)
  add("outputs", found.outputs, COMPILER)
  add("temporaries", found.temporaries, COMPILER)
  add("code", found.code, COMPILER)
  add("peak", found.peak, COMPILER)
  lines.append(usable)
  add("HBM", topology.chip.device.memory, SHEET)
  moving, problems = collectives(found.text)
  links = traffic(moving, program.mesh, topology)
  lines += _speed(program, topology, links, found.temporaries, COMPILER)
  lines.append(Line("compiler", "compile time", found.seconds, "seconds", COMPILER))
  for name, value, unit in (
    ("FLOPs, loop bodies once", found.flops, "FLOP"),
    ("bytes, loop bodies once", found.accessed, "bytes"),
  ):
    if value is not None:
      lines.append(Line("compiler", name, value, unit, COMPILER))
  notes = [_OVERLAP, *(f"collectives: {problem}" for problem in problems)]
  if not topology.is_tpu:
    notes.append(_share_note())
  mesh, fits = dict(program.mesh.shape), _fits(found, usable.value)
  return Plan(topology, mesh, fits, lines, notes, suggestion)


def _refused(program, topology, found: TooLarge, suggestion) -> Plan:
  lines = _held(program)
  state = program.held().total if found.temporaries_only else 0
  if found.temporaries_only:
    lines.append(Line("memory", "temporaries", found.needed, "bytes", COMPILER))
  source = f"{COMPILER}, {ANALYTIC}" if state else COMPILER
  lines += [
    Line("memory", "needed at least", found.needed + state, "bytes", source),
    Line("memory", "usable", found.limit, "bytes", COMPILER),
    Line("memory", "HBM", topology.chip.device.memory, "bytes", SHEET),
    Line("compiler", "time until refused", found.seconds, "seconds", COMPILER),
  ]
  return Plan(topology, dict(program.mesh.shape), False, lines, [], suggestion)


def _estimate(config: Config, topology: Topology, vocabulary: Vocabulary) -> Plan:
  mesh = sharding.abstract_mesh(config.mesh, topology.devices)
  check_mesh(config, mesh)
  program = Program.of(config, vocabulary, mesh)
  lines = _held(program)
  temporaries = estimate.temporaries(program, vocabulary)
  needed = program.held().total + temporaries
  usable = _shared(topology)
  add = lambda name, value, source: lines.append(
    Line("memory", name, value, "bytes", source)
  )
  add("temporaries", temporaries, ESTIMATE)
  add("needed", needed, ESTIMATE)
  lines.append(usable)
  add("HBM", topology.chip.memory, SHEET)
  links = traffic(estimate.collectives(program, config), mesh, topology)
  lines += _speed(program, topology, links, temporaries, ESTIMATE)
  notes = [
    _OVERLAP,
    "nothing was compiled, which needs the extra 'gpu': only the state is exact; "
    "temporaries and collectives are by hand",
    _share_note(),
  ]
  return Plan(topology, dict(mesh.shape), needed <= usable.value, lines, notes)


def _held(program: Program) -> list[Line]:
  size = program.held()
  rows = [
    ("parameters", size.parameters),
    ("EMA", size.ema),
    ("optimiser", size.optimizer),
    ("batch", size.batch),
  ]
  return [Line("memory", name, value, "bytes", ANALYTIC) for name, value in rows]


def _speed(
  program: Program,
  topology: Topology,
  links: list[Traffic],
  temporaries: int,
  source: str,
) -> list[Line]:
  config, chip, chips = program.config, topology.chip, topology.chips
  flops, train = program.flops(), config.train
  held, count = program.held().total, program.parameters()
  seconds = sum(t.seconds for t in links)
  weights = weights_read(config, count, program.mesh.shape["tensor"])
  each = flops.executed / topology.devices
  limits = roofline(each, held, weights, temporaries, seconds, chip.device)
  tokens, dtype = train.batch_size * config.data.length, config.model.summed_in
  lines = [
    Line("work", "parameters", count, "", ANALYTIC),
    Line("work", "tokens a step", tokens, "", ANALYTIC),
    Line("work", "model FLOPs a step", flops.model, "FLOP", ANALYTIC),
    Line("work", "executed FLOPs a step", flops.executed, "FLOP", ANALYTIC),
    Line("work", f"gradients, {dtype}", program.gradients(), "bytes", ANALYTIC),
  ]
  for one in links:
    name = f"{one.kind} over {one.axes}, {one.count:,}x"
    sent = one.sent + one.network
    lines.append(Line("collectives", name, sent, "bytes", source))
  lines += _times(links, limits, source)
  peak = flops.model / (chips * chip.flops)
  for name, seconds in (
    ("best", limits.overlapped),
    ("nothing hidden", limits.exposed),
  ):
    hours = train.steps * seconds / 3600
    add = lambda label, value, unit, name=name: lines.append(
      Line("at best" if name == "best" else name, label, value, unit, _from(source))
    )
    add("step", seconds, "seconds")
    add("MFU", peak / seconds, "share")
    add("tokens per second", tokens / seconds, "")
    add("tokens per day", tokens * 86400 / seconds, "")
    add(f"{train.steps:,} steps", hours, "hours")
    add("chip-hours", hours * chips, "")
  return lines


def _times(links: list[Traffic], limits, source: str) -> list[Line]:
  one = lambda name, value, origin: Line("limits", name, value, "seconds", origin)
  return [
    one("compute", limits.compute, f"{ANALYTIC}, {SHEET}"),
    one("HBM", limits.memory, f"{source}, {SHEET}"),
    one("links", limits.links, f"{source}, {SHEET}"),
  ]


def _from(source: str) -> str:
  return f"{ANALYTIC}, {source}, {SHEET}"


def _nearest(config, devices, mesh: Mesh, vocabulary, usable: float) -> list[str]:
  tries = 0
  for candidate in nearest.candidates(config, dict(mesh.shape)):
    program = Program.of(candidate, vocabulary, make_mesh(candidate, devices))
    if program.held().total > usable:
      continue
    tries += 1
    if _fits(compile_step(program), usable):
      return nearest.overrides(config, candidate)
    if tries == nearest.TRIES:
      break
  return []
