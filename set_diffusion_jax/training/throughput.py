"""Time spent compiling, and traces of a few steps."""

import pathlib

import jax

from set_diffusion_jax.storage import disk, folders, places

_COMPILE = "/jax/core/compile/backend_compile_duration"
_TRACED = range(3, 6)  # steps after the first one, which compiles, and those it warms


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
    folder: where it is written, on a disk or in a bucket; None: nowhere.
    first: the step that the run continues from.
  """

  def __init__(self, folder: pathlib.Path | None, first: int):
    self._folder, self._bucket = folder, None
    if folder is not None and places.is_remote(folder):
      self._bucket = folder
      self._scratch = disk.scratch()
      self._folder = pathlib.Path(self._scratch.name)
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
      if self._bucket is not None:
        folders.upload(self._folder, self._bucket)
    self._running = False

  def __exit__(self, *exception) -> None:
    self._stop()
    if self._bucket is not None:
      self._scratch.cleanup()
