"""SIGTERM: a scheduler takes the machine back, and the run is to save and end."""

import signal
import threading

from set_diffusion_jax.jobs import watch


class Preemption:
  """Whether this run has been asked to stop; the same answer in all processes.

  Where the process is watched, the watch says so. Elsewhere, as in a program that calls
  `train`, SIGTERM is noted while the context lasts.
  """

  def __init__(self):
    self._watch = watch.current()
    self._signalled = False
    self._before = None

  def __enter__(self) -> "Preemption":
    main = threading.current_thread() is threading.main_thread()
    if self._watch is None and main:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *exception) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, number, frame) -> None:
    self._signalled = True

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; to be asked once for every step."""
    if self._watch is not None:
      return self._watch.reached(step)
    return self._signalled
