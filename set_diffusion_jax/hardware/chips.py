"""One table of chips: for `plan`, for the MFU of a run, and for the launchers.

A new chip is one entry here. Every figure is from its maker's public specification, or
is said to be assumed.
"""

import dataclasses
from typing import NamedTuple

GIB = 2**30
_GBIT = 1e9 / 8  # bytes per second


class CloudTpu(NamedTuple):
  """What Google Cloud calls a TPU.

  Attributes:
    label: of GKE's nodes.
    kind: accelerator type of a queued resource, with what its size counts; None where
      it cannot be had that way.
    image: of such a machine.
  """

  label: str
  kind: str | None = None
  image: str | None = None


class CudaTarget(NamedTuple):
  """What XLA's compiler asks of a GPU.

  Attributes:
    name: as the driver gives it.
    capability: compute capability, major and minor.
    cores: streaming multiprocessors.
    lanes: float32 units of one.
    clock: GHz.
    shared: bytes of shared memory of one, and at most of a block.
    cache: bytes of the second-level cache.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  lanes: int
  clock: float
  shared: tuple[int, int]
  cache: int


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    name: as `--topology` has it.
    flops: dense bfloat16 operations per second.
    memory: bytes of HBM.
    bandwidth: of HBM, bytes per second.
    link: bytes per second that one link carries in one direction; for a GPU, that the
      switch carries for it.
    network: bytes per second in one direction between slices or machines, per chip.
    kinds: what JAX's `device_kind` starts with.
    devices: JAX's devices of a chip.
    inside: bytes per second in one direction between these.
    host: chips of a machine.
    torus: axes of the interconnect; 0 where a switch joins `group` chips.
    ring: chips along an axis from which on it closes to a ring.
    group: GPUs that a switch joins; several machines of them in a rack.
    cloud: names of a TPU at Google Cloud.
    label: of GKE's nodes with such GPUs; None where it has none.
    cuda: a GPU, as the compiler has to be told.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  network: float
  kinds: tuple[str, ...]
  devices: int = 1
  inside: float = 0.0
  host: int = 8
  torus: int = 0
  ring: int = 0
  group: int = 8
  cloud: CloudTpu | None = None
  label: str | None = None
  cuda: CudaTarget | None = None

  @property
  def device(self) -> "Chip":
    """The share of one of JAX's devices: compute, memory, links and network.

    A chip of two devices has its links once: each is taken to get half of their rate.
    """
    share = lambda value: value / self.devices
    return dataclasses.replace(
      self,
      flops=share(self.flops),
      memory=share(self.memory),
      bandwidth=share(self.bandwidth),
      link=share(self.link),
      network=share(self.network),
      devices=1,
    )


# Google Cloud's TPU pages: FLOP/s, HBM, the interconnect of a chip divided by its links
# and directions, and between slices the network per chip. For v4 and v5e they give no
# network: a host's cards over its chips is assumed, 50 and 25 Gbit/s. A TPU7x chip is
# two devices, joined six times as fast as one link.
TPUS = {
  "v4": Chip(
    "v4", 275e12, 32 * GIB, 1.228e12, 50e9, 50 * _GBIT, ("TPU v4",),
    host=4, torus=3, ring=4,
    cloud=CloudTpu("tpu-v4-podslice", "v4-{cores}", "tpu-ubuntu2204-base"),
  ),
  "v5e": Chip(
    "v5e", 197e12, 16 * GIB, 0.819e12, 50e9, 25 * _GBIT, ("TPU v5 lite", "TPU v5e"),
    host=4, torus=2, ring=16,
    cloud=CloudTpu("tpu-v5-lite-podslice", "v5litepod-{chips}", "v2-alpha-tpuv5-lite"),
  ),
  "v5p": Chip(
    "v5p", 459e12, 95 * GIB, 2.765e12, 100e9, 50 * _GBIT, ("TPU v5", "TPU v5p"),
    host=4, torus=3, ring=4,
    cloud=CloudTpu("tpu-v5p-slice", "v5p-{cores}", "v2-alpha-tpuv5"),
  ),
  "v6e": Chip(
    "v6e", 918e12, 32 * GIB, 1.638e12, 100e9, 100 * _GBIT, ("TPU v6 lite", "TPU v6e"),
    host=4, torus=2, ring=16,
    cloud=CloudTpu("tpu-v6e-slice", "v6e-{chips}", "v2-alpha-tpuv6e"),
  ),
  "tpu7x": Chip(
    "tpu7x", 2307e12, 192 * GIB, 7.380e12, 100e9, 100 * _GBIT, ("TPU7x",),
    devices=2, inside=600e9, host=4, torus=3, ring=4, cloud=CloudTpu("tpu7x"),
  ),
}  # fmt: skip
_HOPPER = (233472, 232448)  # and Blackwell
_MIB = 2**20
# NVIDIA's data sheets: SXM boards, of which one has one network card, and for GB200 the
# rack of 72. FLOP/s of B200, B300 and GB200, which are given with sparsity, are halved.
GPUS = {
  "a100": Chip(
    "a100", 312e12, 80e9, 2.039e12, 300e9, 200 * _GBIT, ("NVIDIA A100",),
    label="nvidia-a100-80gb",
    cuda=CudaTarget(
      "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, (167936, 166912), 40 * _MIB
    ),
  ),
  "h100": Chip(  # not the PCIe board
    "h100", 989e12, 80e9, 3.35e12, 450e9, 400 * _GBIT, ("NVIDIA H100 80GB HBM3",),
    label="nvidia-h100-80gb",
    cuda=CudaTarget(
      "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, _HOPPER, 50 * _MIB
    ),
  ),
  "h200": Chip(
    "h200", 989e12, 141e9, 4.8e12, 450e9, 400 * _GBIT, ("NVIDIA H200",),
    label="nvidia-h200-141gb",
    cuda=CudaTarget("NVIDIA H200", (9, 0), 132, 128, 1.98, _HOPPER, 50 * _MIB),
  ),
  "b200": Chip(
    "b200", 2250e12, 180e9, 7.7e12, 900e9, 400 * _GBIT, ("NVIDIA B200",),
    label="nvidia-b200",
    cuda=CudaTarget("NVIDIA B200", (10, 0), 148, 128, 1.965, _HOPPER, 126 * _MIB),
  ),
  "b300": Chip(
    "b300", 2250e12, 270e9, 7.7e12, 900e9, 800 * _GBIT, ("NVIDIA B300",),
    cuda=CudaTarget("NVIDIA B300", (10, 3), 148, 128, 2.032, _HOPPER, 126 * _MIB),
  ),
  "gb200": Chip(
    "gb200", 2500e12, 186e9, 8e12, 900e9, 400 * _GBIT, ("NVIDIA GB200",),
    host=4, group=72, label="nvidia-gb200",
    cuda=CudaTarget("NVIDIA GB200", (10, 0), 152, 128, 2.062, _HOPPER, 126 * _MIB),
  ),
}  # fmt: skip


def chip_of(kind: str) -> Chip | None:
  """The chip of a `device_kind`; of several that fit, the one with the longest name.

  None where it is not in the table, as for a CPU.
  """
  every = (*TPUS.values(), *GPUS.values())
  fits = [(k, chip) for chip in every for k in chip.kinds if kind.startswith(k)]
  return max(fits, key=lambda fit: len(fit[0]))[1] if fits else None


def peak_flops(kind: str) -> float | None:
  """Dense bfloat16 operations a second of a device of a kind; None where unknown."""
  chip = chip_of(kind)
  return chip.device.flops if chip else None
