"""docs/failures.md: what each event is, and what came of each cell."""

import pathlib
import re
from typing import NamedTuple

from tests.chaos.cells import Cell
from tests.chaos.job import Account
from tests.jobs import ROOT

PAGE = ROOT / "docs/failures.md"
NOT_RUN = "not run"

TOP = """# What happens to a job, and what the job does

`python -m tests.chaos --write` wrote this page. It starts small jobs with
`launch/local.py`, several processes on one machine, and has one thing happen to each,
once, at a moment that a seed draws. `python -m tests.chaos --list` shows the moments.

A job has passed if it ended, by itself or after the same command was given again, with
exactly the metrics and parameters of a job that was left alone. It must not hang, leave
processes behind, show a traceback, or be started more often than once for what happened.

| event | what it stands for | what is done |
|---|---|---|
| SIGKILL | the machine is gone, or its memory was full | the process is killed |
| SIGTERM | a scheduler takes the machine back | the signal is sent to one process |
| SIGSTOP | a process that is there and does nothing, such as one that waits for a disk | it is stopped, for good |
| SIGSEGV | a fault in a library or a driver | the signal is sent to the process |
| exit in a thread | code that ends the process past all handlers | a second thread calls `os._exit(1)` |
| full disk | a disk or a quota is full, for one host | from then on every file that it writes is refused |
| unreadable file | a disk or a share of one host fails | from then on reading fails with an I/O error: of the weights in init, of the checkpoints in restore, of the compilation cache in compile, of the corpus elsewhere |
| clock jumps | the clock of one host is set | from then on its wall clock is an hour off |

How the columns are to be read:

- **phase**: what the process was doing, or process 0, if the launcher was hit. *First
  step* is that of a process, which still connects; *exit* is after the last save.
- **role**: *first* is process 0, which coordinates the others and writes; *launcher* is
  `launch/local.py` itself. If the launcher is gone or stopped, the suite does what a
  user would: once no process is left, it kills a stopped launcher and starts it again.
- **codes**: with which the processes of the first attempt ended, in their order
  ([launch.md](launch.md#exit-codes-and-what-restarts)), as far as the launcher was there
  to see them; a signal N is 128 + N. A stopped process is killed by the launcher.
- **seconds lost**: from the event until the job was where it had been, most of which is
  the start of Python and jax on two busy cores. In the exit it is until the end.

"""

_HEAD = ("phase", "event", "role", "processes", "outcome", "codes", "seconds lost")
_RULE = "|---" * len(_HEAD) + "|"


class Row(NamedTuple):
  """A line of the table besides the cell."""

  outcome: str
  codes: str
  seconds: str


def row(outcome: str, account: Account, faults: list[str]) -> Row:
  """What came of a cell."""
  seconds = account.seconds()
  codes = account.codes()
  seen = ", ".join(map(str, codes[0].values())) if codes else ""
  lost = "" if seconds is None else f"{seconds:.0f}"
  return Row("FAILED" if faults else outcome, seen, lost)


def key(cell: Cell) -> tuple[str, ...]:
  """What tells a cell in the table."""
  return cell.phase, cell.event, cell.role, str(cell.processes)


def read(page: pathlib.Path = PAGE) -> dict[tuple[str, ...], Row]:
  """The table of the page as it is; empty if there is no page."""
  text = page.read_text() if page.exists() else ""
  table = text.partition(_RULE + "\n")[2]
  lines = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]
  return {tuple(words[:4]): Row(*words[4:]) for words in lines if len(words) == 7}


def write(
  cells: list[Cell], rows: dict[tuple[str, ...], Row], page: pathlib.Path = PAGE
) -> None:
  """Writes the page, with a row for each cell."""
  lines = [" | ".join(_HEAD).join(("| ", " |")), _RULE]
  for cell in cells:
    row = rows.get(key(cell), Row(NOT_RUN, "", ""))
    lines.append(" | ".join([*key(cell), *row]).join(("| ", " |")))
  page.write_text(TOP + "\n".join(lines) + "\n")
