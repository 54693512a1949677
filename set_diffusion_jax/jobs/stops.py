"""The step after which all processes of a job stop, once one of them was asked to."""

import threading

_SECONDS = 60.0  # for the answer of process 0, which comes at once or never


class Stops:
  """What one process knows of a stop.

  Process 0 asks all where they are. From then on none passes a step until it is told
  the first one that none has passed: that is where all stop.
  """

  def __init__(self):
    self._changed = threading.Condition()
    self._passed: int | None = None
    self._paused, self._step = False, None
    self._places: dict[int, int | None] | None = None  # of process 0

  def reached(self, step: int) -> bool:
    """Whether to stop after a step; the main thread asks once for every step."""
    with self._changed:
      settled = lambda: not self._paused or self._step is not None
      self._changed.wait_for(settled, _SECONDS)
      self._passed = step
      return self._step is not None and step >= self._step

  def pause(self) -> int | None:
    """The last step that this process has passed; None before its first."""
    with self._changed:
      self._paused = True
      return self._passed

  def settle(self, step: int) -> None:
    """Says after which step all stop."""
    with self._changed:
      self._step = step
      self._changed.notify_all()

  # In process 0.

  def begin(self) -> bool:
    """Whether this is the first request: then all are to be asked where they are."""
    if self._places is not None:
      return False
    self._places = {0: self.pause()}
    return True

  def note(self, process: int, passed: int | None) -> None:
    """Where another process is."""
    if self._places is not None:
      self._places[process] = passed

  def missing(self, processes: set[int]) -> bool:
    """Whether one of these has not said where it is, or nobody was asked."""
    return self._places is None or not processes <= self._places.keys()

  def decide(self) -> int | None:
    """The step after which all stop; None if none has passed one: they stop at once."""
    steps = [passed for passed in self._places.values() if passed is not None]
    return max(steps) + 1 if steps else None
