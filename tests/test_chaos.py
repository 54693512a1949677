"""Jobs that something happens to end where others end, or with a line.

Ten cells of the suite; `python -m tests.chaos` runs all, and writes docs/failures.md.
"""

import collections
import json

import pytest

from tests.chaos import job, report, verdict
from tests.chaos.cells import (
  COUNT,
  EVENTS,
  FOURS,
  PHASES,
  QUICK,
  ROLES,
  STEPS,
  Cell,
  choose,
  kinds,
  nothing_to_hit,
)

PLAIN = Cell("step", "SIGKILL", "other", 2, 1, 3, 0.0, 0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_cells_cover_the_space(seed):
  """Each value twice or more, each event in each role, a tenth with 4 processes."""
  cells = choose(seed)
  assert cells == choose(seed)
  assert len(cells) == COUNT == len({cell[:3] for cell in cells})
  for field, values in (("phase", PHASES), ("event", EVENTS), ("role", ROLES)):
    seen = collections.Counter(getattr(cell, field) for cell in cells)
    assert set(seen) == set(values)
    assert min(seen.values()) >= 2
  fours = [cell for cell in cells if cell.processes == 4]
  assert len(fours) == FOURS == COUNT // 10
  pairs = lambda found: {(kind[1], kind[2]) for kind in found}
  assert pairs(cells) == pairs(kinds())
  # Nearly every cell has a phase and an event that no other one has together.
  assert len({cell[:2] for cell in cells}) >= COUNT - 5
  for cell in cells:
    assert nothing_to_hit(*cell[:3]) is None
    assert (cell.process > 0) == (cell.role == "other")
    assert cell.process < cell.processes
    assert cell.phase != "step" or 1 < cell.nth < STEPS


def test_the_quick_cells_have_every_value():
  assert {cell.phase for cell in QUICK} == set(PHASES)
  assert {cell.event for cell in QUICK} == set(EVENTS)
  assert {cell.role for cell in QUICK} == set(ROLES)
  assert all(nothing_to_hit(*cell[:3]) is None for cell in QUICK)


def test_the_page_has_the_cells_of_the_list(tmp_path):
  """And is what the suite would write of its own table."""
  cells, rows = choose(0), report.read()
  assert set(rows) == {report.key(cell) for cell in cells}
  report.write(cells, rows, tmp_path / "page.md")
  assert report.PAGE.read_text() == (tmp_path / "page.md").read_text()
  assert not [key for key, row in rows.items() if row.outcome.startswith("FAILED")]


def account(tmp_path, codes=((6, 137), (0, 0)), launches=((0, ""),), left=()):
  """Of a job of two processes, with these codes in its attempts."""
  notes, pid = [], 100
  for attempt, ends in enumerate(codes):
    for process, code in enumerate(ends):
      pid += 1
      common = {"process": process, "attempt": attempt, "pid": pid}
      notes.append({"what": "start", "at": 1.0, **common})
      at = {"at": 10.0 * (attempt + 1) + process}
      notes.append({"what": "phase", "place": [1, 3], **at, **common})
      notes.append({"what": "ended", "of": pid, "code": code})
  notes.append({"what": "event", "at": 11.5, "place": [1, 3]})
  found = [job.Launch(code, text, list(left)) for code, text in launches]
  return job.Account(found, notes, tmp_path)


@pytest.fixture
def faults(tmp_path, monkeypatch):
  """What the verdict says of an account, whose run is equal to another."""
  monkeypatch.setattr(verdict, "_differences", lambda *_: [])
  judged = lambda cell, **made: verdict.faults(cell, account(tmp_path, **made), 0, 0)
  return judged


TRACE = 'Traceback (most recent call last):\n  File "x", line 1\nKeyError: 1\n'
REFUSED = PLAIN._replace(event="full disk")
TWO, LINE = ((2, 2), (0, 0)), ((2, "[1] error: disk\n"), (0, ""))


@pytest.mark.parametrize(
  "cell, made, said",
  [
    (PLAIN, {}, None),
    (REFUSED, {"codes": TWO, "launches": LINE}, None),
    (PLAIN, {"launches": ((None, ""),)}, "hung"),
    (PLAIN, {"left": [7]}, "1 processes were left"),
    (PLAIN, {"launches": ((0, TRACE),)}, "a traceback: KeyError: 1"),
    (PLAIN, {"codes": ((6, 137), (6, 6), (0, 0))}, "3 attempts"),
    (PLAIN, {"codes": ((0, 0),)}, "1 attempts"),
    (PLAIN, {"codes": ((134, 137), (0, 0))}, "process 0 ended with 134"),
    (PLAIN, {"codes": ((6, 137), (6, 0))}, "attempt 2: process 0 ended with 6"),
    (PLAIN, {"launches": ((6, ""), (0, ""))}, "the launcher ended with 6"),
    (REFUSED, {"codes": TWO, "launches": ((2, ""), (0, ""))}, "no line that says why"),
    (REFUSED, {"codes": TWO, "launches": (LINE[0], (2, "error: x"))}, "started again"),
  ],
)
def test_each_wrong_end_is_found(faults, cell, made, said):
  """None is found in what is right."""
  found = faults(cell, **made)
  assert any(said in line for line in found) if said else found == []


def test_an_event_that_did_not_come_is_found(faults, tmp_path, monkeypatch):
  made = account(tmp_path)
  made.notes.pop()
  assert "the event came 0 times" in verdict.faults(PLAIN, made, 0, 0)


def test_seconds_and_codes_of_a_row(tmp_path):
  row = report.row("outcome", account(tmp_path), [])
  assert row == ("outcome", "6, 137", "8")  # from 11.5 to 20.0, rounded to even
  assert report.row("outcome", account(tmp_path), ["fault"]).outcome == "FAILED: fault"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  return job.Home(tmp_path_factory.mktemp("chaos"))


@pytest.mark.jobs
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(QUICK)))
def test_a_job_ends_as_it_should(home, number):
  cell = QUICK[number]
  whole = home.undisturbed(cell.processes)
  found = home.run(f"quick-{number}", cell)
  texts = [launch.text for launch in found.launches]
  assert not verdict.faults(cell, found, home.config, whole), "\n\n".join(texts)


@pytest.mark.jobs
@pytest.mark.slow
def test_a_run_that_goes_on_otherwise_is_found(home):
  """After the restart rows of batches are mixed up."""
  cell = PLAIN._replace(nth=5)
  found = home.run("differs", cell, plant="differs")
  faults = verdict.faults(cell, found, home.config, home.undisturbed(2))
  assert len(faults) == 2, json.dumps(faults)
  assert faults[0] == "the metrics are not those of an undisturbed run"
  assert faults[1].startswith("the parameters are not those of an undisturbed run")


@pytest.mark.jobs
@pytest.mark.slow
def test_a_launcher_that_hangs_is_found(home):
  """After the restart nothing goes on, and what is left is ended."""
  found = home.run("hangs", PLAIN, plant="hang", limit=60)
  faults = verdict.faults(PLAIN, found, home.config, home.undisturbed(2))
  assert "launch 1: hung" in faults
