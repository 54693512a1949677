"""The cells of the suite: an event, in a phase, to one of the processes of a job."""

import itertools
import random
from typing import NamedTuple

# In the order of a run. Of a step, the first one of a process compiles and connects.
PHASES = (
  "meeting",
  "data",
  "init",
  "restore",
  "compile",
  "first step",
  "step",
  "save",
  "evaluation",
  "exit",
)
# What they are is in docs/failures.md.
EVENTS = (
  "SIGKILL",
  "SIGTERM",
  "SIGSTOP",
  "SIGSEGV",
  "exit in a thread",
  "full disk",
  "unreadable file",
  "clock jumps",
)
ROLES = ("first", "other", "launcher")
COUNT, FOURS = 60, 6  # cells, and how many of them have 4 processes
STEPS = 8  # of the run; tests/chaos/job.py has the rest of it
# Within so many seconds of the beginning of a phase something happens: about as long
# as each takes here.
_SPAN = {
  "meeting": 1.0,
  "data": 0.2,
  "init": 0.5,
  "restore": 0.5,
  "compile": 1.0,
  "first step": 0.5,
  "step": 0.1,
  "save": 0.5,
  "evaluation": 0.2,
  "exit": 0.3,
}


class Cell(NamedTuple):
  """What happens in a job.

  Attributes:
    phase: of PHASES.
    event: of EVENTS.
    role: of ROLES.
    processes: of the job.
    process: to which it happens; for the launcher, whose phase counts.
    nth: the number of the step, or how many times the phase has begun.
    delay: seconds from then on; 0: the main thread does it, as it begins the phase.
    jump: seconds by which a clock jumps.
  """

  phase: str
  event: str
  role: str
  processes: int
  process: int
  nth: int
  delay: float
  jump: float

  def __str__(self) -> str:
    when = f"{self.delay:.2f} s into" if self.delay else "at"
    nth = f" {self.nth}" if self.phase in ("step", "save", "evaluation", "exit") else ""
    whom = "launcher" if self.role == "launcher" else f"process {self.process}"
    return f"{self.event}, {whom} of {self.processes}, {when} {self.phase}{nth}"


def nothing_to_hit(phase: str, event: str, role: str) -> str | None:
  """Why no such thing can happen; None if it can."""
  if role == "launcher" and event in ("full disk", "unreadable file"):
    return "the launcher opens no file once its processes run"
  if event == "unreadable file" and phase in ("meeting", "save", "exit"):
    return "no file of the user's is read there"
  if event == "full disk" and (phase, role) == ("exit", "other"):
    return "after the last save the first process alone writes"
  return None


def kinds() -> list[tuple[str, str, str]]:
  """Each (phase, event, role) that there can be."""
  every = itertools.product(PHASES, EVENTS, ROLES)
  return [kind for kind in every if nothing_to_hit(*kind) is None]


def choose(seed: int, count: int = COUNT, fours: int = FOURS) -> list[Cell]:
  """Cells that cover as many pairs of phase, event and role as so many can.

  A pair counts half as much each time that it is there already, and so does, a little,
  a phase, an event or a role alone. The first cells of the list cover most.
  """
  rng = random.Random(f"chaos {seed}")
  left, seen = kinds(), {}
  rng.shuffle(left)

  def worth(parts) -> float:
    pairs = [*itertools.combinations(parts, 2), *((part, part) for part in parts)]
    return sum(0.5 ** seen.get(pair, 0) for pair in pairs)

  chosen = []
  for _ in range(count):
    best = max(left, key=worth)
    left.remove(best)
    for pair in [*itertools.combinations(best, 2), *((part, part) for part in best)]:
      seen[pair] = seen.get(pair, 0) + 1
    chosen.append(best)
  large = {round((i + 0.5) * count / fours) for i in range(fours)} if fours else set()
  return [_draw(kind, 4 if i in large else 2, rng) for i, kind in enumerate(chosen)]


def _draw(kind: tuple[str, str, str], processes: int, rng: random.Random) -> Cell:
  """The cell of a kind, with the moment."""
  phase, event, role = kind
  nth = {"step": rng.randint(2, STEPS - 1), "exit": rng.randint(1, 2)}.get(phase, 1)
  if phase == "save":
    nth = rng.randint(1, 3)
  process = rng.randrange(1, processes) if role == "other" else 0
  delay = rng.choice([0.0, round(rng.uniform(0.01, _SPAN[phase]), 2)])
  if phase == "exit":  # it is over in no time
    delay = 0.0
  jump = rng.choice([-3600.0, 3600.0]) if event == "clock jumps" else 0.0
  return Cell(phase, event, role, processes, process, nth, delay, jump)


# Those of CI: each event, phase and role once at least, and none that takes minutes.
QUICK = (
  Cell("meeting", "SIGTERM", "other", 2, 1, 1, 0.2, 0.0),
  Cell("data", "unreadable file", "other", 2, 1, 1, 0.0, 0.0),
  Cell("init", "SIGSEGV", "first", 2, 0, 1, 0.1, 0.0),
  Cell("restore", "SIGKILL", "other", 2, 1, 1, 0.2, 0.0),
  Cell("compile", "exit in a thread", "other", 2, 1, 1, 0.3, 0.0),
  Cell("first step", "SIGTERM", "launcher", 2, 0, 1, 0.0, 0.0),
  Cell("step", "SIGSTOP", "other", 2, 1, 3, 0.0, 0.0),
  Cell("save", "full disk", "first", 2, 0, 2, 0.0, 0.0),
  Cell("evaluation", "clock jumps", "first", 2, 0, 1, 0.0, -3600.0),
  Cell("exit", "SIGKILL", "launcher", 2, 0, 1, 0.0, 0.0),
)
