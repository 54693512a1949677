"""Runs a campaign: the same inputs for the same seed."""

import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from tests.fuzz import bases, check, checkpoints, options, streams, texts

CAMPAIGNS = {"checkpoints": checkpoints, "texts": texts, "options": options}
COUNTS = {"checkpoints": 10_000, "texts": 5_000, "options": 2_000}  # of a whole one


class Result(NamedTuple):
  """One input and how it ended."""

  number: int
  kind: str
  what: str
  shown: list[str]
  outcome: check.Outcome


@contextlib.contextmanager
def home() -> Iterator[pathlib.Path]:
  """A folder with the good inputs, which were all accepted once.

  Raises:
    ValueError: one was not.
  """
  with tempfile.TemporaryDirectory(prefix="set-diffusion-fuzz-") as name:
    folder = pathlib.Path(name).resolve()
    with streams.captured():
      bases.make(folder)
    yield folder


def warm(folder: pathlib.Path, name: str) -> None:
  """Accepts each good input of a campaign once: what is imported late is there."""
  for run in CAMPAIGNS[name].good(folder):
    with streams.captured() as found:
      code = run()
      found.read()
    if code != 0:
      raise ValueError(f"a good input is refused: {found.err}")


def kinds(name: str) -> list[str]:
  """The kinds of a campaign, each as often as its share, well mixed."""
  shares = CAMPAIGNS[name].SHARES
  found = [kind for kind, share in shares.items() for _ in range(share)]
  random.Random(0).shuffle(found)
  return found


def run(
  folder: pathlib.Path,
  name: str,
  count: int,
  seed: int,
  first: int = 0,
  keep: pathlib.Path | None = None,
  limits: check.Limits = check.ALLOWED,
  about=lambda number: None,
) -> Iterator[Result]:
  """The results of some inputs of a campaign.

  Args:
    folder: see `home`.
    name: of CAMPAIGNS.
    count: how many.
    seed: of all of them.
    first: the number of the first one.
    keep: where inputs that fail are kept, the first of each group; None: nowhere.
    limits: of each.
    about: is told the number of each input before it runs.
  """
  module, order = CAMPAIGNS[name], kinds(name)
  groups: set[str] = set()
  for number in range(first, first + count):
    about(number)
    kind = order[number % len(order)]
    rng = random.Random(f"{name} {seed} {number}")
    box = folder / "boxes" / f"{number}"
    box.mkdir(parents=True)
    here, user = os.getcwd(), os.environ.get("HOME", "")
    try:
      os.chdir(box)
      os.environ["HOME"] = str(box)
      case = module.KINDS[kind](rng, folder, box)
      outcome = check.check(case, limits)
      found = Result(number, kind, case.what, case.shown, outcome)
      if outcome.fault and keep is not None and outcome.group not in groups:
        groups.add(outcome.group)
        _keep(keep / f"{name}-{seed}-{number}", found, box)
    finally:
      os.chdir(here)
      os.environ["HOME"] = user
      shutil.rmtree(box, ignore_errors=True)
    yield found


def _keep(place: pathlib.Path, result: Result, box: pathlib.Path) -> None:
  """The input, and what was found, for who repairs it."""
  shutil.rmtree(place, ignore_errors=True)
  place.mkdir(parents=True)
  with contextlib.suppress(OSError, shutil.Error):
    shutil.copytree(box, place / "box", symlinks=True, copy_function=_copy_file)
  found = result._asdict() | {"outcome": vars(result.outcome)}
  (place / "result.json").write_text(json.dumps(found, indent=2))


def _copy_file(source: str, destination: str) -> None:
  if os.path.isfile(source):  # no pipes
    shutil.copyfile(source, destination)


def table(results: list[Result]) -> str:
  """What was run and what was found, in Markdown."""
  rows = collections.defaultdict(collections.Counter)
  for one in results:
    how = one.outcome.fault or ("accepted" if one.outcome.code == 0 else "refused")
    rows[one.kind][how] += 1
  lines = ["| kind | inputs | accepted | refused | faults |", "|---|---|---|---|---|"]
  for kind, row in [*rows.items(), ("all", sum(rows.values(), collections.Counter()))]:
    faults = {k: n for k, n in row.items() if k not in ("accepted", "refused")}
    said = ", ".join(f"{n} {k}" for k, n in sorted(faults.items())) or "0"
    numbers = f"{row.total()} | {row['accepted']} | {row['refused']}"
    lines.append(f"| {kind} | {numbers} | {said} |")
  return "\n".join(lines)


def groups(results: list[Result]) -> dict[str, list[Result]]:
  """The faults that were found, by what is likely the same one."""
  found = collections.defaultdict(list)
  for one in results:
    if one.outcome.fault:
      found[one.outcome.group].append(one)
  return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))
