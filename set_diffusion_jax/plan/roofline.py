"""How fast a step can be at best: compute, memory and links, each at its limit."""

import dataclasses
import itertools

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from set_diffusion_jax.plan.chips import Chip
from set_diffusion_jax.plan.hlo import Collective
from set_diffusion_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The collectives of one kind over the same mesh axes.

  Attributes:
    kind: of the collectives.
    axes: of the mesh, such as "data+fsdp".
    count: runs a step.
    sent: bytes a chip a step, within a slice or machine.
    network: bytes a chip a step, between them.
    seconds: that this takes by itself.
  """

  kind: str
  axes: str
  count: int
  sent: float
  network: float
  seconds: float


def traffic(
  found: list[Collective], mesh: Mesh | AbstractMesh, topology: Topology
) -> list[Traffic]:
  """Collectives summed by kind and axes, the slowest first."""
  one = [_traffic(collective, mesh, topology) for collective in found]
  key = lambda t: (t.kind, t.axes)
  summed = []
  for (kind, axes), group in itertools.groupby(sorted(one, key=key), key):
    parts = list(group)
    total = lambda name, parts=parts: sum(getattr(p, name) for p in parts)
    sums = [total(name) for name in ("count", "sent", "network", "seconds")]
    summed.append(Traffic(kind, axes, *sums))
  return sorted(summed, key=lambda t: -t.seconds)


def _traffic(one: Collective, mesh: Mesh | AbstractMesh, topology: Topology) -> Traffic:
  """A collective over a group of g chips in s slices or machines.

  Within one, rings; between them, each of the g / s chips of one exchanges its part.
  """
  group = one.groups[0]
  places = np.stack(np.unravel_index(group, tuple(mesh.shape.values())))
  varies = [len(set(place.tolist())) > 1 for place in places]
  axes = [name for name, used in zip(mesh.axis_names, varies, strict=True) if used]
  homes = _homes(group, mesh, topology)
  across, within, network = len(set(homes)), one.sent * one.times, 0.0
  if across > 1:
    inner = max(1, len(group) // across)
    whole = one.bytes * one.times * (2 if one.kind == "all-reduce" else 1)
    within = whole * (inner - 1) / inner
    network = whole / inner * (across - 1) / across
  rate = link_rate(group, mesh, topology, one.kind)
  seconds = within / rate + network / topology.chip.network
  return Traffic(one.kind, "+".join(axes), one.times, within, network, seconds)


def _homes(
  group: np.ndarray, mesh: Mesh | AbstractMesh, topology: Topology
) -> list[int]:
  """The slice or machine of each chip of a group."""
  if topology.slices > 1:
    return [mesh.devices.flat[i].slice_index for i in group]
  if not topology.is_tpu:
    return [int(i) // topology.chip.group for i in group]
  return [0] * len(group)


def link_rate(
  group: np.ndarray, mesh: Mesh | AbstractMesh, topology: Topology, kind: str
) -> float:
  """Bytes per second that a chip can send to others of its group.

  On a torus, over all axes that the group spans: both links of an axis that closes to
  a ring, one of an axis that does not; a permute takes one link.
  """
  chip = topology.chip
  if not chip.torus or kind == "collective-permute":
    return chip.link
  places = np.array([mesh.devices.flat[i].coords[: chip.torus] for i in group])
  rings = [
    2 if size >= chip.ring else 1
    for size, column in zip(topology.shape, places.T, strict=True)
    if len(set(column.tolist())) > 1
  ]
  return chip.link * max(1, sum(rings))


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step by what limits it.

  Attributes:
    compute: matrix products at the chip's peak.
    memory: bytes of HBM that cannot be avoided, at its bandwidth.
    links: collectives, one after another.
  """

  compute: float
  memory: float
  links: float

  @property
  def overlapped(self) -> float:
    """The best: the slowest of the three hides the others."""
    return max(self.compute, self.memory, self.links)

  @property
  def exposed(self) -> float:
    """Nothing hidden behind anything."""
    return self.compute + self.memory + self.links


def roofline(
  flops: float, held: int, weights: int, temporaries: int, seconds: float, chip: Chip
) -> Roofline:
  """The limits of a step.

  Args:
    flops: executed, a chip.
    held: bytes of the state; it is read and written once.
    weights: bytes of weights that products read, in all passes.
    temporaries: bytes at their peak; written once and read once.
    seconds: of all collectives.
    chip: the spec sheet.
  """
  moved = 2 * held + weights + 2 * temporaries
  return Roofline(flops / chip.flops, moved / chip.bandwidth, seconds)
