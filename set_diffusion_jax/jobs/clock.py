"""How long a phase may take before it is slow, or stuck: learnt from the run."""

import faulthandler

from set_diffusion_jax.jobs import ending
from set_diffusion_jax.jobs.phases import Now, Phases

_WATCHED = ("input", "step", "evaluation", "save", "restore")
_ONCE = ("init", "compile")
FLOOR = 300.0  # seconds; a slow file system or network is not stuck
TIMES = 10.0  # the longest stay so far
UNKNOWN = 3600.0  # seconds, before a phase has been left once
SLOW_FLOOR, SLOW_TIMES = 30.0, 3.0


class Clock:
  """Looks how long the present phase has taken.

  Reading text has none, as it may take hours, nor have phases that end by themselves.

  Args:
    phases: what the process does.
    given: seconds for a step, its input, an evaluation, a save and a restore; None: ten
      times the longest of its kind so far, at least 300 s, an hour for the first.
  """

  def __init__(self, phases: Phases, given: float | None = None):
    self._phases, self._given = phases, given
    self._told: tuple[str, int | None] | None = None  # to be slow

  def limit(self, name: str) -> float | None:
    """Seconds after which a phase counts as stuck; None: never."""
    if name in _ONCE:
      return max(UNKNOWN, self._given or 0.0)
    if name not in _WATCHED:
      return None
    if self._given is not None:
      return self._given
    longest = self._phases.longest(name)
    return max(FLOOR, TIMES * longest) if longest else UNKNOWN

  def stuck(self) -> str | None:
    """What is said of a phase that has taken longer than it may; None before."""
    where = self._phases.now
    limit = self.limit(where.phase)
    if limit is None or where.seconds <= limit:
      return None
    return f"is stuck: {where}, more than the {limit:.0f} s that this may take"

  def slow(self) -> tuple[Now, str] | None:
    """Where the process is, and what is said of it, once for a slow phase."""
    where, longest = self._phases.now, self._phases.longest(self._phases.now.phase)
    if where.phase not in _WATCHED or not longest or self._told == where[::2]:
      return None
    after = min(max(SLOW_FLOOR, SLOW_TIMES * longest), self.limit(where.phase) / 2)
    if where.seconds <= after:
      return None
    self._told = where[::2]
    return where, f"{where}, the longest before took {longest:.1f} s"

  def set_alarm(self, more: float) -> None:
    """Has the process ended with 1 where a hang stops all of Python's threads.

    Args:
      more: seconds beyond the limit.
    """
    where = self._phases.now
    limit = self.limit(where.phase)
    if limit is None:
      faulthandler.cancel_dump_traceback_later()
    else:
      left = max(limit - where.seconds, 0.0) + more
      faulthandler.dump_traceback_later(left, file=ending.errors(), exit=True)
