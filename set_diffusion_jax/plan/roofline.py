"""How fast a step can be at best: compute, memory and links, each at its limit."""

import dataclasses
import itertools

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from set_diffusion_jax.hardware.chips import Chip
from set_diffusion_jax.plan.hlo import Collective
from set_diffusion_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The collectives of one kind over the same mesh axes.

  Attributes:
    kind: of the collectives.
    axes: of the mesh, such as "data+fsdp".
    count: runs a step.
    sent: bytes a device a step, within a slice or machine.
    network: bytes a device a step, between them.
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
  """A collective; of its groups the one that spans most slices or machines counts."""
  places = np.stack(np.unravel_index(one.groups, tuple(mesh.shape.values())))
  varies = (places != places[..., :1]).any(axis=(1, 2))
  axes = [name for name, used in zip(mesh.axis_names, varies, strict=True) if used]
  homes = [len(set(row)) for row in _homes(one.groups, mesh, topology).tolist()]
  worst = int(np.argmax(homes))
  within, network = (n * one.times for n in _sent(one, homes[worst]))
  slowest = one.groups if one.kind == "collective-permute" else one.groups[[worst]]
  rate = min(link_rate(group, mesh, topology, one.kind) for group in slowest)
  seconds = within / rate + network / topology.chip.device.network
  return Traffic(one.kind, "+".join(axes), one.times, within, network, seconds)


def _sent(one: Collective, across: int) -> tuple[float, float]:
  """Bytes that a device sends in one run: within a slice or machine, and between them.

  Its group has g devices in `across` of these. What is gathered or reduced goes in
  rings within one, and between them each of its g / across devices exchanges its part.
  Of an all-to-all, what is for another one goes there directly; a permute, which waits
  for its slowest pair, sends all that it has.
  """
  if across == 1:
    return one.sent, 0.0
  if one.kind in ("collective-permute", "collective-broadcast"):
    return 0.0, one.sent
  size = one.groups.shape[-1]
  inner = max(1, size // across)
  if one.kind in ("all-to-all", "ragged-all-to-all"):
    return one.bytes * (inner - 1) / size, one.bytes * (size - inner) / size
  whole = one.bytes * (2 if one.kind == "all-reduce" else 1)
  return whole * (inner - 1) / inner, whole / inner * (across - 1) / across


def _homes(
  groups: np.ndarray, mesh: Mesh | AbstractMesh, topology: Topology
) -> np.ndarray:
  """The slice, or what a switch joins, of each device of each group."""
  if topology.slices > 1:
    return np.array([d.slice_index for d in mesh.devices.flat])[groups]
  if not topology.is_tpu:
    return groups // topology.chip.group
  return np.zeros_like(groups)


def link_rate(
  group: np.ndarray, mesh: Mesh | AbstractMesh, topology: Topology, kind: str
) -> float:
  """Bytes per second that a device can send to others of its group.

  On a torus, over all axes that the group spans: both links of an axis that closes to
  a ring, one of an axis that does not; a permute takes one link. Devices of one chip
  have a connection of their own.
  """
  chip = topology.chip
  if not chip.torus:
    return chip.link
  places = np.array([mesh.devices.flat[i].coords[: chip.torus] for i in group])
  if chip.inside and (places == places[0]).all():
    return chip.inside
  if kind == "collective-permute":
    return chip.device.link
  rings = [
    2 if size >= chip.ring else 1
    for size, column in zip(topology.shape, places.T, strict=True)
    if len(set(column.tolist())) > 1
  ]
  return chip.device.link * max(1, sum(rings))


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
    flops: executed, a device.
    held: bytes of the state; it is read and written once.
    weights: bytes of weights that products read, in all passes.
    temporaries: bytes at their peak; written once and read once.
    seconds: of all collectives.
    chip: the spec sheet of a device.
  """
  moved = 2 * held + weights + 2 * temporaries
  return Roofline(flops / chip.flops, moved / chip.bandwidth, seconds)
