"""How long a phase may take before it counts as stuck, learnt from the run."""

from set_diffusion_jax.jobs.phases import Phases

_WATCHED = ("input", "step", "evaluation", "save", "restore")
_ONCE = ("init", "compile")
FLOOR = 300.0  # seconds; a slow file system or network is not stuck
TIMES = 10.0  # the longest stay so far
UNKNOWN = 3600.0  # seconds, before a phase has been left once
SLOW_FLOOR, SLOW_TIMES = 30.0, 3.0


class Limits:
  """The longest that each phase may take.

  Reading text has none, as it may take hours, nor have phases that end by themselves.

  Args:
    phases: what the process does.
    given: seconds for a step, its input, an evaluation, a save and a restore; None: ten
      times the longest of its kind so far, at least 300 s, an hour for the first.
  """

  def __init__(self, phases: Phases, given: float | None = None):
    self._phases, self._given = phases, given

  def stuck(self, name: str) -> float | None:
    """Seconds after which a phase counts as stuck; None: never."""
    if name in _ONCE:
      return max(UNKNOWN, self._given or 0.0)
    if name not in _WATCHED:
      return None
    if self._given is not None:
      return self._given
    longest = self._phases.longest(name)
    return max(FLOOR, TIMES * longest) if longest else UNKNOWN

  def slow(self, name: str) -> float | None:
    """Seconds after which a phase is told to be slow; None: never."""
    stuck, longest = self.stuck(name), self._phases.longest(name)
    if name not in _WATCHED or not longest:
      return None
    return min(max(SLOW_FLOOR, SLOW_TIMES * longest), stuck / 2)
