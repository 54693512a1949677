"""The training step of a configuration, compiled for a mesh that is not there."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from set_diffusion_jax.training.step import Program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """What the compiler says, in bytes a chip.

  Attributes:
    seconds: that tracing and compiling took.
    arguments: state and batch, as they are laid out in memory.
    outputs: beyond what reuses the donated state.
    temporaries: activations, gradients, gathered weights, buffers.
    code: of the program.
    accessed: bytes read and written, each loop's body counted once; None for GPUs.
    flops: likewise, and without what kernels of their own do.
    text: the optimised module.
  """

  seconds: float
  arguments: int
  outputs: int
  temporaries: int
  code: int
  accessed: float | None
  flops: float | None
  text: str

  @property
  def peak(self) -> int:
    """All of these together."""
    return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """The compiler's refusal.

  Attributes:
    seconds: until it came.
    needed: bytes a chip; of temporaries alone where it says no more.
    limit: bytes that a program can use of a chip.
    temporaries_only: whether `needed` leaves out the state.
  """

  seconds: float
  needed: int
  limit: int
  temporaries_only: bool


def compile_step(program: Program) -> CompiledStep | TooLarge:
  """Compiles `train_step` for the program's mesh."""
  start = time.perf_counter()
  traced = program.step.trace(program.abstract_state(), program.abstract_batch())
  lowered = traced.lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    refused = read_refusal(str(error), time.perf_counter() - start)
    if refused is None:
      raise
    return refused
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
  return CompiledStep(
    seconds=time.perf_counter() - start,
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    accessed=cost.get("bytes accessed"),
    flops=cost.get("flops"),
    text=compiled.as_text(),
  )


def read_refusal(message: str, seconds: float = 0.0) -> TooLarge | None:
  """What a RESOURCE_EXHAUSTED message says; None for any other error."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  used = re.search(rf"Used {_SIZE} of {_SIZE} hbm", message)
  if used:
    return TooLarge(
      seconds, _bytes(*used.groups()[:2]), _bytes(*used.groups()[2:]), False
    )
  temporaries = re.search(
    rf"required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    message,
  )
  if temporaries:
    groups = temporaries.groups()
    return TooLarge(seconds, _bytes(*groups[:2]), _bytes(*groups[2:]), True)
  return None


def _bytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])


def usable_memory(device) -> int | None:
  """Bytes that the compiler gives a program on a chip; None where it sets no limit.

  Found by asking for far more.
  """
  mesh = jax.sharding.Mesh(np.array([device]), ("x",))
  layout = NamedSharding(mesh, PartitionSpec())
  huge = jax.ShapeDtypeStruct((2**41,), jnp.int8, sharding=layout)
  step = jax.jit(lambda x: x + 1, out_shardings=layout).trace(huge)
  try:
    step.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    refused = read_refusal(str(error))
    return refused.limit if refused else None
  return None
