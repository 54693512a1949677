"""GPUs that are not there, described to XLA's compiler for them.

It comes with JAX's CUDA plugin (the extra `gpu`) and needs neither a GPU nor a driver.
Nothing is timed: where it would choose among kernels by trying them, it takes its
defaults, so that memory can differ a little from what a GPU says.
"""

import importlib.util
from typing import Any

import jax
from jax.experimental import topologies

from set_diffusion_jax.hardware.chips import Chip
from set_diffusion_jax.plan.environment import environment

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# The plugin would refuse to be loaded where there is no driver, and says much.
_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def installed() -> bool:
  """Whether the compiler is there."""
  return any(importlib.util.find_spec(name) is not None for name in PLUGINS)


def described_devices(chip: Chip, count: int) -> list[Any]:
  """So many GPUs in machines of `chip.host`, as the compiler knows them.

  Raises:
    RuntimeError: the compiler knows no such GPUs, or could not be loaded.
  """
  each = min(count, chip.host)
  with environment(_ENVIRONMENT):
    jax.devices("cpu")  # has JAX look for its plugins
    found = topologies.get_topology_desc(
      platform="cuda",
      topology_name=chip.name,
      topology=f"1x{count // each}x{each}",  # joined by NVLink, machines, GPUs of one
      target_config=_target(chip),
    )
  return list(found.devices)


def _target(chip: Chip) -> str:
  """XLA's GpuTargetConfigProto in text."""
  device = chip.cuda
  of_core, of_block = device.shared
  return f"""
    platform_name: "CUDA"
    device_description_str: "{device.name}"
    runtime_version {{ major: 12 minor: 9 }}
    dnn_version_info {{ major: 9 minor: 8 }}
    gpu_device_info {{
      cuda_compute_capability {{
        major: {device.capability[0]} minor: {device.capability[1]}
      }}
      core_count: {device.cores}
      fpus_per_core: {device.lanes}
      clock_rate_ghz: {device.clock}
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: {of_block}
      shared_memory_per_core: {of_core}
      l2_cache_size: {device.cache}
      device_memory_size: {int(chip.memory)}
      memory_bandwidth: {int(chip.bandwidth)}
    }}
  """
