"""Training steps, tokens a second, beside the published design in eager PyTorch.

Both sides take the same step in float32: two streams of a DiT, AdamW after clipping,
EMA. Each runs in processes of its own, ours and the peer's in turn; its memory is the
highest resident size minus the one after its imports. Ours reads the compiled step from
a cache, but for the first process.
"""

import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.shapes import LONG, SHAPES, Shape
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.training.step import Program, make_mesh

STEPS, TURNS = 3, 2
DEEP = 28  # layers, for the time of compilation alone


def ours(shape: Shape, cache: pathlib.Path) -> dict:
  """Seconds of steps after the first one; bytes of memory."""
  jax.config.update("jax_compilation_cache_dir", str(cache))
  before = measure.resident_bytes()["now"]
  program = _program(shape)
  step = _compiled(program)[1]
  tokens = jnp.asarray(shape.texts(shape.batch))
  every, row = jnp.ones(tokens.shape, bool), jnp.arange(shape.batch, dtype=jnp.int32)
  batch, held = Batch(tokens, every, ~every, row), [program.init()]

  def run():
    state, metrics = step(held.pop(), batch)
    held.append(state)
    return metrics

  return {
    "seconds": measure.alternating({"step": run}, STEPS)["step"],
    "memory": measure.resident_bytes()["peak"] - before,
  }


def peer(shape: Shape, _cache: pathlib.Path) -> dict:
  """Seconds of the peer's steps after the first one; bytes of memory."""
  from benchmarks.torch_peer import Trainer  # for this process alone: it holds memory

  before = measure.resident_bytes()["now"]
  trainer = Trainer(shape.config().model, shape.vocab_size)
  run = lambda: trainer.step(shape.texts(shape.batch), shape.ranks())
  return {
    "seconds": measure.alternating({"step": run}, STEPS)["step"],
    "memory": measure.resident_bytes()["peak"] - before,
  }


def compile_seconds(shape: Shape) -> float:
  """Of the training step, tracing included."""
  return _compiled(_program(shape))[0]


def _program(shape: Shape) -> Program:
  config = shape.config()
  return Program.of(config, shape.vocabulary, make_mesh(config))


def _compiled(program: Program):
  start = time.perf_counter()
  step = program.step.lower(program.abstract_state(), program.abstract_batch())
  step = step.compile()
  return time.perf_counter() - start, step


def step_bytes(program: Program) -> float:
  """What a step reads and writes however it is computed: parameters, in float32.

  Read forward, backward and by the optimiser, the gradient written and read, two
  moments, the EMA and the parameters themselves read and written: 12 times.
  """
  return 12 * 4 * program.parameters()


def main() -> dict:
  """Prints speed, memory and time of compilation of each shape; returns them."""
  rates, table = measure.in_process(measure.machine_rates), measure.Table()
  for name, shape in SHAPES.items():
    sides: dict = {ours: [], peer: []}
    with tempfile.TemporaryDirectory() as cache:
      for _ in range(TURNS):
        for side, found in sides.items():
          found.append(measure.in_process(side, shape, pathlib.Path(cache)))
    times = [[t for turn in turns for t in turn["seconds"]] for turns in sides.values()]
    memory = [min(turn["memory"] for turn in turns) for turns in sides.values()]
    program = _program(shape)
    row = measure.row(
      name,
      str(shape),
      "tokens/s",
      shape.tokens,
      *times,
      flops=program.flops().model,
      transferred=step_bytes(program),
      rates=rates,
      memory_bytes=memory[0],
      peer_memory_bytes=memory[1],
      memory_ratio=memory[0] / memory[1],
    )
    gigabytes = [f"{size / 1e9:.2f} GB" for size in memory]
    table.add(row, f"memory: {gigabytes[0]}, peer {gigabytes[1]}")
  compiling = {
    layers: measure.in_process(compile_seconds, LONG.with_layers(layers))
    for layers in (LONG.layers, DEEP)
  }
  for layers, seconds in compiling.items():
    print(f"compilation of {layers} layers: {seconds:.1f} s", flush=True)
  return table.report(machine_rates=rates, compile_seconds=compiling)
