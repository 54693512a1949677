"""How a process may end, and what is done then: the one table of exit codes.

The command line ends with these codes, the launchers act on them, and docs/launch.md
shows the table. Nothing here needs jax: launchers run where it may not be installed.
"""

from typing import Literal, NamedTuple

Then = Literal["final", "free", "counted"]


class Outcome(NamedTuple):
  """A row of the table.

  Attributes:
    code: of the process.
    meaning: what happened.
    then: "final": the job ends, as the same would happen again; "free": it is started
      again, as often as it takes; "counted": it is started again, so many times.
  """

  code: int
  meaning: str
  then: Then


DONE, MISTAKE, MISFIT, DIVERGED = 0, 2, 3, 4
UNREACHABLE = 5
FAILED = 6  # the number of SIGABRT, by which jax's runtime ends a process
PREEMPTED = 42
INTERRUPTED = 130

OUTCOMES = (
  Outcome(DONE, "done", "final"),
  Outcome(MISTAKE, "a mistake of yours, in one line", "final"),
  Outcome(MISFIT, "does not fit into the memory of the devices", "final"),
  Outcome(DIVERGED, "the loss is not finite", "final"),
  Outcome(UNREACHABLE, "processes did not meet, or a bucket is away", "counted"),
  Outcome(FAILED, "a device or a peer failed, or hung", "counted"),
  Outcome(PREEMPTED, "stopped by SIGTERM, after saving", "free"),
  Outcome(INTERRUPTED, "interrupted by Ctrl-C", "final"),
)
FINAL = tuple(outcome.code for outcome in OUTCOMES if outcome.then == "final")
FREE = tuple(outcome.code for outcome in OUTCOMES if outcome.then == "free")


def then(code: int) -> Then:
  """What is done after a process has ended with a code; a signal N is 128 + N.

  A code that is not in the table, such as that of a killed process, is counted.
  """
  found = [outcome.then for outcome in OUTCOMES if outcome.code == code]
  return found[0] if found else "counted"
