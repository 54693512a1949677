"""What this process is doing, and how long each thing has taken.

There is one account for the process. Its main thread is always in just one phase; what
is inside another phase counts for itself alone. Others read it: the watchdog, the
peers, and the share of time that a run spends in its steps.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

# In the order of a run. "start" is all that is in no other: imports, checks.
PHASES = (
  "start",
  "meeting",
  "data",
  "init",
  "restore",
  "compile",
  "input",
  "step",
  "evaluation",
  "save",
  "exit",
)


class Now(NamedTuple):
  """Where the process is.

  Attributes:
    phase: of PHASES.
    seconds: how long it has been in it, since it last came to it or did a part of it.
    step: the last step that was begun; None before the first.
  """

  phase: str
  seconds: float
  step: int | None

  def __str__(self) -> str:
    step = "" if self.step is None else f" (step {self.step})"
    return f"{self.phase}{step} for {self.seconds:.0f} s"


class Phases:
  """An account of phases; `here` is that of this process.

  Attributes:
    note: the last figures, for those who look into what has gone wrong.
  """

  def __init__(self):
    self.note = ""
    self._lock = threading.Lock()
    self._stack = ["start"]
    self._since = self._entered = time.monotonic()
    self._spent = dict.fromkeys(PHASES, 0.0)
    self._longest = dict.fromkeys(PHASES, 0.0)
    self._step: int | None = None

  @contextlib.contextmanager
  def phase(self, name: str, step: int | None = None) -> Iterator[None]:
    """The body is in a phase.

    Args:
      name: of PHASES.
      step: the step that is begun with it, if one is.
    """
    if name not in self._spent:
      raise ValueError(f"{name}: must be one of {', '.join(PHASES)}")
    self._change(lambda: self._stack.append(name))
    if step is not None:
      self._step = step
    try:
      yield
    finally:
      self._change(self._stack.pop)

  def tick(self) -> None:
    """Something of the present phase is done, and the next thing of its kind begins."""
    self._change(lambda: None)

  def _change(self, act) -> None:
    with self._lock:
      self._settle()
      stay, name = self._since - self._entered, self._stack[-1]
      self._longest[name] = max(self._longest[name], stay)
      act()
      self._entered = self._since

  def _settle(self) -> None:
    """Books the time up to now."""
    now = time.monotonic()
    self._spent[self._stack[-1]] += now - self._since
    self._since = now

  @property
  def now(self) -> Now:
    """Where the process is."""
    with self._lock:
      return Now(self._stack[-1], time.monotonic() - self._entered, self._step)

  def longest(self, name: str) -> float:
    """Seconds of the longest stay in a phase that has ended; 0.0 before the first."""
    with self._lock:
      return self._longest[name]

  def seconds(self) -> dict[str, float]:
    """Time spent in each phase since the process began."""
    with self._lock:
      self._settle()
      return dict(self._spent)


here = Phases()
