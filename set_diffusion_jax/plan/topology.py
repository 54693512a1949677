"""Machines that are not there: their names, chips and described devices."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from jax.experimental import topologies

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.hardware.chips import GPUS, TPUS, Chip
from set_diffusion_jax.plan import cuda
from set_diffusion_jax.plan.environment import environment

_RIGHT = (
  f"must be one of {', '.join(TPUS)} with the chips of a slice, as v5e:16x16, or "
  f"gpu:KINDxN with KIND one of {', '.join(GPUS)}"
)


# What keeps libtpu, which is only to compile, from looking for TPUs: it asks no cloud
# who it is, takes no lock and says nothing.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """What is planned for.

  Attributes:
    name: as it was given.
    chip: its spec sheet.
    shape: chips along each axis of the interconnect; of a GPU cluster, (GPUs,).
    slices: how many of these are joined by the data-centre network.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def is_tpu(self) -> bool:
    """Whether chips are TPUs, and not GPUs."""
    return self.chip.torus > 0

  @property
  def chips(self) -> int:
    """Of all slices."""
    return self.slices * math.prod(self.shape)

  @property
  def devices(self) -> int:
    """What JAX has of them: a chip may be two devices."""
    return self.chips * self.chip.devices


def parse_topology(name: str, slices: int = 1) -> Topology:
  """The topology of `--topology`; UserError where there is none such."""
  wrong = UserError(f"--topology={name}: {_RIGHT}")
  if slices < 1:
    raise UserError(f"--slices={slices}: must be at least 1")
  if gpu := re.fullmatch(r"gpu:(\w+?)x(\d+)", name):
    if gpu[1] not in GPUS or not int(gpu[2]):
      raise wrong
    if slices > 1:
      raise UserError(f"--slices={slices}: must be 1 for GPUs, which have no slices")
    chip, count = GPUS[gpu[1]], int(gpu[2])
    if count > chip.host and count % (chip.group if count > chip.group else chip.host):
      racks = f", beyond {chip.group} whole racks of {chip.group}"
      raise UserError(
        f"--topology={name}: must be up to {chip.host} GPUs, or whole machines of "
        f"{chip.host}{racks if chip.group > chip.host else ''}"
      )
    return Topology(name, chip, (count,))
  tpu = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if not tpu or tpu[1] not in TPUS:
    raise wrong
  chip, shape = TPUS[tpu[1]], tuple(map(int, tpu[2].split("x")))
  if len(shape) != chip.torus or 0 in shape:
    axes = "x".join("N" * chip.torus)
    raise UserError(f"--topology={name}: {chip.name} has {chip.torus} axes, {axes}")
  return Topology(name, chip, shape, slices)


def described_devices(topology: Topology) -> list[Any] | None:
  """The devices of a topology, as a compiler knows them.

  Returns:
    The devices, or None for GPUs where there is no compiler for them.

  Raises:
    UserError: libtpu is not installed, or a compiler knows no such topology.
  """
  if topology.is_tpu:
    return _described_tpus(topology)
  if not cuda.installed():
    return None
  try:
    return cuda.described_devices(topology.chip, topology.chips)
  except (NotImplementedError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0][:160]
    raise UserError(
      f"--topology={topology.name}: the CUDA plugin is of no use here: {reason}"
    ) from None


def _described_tpus(topology: Topology) -> list[Any]:
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"--topology={topology.name}: needs libtpu; pip install 'set_diffusion_jax[tpu]'"
    )
  options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  missing = {k: v for k, v in _ENVIRONMENT.items() if k not in os.environ}
  try:
    with environment(missing):
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **options
      )
  except (NotImplementedError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0][:160]
    raise UserError(f"--topology={topology.name}: libtpu: {reason}") from None
  return list(found.devices)
