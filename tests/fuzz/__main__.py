"""`python -m tests.fuzz --campaign=checkpoints --seed=0`: runs one, prints a table.

A campaign is run by processes of its own, one after another. One that dies, or says
nothing for too long, is a fault of the input it was at, and the next one goes on.
"""

import argparse
import json
import os
import pathlib
import select
import subprocess
import sys
import traceback

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_NOT_READY = 3  # exit code of a process that refuses a good input
_SILENCE = 120  # seconds, after which a process hangs in code that takes no signals


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
  parser.add_argument("--campaign", required=True, help="checkpoints, texts or options")
  parser.add_argument("--count", type=int, help="inputs; default: of a whole campaign")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--first", type=int, default=0, help="number of the first input")
  parser.add_argument("--slice", type=int, default=1000, help="inputs of a process")
  parser.add_argument("--keep", type=pathlib.Path, help="folder for inputs that fail")
  parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.worker:
    _work(arguments)
    return 0
  from tests.fuzz import campaign, check

  count = arguments.count or campaign.COUNTS[arguments.campaign]
  results, at, end = [], arguments.first, arguments.first + count
  while at < end:
    lines, how = _slice(arguments, at, min(end, at + arguments.slice))
    for line in lines:
      outcome = check.Outcome(**line.pop("outcome"))
      results.append(campaign.Result(**line, outcome=outcome))
      at = line["number"] + 1
    if how is not None:
      kind = campaign.kinds(arguments.campaign)[
        at % len(campaign.kinds(arguments.campaign))
      ]
      outcome = check.Outcome(None, "died", f"died: {how} in {kind}", how)
      results.append(campaign.Result(at, kind, "", [], outcome))
      at += 1
  print(campaign.table(results))
  for group, found in campaign.groups(results).items():
    first = found[0]
    print(
      f"\n{len(found)} x {group}\n  number {first.number}, {first.kind}: {first.what}"
    )
    print(f"  {first.shown}\n  {first.outcome.detail[-1500:]}")
  return int(any(one.outcome.fault for one in results))


def _slice(arguments, first: int, end: int) -> tuple[list[dict], str | None]:
  """The results of one process, and how it ended if not well."""
  command = [sys.executable, "-m", "tests.fuzz", "--worker", f"--first={first}"]
  command += [f"--count={end - first}", f"--seed={arguments.seed}"]
  command += [f"--campaign={arguments.campaign}"]
  if arguments.keep is not None:
    command.append(f"--keep={arguments.keep.absolute()}")
  found, how = [], None
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    rest = b""
    while True:
      if not select.select([process.stdout], [], [], _SILENCE)[0]:
        process.kill()
        how = "hangs"
        break
      part = os.read(process.stdout.fileno(), 2**16)
      if not part:
        break
      *lines, rest = (rest + part).split(b"\n")
      found += [json.loads(line) for line in lines]
  if how is None and process.returncode:
    how = f"exit code {process.returncode}"
  if process.returncode == _NOT_READY:
    raise SystemExit("no input was run")
  return found, how


def _work(arguments) -> None:
  """A JSON line for each input."""
  from tests.fuzz import campaign

  lines = os.fdopen(os.dup(1), "w")
  with campaign.home() as folder:
    try:
      campaign.warm(folder, arguments.campaign)
    except Exception:
      traceback.print_exc()
      raise SystemExit(_NOT_READY) from None
    for one in campaign.run(
      folder,
      arguments.campaign,
      arguments.count,
      arguments.seed,
      arguments.first,
      arguments.keep,
    ):
      print(json.dumps(one._asdict() | {"outcome": vars(one.outcome)}), file=lines)
      lines.flush()


if __name__ == "__main__":
  sys.exit(main())
