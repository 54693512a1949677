"""Chips as their makers describe them. Every figure here is from a spec sheet."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    name: as `--topology` has it.
    flops: dense bfloat16 operations per second.
    memory: bytes of HBM.
    bandwidth: of HBM, bytes per second.
    link: bytes per second that one link carries in one direction; for a GPU, that the
      switch inside a machine carries for it.
    network: bytes per second in one direction between slices or machines, per chip.
    torus: axes of the interconnect; 0 where a switch joins `group` chips.
    ring: chips along an axis from which on it closes to a ring.
    group: GPUs of a machine.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  network: float
  torus: int = 0
  ring: int = 0
  group: int = 8


# Google Cloud's TPU pages: HBM, FLOP/s, and the interconnect of a chip divided by its
# links. Between slices they give no figure a chip: a host's network cards over its
# chips is assumed, 25, 50 and 100 Gbit/s.
TPUS = {
  "v4": Chip("v4", 275e12, 32 * GIB, 1.228e12, 50e9, 6.25e9, torus=3, ring=4),
  "v5e": Chip("v5e", 197e12, 16 * GIB, 0.819e12, 50e9, 3.125e9, torus=2, ring=16),
  "v5p": Chip("v5p", 459e12, 95 * GIB, 2.765e12, 100e9, 6.25e9, torus=3, ring=4),
  "v6e": Chip("v6e", 918e12, 32 * GIB, 1.638e12, 100e9, 12.5e9, torus=2, ring=16),
}
# NVIDIA's data sheets, SXM boards; one 200 or 400 Gbit/s network card a GPU.
GPUS = {
  "a100": Chip("a100", 312e12, 80e9, 2.039e12, 300e9, 25e9),
  "h100": Chip("h100", 989e12, 80e9, 3.35e12, 450e9, 50e9),
  "h200": Chip("h200", 989e12, 141e9, 4.8e12, 450e9, 50e9),
  "b200": Chip("b200", 2250e12, 180e9, 7.7e12, 900e9, 50e9),
}
