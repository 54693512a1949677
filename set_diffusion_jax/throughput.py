"""How fast a run goes: FLOPs of a step, MFU, time spent compiling, traces."""

import pathlib

import jax

from set_diffusion_jax.config import Config

# Dense bfloat16 operations per second of one jax device, from the makers' data sheets,
# by what `device_kind` starts with; of several that fit, the longest counts.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}
_COMPILE = "/jax/core/compile/backend_compile_duration"
_TRACED = range(3, 6)  # steps after the first one, which compiles, and those it warms


def peak_flops(kind: str) -> float | None:
  """Of a device kind; None where it is not in the table, as for a CPU."""
  fits = [name for name in PEAK_FLOPS if kind.startswith(name)]
  return PEAK_FLOPS[max(fits, key=len)] if fits else None


def step_flops(config: Config, vocabulary: int) -> float:
  """Matrix multiplications of one training step, forward and twice that backward.

  What the method needs: nothing for recomputed layers, and in attention the pairs that
  see each other. A clean and a noisy stream go through the layers, one for AR; logits
  are of one of them.
  """
  m, length = config.model, config.data.length
  streams = 1 if config.method.name == "ar" else 2
  heads = m.heads * m.head_width
  attention = 2 * m.width * (heads + m.key_heads * m.head_width)
  ffn = m.width * m.ffn * (2 if m.backbone == "dit" else 3)
  pairs = {"ar": 0.5, "masked": 2.0}.get(config.method.name, 1.0) * length**2
  layer = 2 * (attention + ffn) * streams * length + 4 * heads * pairs
  logits = 2 * m.width * vocabulary * length
  return 3 * (m.layers * layer + logits) * config.train.batch_size


class CompileTime:
  """Seconds that XLA has compiled for, in this process, since the context began."""

  def __enter__(self) -> "CompileTime":
    self.seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._heard)
    return self

  def __exit__(self, *exception) -> None:
    jax.monitoring.unregister_event_duration_listener(self._heard)

  def _heard(self, event: str, seconds: float, **more) -> None:
    if event == _COMPILE:
      self.seconds += seconds


class Trace:
  """A profiler's trace of a few steps, for TensorBoard or XProf.

  Args:
    folder: where it is written; None: nowhere.
    first: the step that the run continues from.
  """

  def __init__(self, folder: pathlib.Path | None, first: int):
    self._folder = folder
    self._begin, self._end = first + _TRACED.start, first + _TRACED.stop
    self._running = False

  def __enter__(self) -> "Trace":
    return self

  def before(self, step: int, pending: list) -> None:
    """To be told of each step before it begins.

    Args:
      step: its number.
      pending: results to wait for, so that earlier steps are not in the trace.
    """
    if self._folder is None or step not in (self._begin, self._end):
      return
    jax.block_until_ready(pending)
    if step == self._begin:
      jax.profiler.start_trace(self._folder)
      self._running = True
    else:
      self._stop()

  def _stop(self) -> None:
    if self._running:
      jax.profiler.stop_trace()
    self._running = False

  def __exit__(self, *exception) -> None:
    self._stop()
