"""Has something happen to jobs: `python -m tests.chaos`.

At most 60 cells, each an event in a phase to a process of a job. docs/failures.md says
what they are and what came of them.
"""

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
import time

from tests import jobs

os.environ.update(jobs.environment(1))  # before jax is imported

from tests.chaos import report, verdict
from tests.chaos.cells import QUICK, choose
from tests.chaos.job import Home


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--list", action="store_true", help="print the cells, run none")
  parser.add_argument("--quick", action="store_true", help="the 10 cells of CI")
  parser.add_argument("--cells", metavar="3,17", help="numbers of --list, to run alone")
  parser.add_argument(
    "--write",
    action="store_true",
    help="write what came of the cells of seed 0 into docs",
  )
  parser.add_argument(
    "--keep", type=pathlib.Path, help="folder for what cells printed and noted"
  )
  arguments = parser.parse_args()
  if arguments.write and (arguments.quick or arguments.seed):
    parser.error("--write: the page shows the cells of seed 0")
  cells = list(QUICK) if arguments.quick else choose(arguments.seed)
  numbers = range(1, len(cells) + 1)
  if arguments.cells:
    numbers = [int(number) for number in arguments.cells.split(",")]
  if arguments.list:
    for number in numbers:
      print(f"{number:2}  {cells[number - 1]}")
    return 0
  failed, began = [], time.monotonic()
  with tempfile.TemporaryDirectory(prefix="set-diffusion-chaos-") as folder:
    home = Home(pathlib.Path(folder), say)
    for number in numbers:
      cell = cells[number - 1]
      row, faults = _run(home, number, cell, arguments.keep)
      if faults:
        failed.append(number)
      if arguments.write:
        report.write(cells, {**report.read(), report.key(cell): row})
  say(f"{len(numbers)} cells in {(time.monotonic() - began) / 60:.0f} minutes")
  say(f"failed: {', '.join(map(str, failed))}" if failed else "all passed")
  return int(bool(failed))


def _run(home: Home, number: int, cell, keep: pathlib.Path | None):
  """The row of a cell, and its faults, which are printed."""
  whole = home.undisturbed(cell.processes)
  say(f"{number:2}  {cell}")
  began = time.monotonic()
  account = home.run(f"cell-{number}", cell)
  faults = verdict.faults(cell, account, home.config, whole)
  row = report.row(verdict.outcome(cell, account), account, faults)
  took = time.monotonic() - began
  say(f"    {row.outcome}; codes {row.codes}; lost {row.seconds} s; took {took:.0f} s")
  for fault in faults:
    say(f"    FAULT {fault}")
  if keep is not None:
    target = keep / f"cell-{number}"
    if not faults:
      shutil.rmtree(account.workdir)
    shutil.copytree(account.workdir.parent, target, symlinks=True, dirs_exist_ok=True)
    for launched, launch in enumerate(account.launches, 1):
      (target / f"output-{launched}").write_text(launch.text)
  shutil.rmtree(account.workdir.parent)
  return row, faults


def say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  sys.exit(main())
