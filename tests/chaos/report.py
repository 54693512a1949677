"""docs/failures.md: what each event is, and what came of each cell."""

import pathlib
import re
from typing import NamedTuple

from tests.chaos.cells import EVENTS, PHASES, Cell
from tests.chaos.job import Account
from tests.jobs import ROOT

PAGE = ROOT / "docs/failures.md"
FAILED, NOT_RUN = "FAILED", "not run"  # in the place of an outcome, with the fault

# What an event stands for, and what the suite does.
_EVENTS = {
  "SIGKILL": (
    "a machine is gone, or its memory was full",
    "the signal is sent to the process",
  ),
  "SIGTERM": (
    "a scheduler takes a machine back",
    "the signal is sent to the process",
  ),
  "SIGSTOP": (
    "a process is there and does nothing any more",
    "the signal is sent to the process; nothing wakes it",
  ),
  "SIGSEGV": (
    "a fault in a library or a driver",
    "the signal is sent to the process",
  ),
  "exit in a thread": (
    "code that ends the process past all handlers",
    "another thread calls `os._exit(1)`",
  ),
  "full disk": (
    "a disk or a quota of one host is full",
    "from then on whatever the process writes into a file is refused",
  ),
  "unreadable file": (
    "a disk or a share of one host fails",
    "from then on reading is an I/O error in the process: in init of the weights that "
    "the run starts from, in restore of its checkpoints, in compile of the compilation "
    "cache, elsewhere of the corpus",
  ),
  "clock jumps": (
    "the clock of one host is set",
    "from then on the wall clock of the process is an hour off",
  ),
}

_TOP = """# What happens to a job, and what the job does

This page is written by `python -m tests.chaos --write`. It runs small jobs with
`launch/local.py`, two or four processes on one machine, and one thing happens to each
job, at a moment that a seed draws (`--list` shows them).

A job has passed if it ends, by itself or after the same command is given once more,
with exactly the metrics and parameters of a job that was left alone. It must not hang,
leave processes behind, show a traceback, or start more than once for what happened.

| event | what it stands for | what is done |
|---|---|---|
{events}

How to read the columns:

- **phase**: what the process was doing; process 0, if it is the launcher that is hit.
  *First step* is the first of a process, which connects to the others in it, *step* a
  later one; *exit* is after the last save.
- **role**: *first* is process 0, which writes metrics and prints; *other* is any other
  one; *launcher* is `launch/local.py`. When a launcher and its processes are gone it is
  started again, as a user would; one that is stopped is killed before.
- **codes**: with which the processes of the first attempt ended, in their order, as far
  as the launcher was there to see it. Their meaning is in
  [launch.md](launch.md#exit-codes-and-what-restarts); a signal N is 128 + N, and it is
  the launcher that kills a stopped process, and one that waits for another in the
  meeting, 20 s after that one has ended.
- **seconds lost**: from the event until the job is where it was. Most of it is the
  start of Python and jax by several processes on two cores.

"""
_HEAD = ("phase", "event", "role", "processes", "outcome", "codes", "seconds lost")
_RULE = "|---" * len(_HEAD) + "|"


class Row(NamedTuple):
  """What came of a cell, as the table has it."""

  outcome: str
  codes: str
  seconds: str


def row(outcome: str, account: Account, faults: list[str]) -> Row:
  """The row of a cell.

  Args:
    outcome: see `verdict.outcome`.
    account: what came of the cell.
    faults: what is wrong with it.
  """
  seconds, codes = account.seconds(), account.codes()
  seen = ", ".join(map(str, codes[0].values())) if codes else ""
  lost = "" if seconds is None else f"{seconds:.0f}"
  if faults:
    outcome = f"{FAILED}: {faults[0].replace('|', '/')}"
  return Row(outcome, seen, lost)


def key(cell: Cell) -> tuple[str, ...]:
  """What tells a cell in the table."""
  return cell.phase, cell.event, cell.role, str(cell.processes)


def read(page: pathlib.Path = PAGE) -> dict[tuple[str, ...], Row]:
  """The table of a page, by `key`; empty if there is no page."""
  text = page.read_text() if page.exists() else ""
  lines = text.partition(_RULE + "\n")[2].splitlines()
  rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines]
  return {tuple(words[:4]): Row(*words[4:]) for words in rows}


def write(
  cells: list[Cell], rows: dict[tuple[str, ...], Row], page: pathlib.Path = PAGE
) -> None:
  """Writes a page, with a row for each cell, in the order of a run."""
  events = [_line((event, *_EVENTS[event])) for event in EVENTS]
  lines = [_line(_HEAD), _RULE]
  order = lambda cell: (PHASES.index(cell.phase), EVENTS.index(cell.event), cell.role)
  for cell in sorted(cells, key=order):
    lines.append(_line((*key(cell), *rows.get(key(cell), Row(NOT_RUN, "", "")))))
  page.write_text(_TOP.format(events="\n".join(events)) + "\n".join(lines) + "\n")


def _line(words) -> str:
  return re.sub(r" +", " ", f"| {' | '.join(words)} |")
