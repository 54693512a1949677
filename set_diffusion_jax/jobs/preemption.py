"""SIGTERM: a scheduler takes the machine back, and the run is to save and end."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
  """Whether this run has been asked to stop; the same answer in all processes.

  Several processes agree through jax's coordination service on one step at which all of
  them stop, whichever of them was signalled. One process alone looks at a flag.
  """

  def __init__(self):
    self._coordinated = jax.distributed.is_initialized()
    self._signalled = False
    self._before = None

  def __enter__(self) -> "Preemption":
    main = threading.current_thread() is threading.main_thread()
    if not self._coordinated and main:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *exception) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, number, frame) -> None:
    self._signalled = True

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; to be asked once for every step."""
    if self._coordinated:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._signalled
