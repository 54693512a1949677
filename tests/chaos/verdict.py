"""Whether a cell ended as it should: there is one right end for each, and no other.

A run that goes on must end where an undisturbed one ends, bit for bit. One that ends
early must say why in a line, and end the same way after the same command again.
"""

import re

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.training.metrics import read_metrics
from tests.chaos.cells import Cell
from tests.chaos.job import Account, Launch
from tests.test_storage_runs import MEASURED
from tests.test_train import assert_identical, final

DEADLY = {"SIGKILL": 137, "SIGSTOP": 137, "SIGSEGV": 139, "exit in a thread": 1}
_REFUSED = ("full disk", "unreadable file")
# What Python prints when nobody has thought of an error. Where process 0 is gone, jax's
# runtime may print frames of C++ before the watch ends the process: that is its own.
_TRACEBACK = re.compile(r"Traceback \(most recent")
_LINE = {outcomes.MISTAKE: r"^(\[\d+\] )?error: ", outcomes.PREEMPTED: "same command"}


def attempts(cell: Cell) -> set[int]:
  """How many times the processes of a job may be started."""
  if cell.event == "clock jumps":
    return {1}
  if (cell.phase, cell.event) == ("compile", "unreadable file"):
    return {1}  # of the compilation cache: then it is compiled
  if cell.phase == "exit" and cell.event in ("SIGTERM", "full disk"):
    return {1, 2}  # it may be through already
  return {2}


def first_codes(cell: Cell, index: int) -> set[int]:
  """With which codes a process may end in the first attempt."""
  done = {outcomes.DONE} if 1 in attempts(cell) or cell.phase == "exit" else set()
  if cell.event == "SIGTERM":
    return done | {outcomes.PREEMPTED}
  if cell.event in _REFUSED:
    return done | {outcomes.MISTAKE}
  if cell.event == "clock jumps":
    return {outcomes.DONE}
  if cell.role == "launcher":  # it is gone, and has seen few of the codes
    return done | {outcomes.FAILED, outcomes.PREEMPTED}
  if index == cell.process:
    return {DEADLY[cell.event]}
  # Who has not met the others yet waits, as long as the launcher lets it.
  unmet = {outcomes.UNREACHABLE, 137} if cell.phase == "meeting" else set()
  return done | unmet | {outcomes.FAILED}


def launcher_codes(cell: Cell) -> set[int]:
  """With which codes the launcher may end when it was started first."""
  done = {outcomes.DONE} if 1 in attempts(cell) else set()
  if cell.event in _REFUSED:
    return done | {outcomes.MISTAKE}
  if cell.role == "launcher" and cell.event != "clock jumps":
    own = {"SIGTERM": outcomes.PREEMPTED, "SIGSEGV": -11, "exit in a thread": 1}
    return done | {own.get(cell.event, -9)}
  return {outcomes.DONE}


def faults(cell: Cell, account: Account, config, whole) -> list[str]:
  """What is wrong with the end of a cell; nothing, if it ended as it should.

  Args:
    cell: what happened.
    account: what came of it.
    config: of the run.
    whole: work directory of an undisturbed one.
  """
  found = []
  for number, launch in enumerate(account.launches, 1):
    found += [f"launch {number}: {line}" for line in _of_launch(launch)]
  events = [note for note in account.notes if note["what"] == "event"]
  if len(events) != 1:
    found.append(f"the event came {len(events)} times")
  tried = account.attempts()
  if len(tried) not in attempts(cell):
    found.append(f"{len(tried)} attempts")
  for number, codes in enumerate(account.codes()):
    for index, code in codes.items():
      right = {0} if number else first_codes(cell, index)
      if code not in right:
        found.append(f"attempt {number + 1}: process {index} ended with {code}")
  first, last = account.launches[0], account.launches[-1]
  if first.code not in launcher_codes(cell):
    found.append(f"the launcher ended with {first.code}")
  if last.code != 0:
    found.append(f"the launcher, started again, ended with {last.code}")
  elif not _hung(account):
    found += _differences(account.workdir, config, whole)
  return found


def _hung(account: Account) -> bool:
  return any(launch.code is None for launch in account.launches)


def _of_launch(launch: Launch) -> list[str]:
  found = []
  if launch.code is None:
    found.append("hung")
  if launch.left:
    found.append(f"{len(launch.left)} processes were left")
  if trace := _TRACEBACK.search(launch.text):
    lines = launch.text[trace.start() :].splitlines()[1:]
    raised = next((x for x in lines if re.match(r"(\[\d+\] )?\w", x)), "")
    found.append(f"a traceback: {raised[:150]}")
  line = _LINE.get(launch.code)
  if line and not re.search(line, launch.text, re.MULTILINE):
    found.append(f"ended with {launch.code} and no line that says why")
  return found


def figures(workdir) -> list[dict]:
  """What a run has logged, without what depends on clocks."""
  measured = (*MEASURED, "hosts/", "goodput/")
  rows = read_metrics(workdir / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith(measured)} for row in rows]


def _differences(workdir, config, whole) -> list[str]:
  found = []
  if figures(workdir) != figures(whole):
    found.append("the metrics are not those of an undisturbed run")
  try:
    assert_identical(final(config, workdir), final(config, whole))
  except AssertionError as error:
    first = " ".join(str(error).split())[:200]
    found.append(f"the parameters are not those of an undisturbed run: {first}")
  return found


def outcome(cell: Cell, account: Account) -> str:
  """How the job ended, for the table."""
  first = account.launches[0]
  if len(account.attempts()) == 1:
    return "was not disturbed"
  if len(account.launches) == 1:
    return "started again by the launcher"
  if cell.role == "launcher" and first.code not in (outcomes.PREEMPTED,):
    return "went on when the launcher was started again"
  return f"ended with {first.code} and a line; went on when started again"
