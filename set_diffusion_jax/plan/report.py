"""What a plan found: lines that each say where their figure is from."""

import dataclasses

from set_diffusion_jax.hardware.chips import GIB
from set_diffusion_jax.plan.topology import Topology

# Where a figure is from. `analytic` is computed by hand from shapes, `compiler` read
# from the compiled step, `JAX's share` the part of a GPU's memory that JAX is told to
# take, `estimate` none of these; a figure made of two names both.
COMPILER, ANALYTIC, SHEET, ESTIMATE = "compiler", "analytic", "spec sheet", "estimate"
JAX = "JAX's share"


@dataclasses.dataclass(frozen=True)
class Line:
  """One figure."""

  section: str
  name: str
  value: float
  unit: str
  source: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known about a configuration on a topology.

  Attributes:
    topology: what was planned for.
    mesh: its axes and their sizes.
    fits: whether a device holds it.
    lines: the figures.
    notes: what else is to be said, a line each.
    suggestion: `--config.field=value` of the nearest configuration that fits, if it
      was looked for: None, or empty where none was found.
  """

  topology: Topology
  mesh: dict[str, int]
  fits: bool
  lines: list[Line]
  notes: list[str]
  suggestion: list[str] | None = None

  def value(self, section: str, name: str) -> float:
    """The figure of a line."""
    (line,) = (x for x in self.lines if (x.section, x.name) == (section, name))
    return line.value

  def to_dict(self) -> dict:
    """Plain JSON values: figures in their units, as section -> name -> figure."""
    sections: dict = {}
    for line in self.lines:
      figure = {"value": line.value, "unit": line.unit, "source": line.source}
      sections.setdefault(line.section, {})[line.name] = figure
    return {
      "topology": self.topology.name,
      "slices": self.topology.slices,
      "chips": self.topology.chips,
      "mesh": self.mesh,
      "fits": self.fits,
      **sections,
      "notes": self.notes,
      "suggestion": self.suggestion,
    }

  def text(self) -> str:
    """For a terminal."""
    axes = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
    slices = f", {self.topology.slices} slices" if self.topology.slices > 1 else ""
    size = f"{self.topology.chips} chips"
    if self.topology.chip.devices > 1:
      size += f" of {self.topology.chip.devices} devices"
    title = f"{self.topology.name}{slices}: {size}, mesh {axes}"
    found = [title, self._verdict()]
    width = max((len(line.name) for line in self.lines), default=0)
    section = None
    for line in self.lines:
      if line.section != section:
        section = line.section
        found.append(f"\n{section}")
      value = f"{shown(line.value, line.unit):>16}"
      found.append(f"  {line.name:{width}} {value}  {line.source}")
    if self.notes:
      found += ["", *(f"note: {note}" for note in self.notes)]
    if self.suggestion:
      found += ["", "nearest configuration that fits:"]
      found += [f"  {change}" for change in self.suggestion]
    elif self.suggestion is not None:
      found += [
        "",
        "no configuration that fits was found by changing remat, fsdp and accumulate",
      ]
    return "\n".join(found)

  def _verdict(self) -> str:
    names = {line.name for line in self.lines if line.section == "memory"}
    needed = next(n for n in ("peak", "needed", "needed at least") if n in names)
    verb = "fits" if self.fits else "DOES NOT FIT"
    word = {"needed at least": "at least "}.get(needed, "")
    size = self.value("memory", needed) / GIB
    limit = self.value("memory", "usable") / GIB
    each = "device" if self.topology.chip.devices > 1 else "chip"
    return f"{verb}: {word}{size:.2f} GiB of {limit:.2f} GiB a {each}"


_PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def shown(value: float, unit: str) -> str:
  """A figure with its unit, in a size that one reads easily."""
  if unit == "bytes":
    return f"{value / GIB:.3f} GiB"
  if unit == "share":
    return f"{100 * value:.1f} %"
  if unit == "seconds":
    return f"{value:.1f} s" if value >= 10 else f"{1e3 * value:.2f} ms"
  if unit == "FLOP":
    prefix, size = next((p for p in _PREFIXES if value >= p[1]), ("", 1.0))
    return f"{value / size:.3g} {prefix}FLOP"
  if unit == "hours":
    return f"{value:,.1f} {unit}"
  return f"{value:,.0f} {unit}".strip()
