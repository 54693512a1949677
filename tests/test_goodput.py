"""Goodput: what the time of a run goes into, over all its starts."""

import json
import signal
import types

import pytest

from set_diffusion_jax.jobs import phases
from set_diffusion_jax.storage import places
from set_diffusion_jax.training import goodput
from set_diffusion_jax.training import train as module
from set_diffusion_jax.training.goodput import CAUSES, FILE, Goodput, Start
from set_diffusion_jax.training.metrics import MetricsWriter, Progress, read_metrics
from set_diffusion_jax.training.train import train
from tests import buckets, jobs
from tests.test_storage_runs import rows
from tests.test_train import config, settings


def start(began, until, first, last, done=False, **seconds):
  return Start(began, until, first, last, done, seconds)


def test_time_by_cause():
  starts = [
    start(100.0, 150.0, 0, 10, step=40.0, meeting=1.0, data=2.0, start=3.0, exit=4.0),
    start(160.0, 180.0, 4, 12, step=16.0, restore=3.0, input=1.0),
    start(180.0, 200.0, 2, 4, step=10.0, compile=6.0, evaluation=3.0, save=1.0),
  ]
  assert goodput.spent(starts) == {
    # Steps 3 to 10 of the first start and all of the second are computed again.
    "lost": 40.0 * 8 / 10 + 16.0,
    "step": 40.0 * 2 / 10 + 10.0,
    "start": 10.0,
    "down": 10.0,
    "restore": 3.0,
    "input": 1.0,
    "compile": 6.0,
    "evaluation": 3.0,
    "save": 1.0,
  }
  found = goodput.shares(starts)
  assert list(found) == list(CAUSES) and sum(found.values()) == pytest.approx(1)
  assert found["step"] == pytest.approx(18 / 100)
  assert goodput.summary(starts) == (
    "goodput 18.0% of 1 min 40 s in 3 starts: input 1.0%, compile 6.0%, save 1.0%, "
    "evaluation 3.0%, restore 3.0%, start 10.0%, lost 48.0%, down 10.0%"
  )


def test_a_finished_run_is_not_down_and_clocks_may_go_back():
  first = start(0.0, 10.0, 0, 5, done=True, step=10.0)
  assert goodput.spent([first, start(900.0, 910.0, 5, 9, step=10.0)])["down"] == 0
  first = first._replace(done=False)
  assert goodput.spent([first, start(900.0, 910.0, 5, 9, step=10.0)])["down"] == 890
  assert goodput.spent([first, start(3.0, 8.0, 5, 9, step=5.0)])["down"] == 0


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (12.3, "12 s"),
    (200, "3 min 20 s"),
    (11520, "3 h 12 min"),
    (266400, "3 d 2 h"),
  ],
)
def test_durations(seconds, text):
  line = goodput.summary([start(0.0, 1.0, 0, 1, step=float(seconds))])
  assert f" of {text} in 1 start: " in line


def test_a_run_on_a_fake_clock(tmp_path, monkeypatch, capsys):
  now = [50.0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0], time=lambda: 1e9 + now[0])
  monkeypatch.setattr(phases, "time", clock)
  monkeypatch.setattr(goodput, "time", clock)
  here = phases.Phases()
  monkeypatch.setattr(goodput, "here", here)

  def a_start(first, steps):
    before = here.seconds()
    now[0] += 2  # start
    with here.phase("restore"):
      now[0] += 3
    with (
      MetricsWriter(tmp_path, first) as writer,
      Progress(9) as progress,
      Goodput(
        goodput.read_starts(tmp_path), first, 9, before, writer, progress
      ) as account,
    ):
      with here.phase("compile"):
        now[0] += 5
      for step in range(first + 1, steps + 1):
        with here.phase("step", step):
          with here.phase("input"):
            now[0] += 1
          now[0] += 4
          found = account.reached(step)
      with here.phase("save"):
        now[0] += 10
    return found

  assert a_start(0, 4)["goodput/step"] == pytest.approx(16 / 30)
  assert "goodput 40.0% of 40 s in 1 start" in capsys.readouterr().err
  now[0] += 20
  found = a_start(2, 3)
  whole = 40 + 20 + 15
  assert found == {
    f"goodput/{cause}": pytest.approx(seconds / whole)
    for cause, seconds in zip(CAUSES, (12, 5, 10, 10, 0, 6, 4, 8, 20), strict=True)
  }
  assert " in 2 starts: " in capsys.readouterr().err
  first, second = goodput.read_starts(tmp_path)
  assert (first.began, first.time) == (1e9 + 50, 1e9 + 90)
  assert (second.began, second.time) == (1e9 + 110, 1e9 + 135)
  assert (second.first, second.step, second.done) == (2, 3, False)


GOOD = json.dumps(start(1.0, 2.0, 0, 3, step=1.0)._asdict())


@pytest.mark.parametrize(
  "line",
  [
    "",
    "{",
    "[]",
    "7",
    "\x00\xff",
    "[" * 5000,
    '{"began": 1}',
    GOOD.replace("1.0", "NaN"),
    GOOD.replace("1.0", "1e999"),
    GOOD.replace("2.0", "-2.0"),
    GOOD.replace("2.0", '"2"'),
    GOOD.replace("2.0", "true"),
    GOOD.replace('"step": 3', '"step": 3.0'),
    GOOD.replace('"step": 3', f'"step": {"9" * 400}'),
    GOOD.replace('"first": 0', '"first": 4'),
    GOOD.replace("false", "0"),
    GOOD.replace('"step": 1.0', '"stop": 1.0'),
    GOOD.replace('{"step": 1.0}', "[1.0]"),
    GOOD[:-1] + ', "more": 1}',
    GOOD[:-1] + ', "step": 3}',
    GOOD[: len(GOOD) // 2],
  ],
  ids=range(21),
)
def test_lines_that_are_no_start_are_left_out(tmp_path, line):
  file = tmp_path / FILE
  assert goodput.read_starts(tmp_path) == []
  file.write_bytes(f"{GOOD}\n{line}\n{GOOD}\n".encode("latin-1"))
  one = start(1.0, 2.0, 0, 3, step=1.0)
  assert goodput.read_starts(tmp_path) == [one, one]


def stop_at(monkeypatch, step):
  """Training ends with an error after a step, before it is saved."""

  def after(self, reached, current, true=module.Loop.after):
    current = true(self, reached, current)
    if reached == step:
      raise RuntimeError("stopped")
    return current

  monkeypatch.setattr(module.Loop, "after", after)


def check_rows(workdir):
  """Shares of every row are those of a whole; the last row."""
  found = read_metrics(workdir / "metrics.jsonl")
  for row in found:
    parts = [row[f"goodput/{cause}"] for cause in CAUSES]
    assert sum(parts) == pytest.approx(1) and min(parts) >= 0
  return found[-1]


def test_lost_steps_are_those_after_the_restored_one(tmp_path, monkeypatch, capsys):
  c = config(tmp_path, train__log_every=1, train__checkpoint_every=2)
  train(c, tmp_path / "whole")
  with monkeypatch.context() as patch:
    stop_at(patch, 5)
    with pytest.raises(RuntimeError, match="stopped"):
      train(c, tmp_path / "run")
  assert check_rows(tmp_path / "run")["goodput/lost"] == 0
  capsys.readouterr()
  train(c, tmp_path / "run")
  first, second = goodput.read_starts(tmp_path / "run")
  assert (first.first, first.step, first.done) == (0, 5, False)
  assert (second.first, second.step, second.done) == (4, 6, True)
  assert goodput.spent([first, second])["lost"] == first.seconds["step"] / 5
  last = check_rows(tmp_path / "run")
  assert last["goodput/lost"] > 0 and last["goodput/restore"] > 0
  assert rows(tmp_path / "run") == rows(tmp_path / "whole")
  *_, line = capsys.readouterr().err.splitlines()
  assert line == goodput.summary([first, second])
  # A torn file, or none, is no error.
  (tmp_path / "run" / FILE).write_text(GOOD[:9])
  train(c, tmp_path / "run")
  assert "in 1 start:" in capsys.readouterr().err.splitlines()[-1]


def test_each_run_of_a_process_has_its_own_time(tmp_path):
  for name in ("one", "other"):
    with phases.here.phase("data"):
      before = phases.here.seconds()
      train(config(tmp_path), tmp_path / name)
    now = phases.here.seconds()
    (found,) = goodput.read_starts(tmp_path / name)
    for phase, seconds in found.seconds.items():
      assert 0 <= seconds <= now[phase] - before[phase]
    assert found.seconds["step"] > 0 and found.seconds["evaluation"] > 0
    assert found.seconds["save"] > 0 and found.seconds["compile"] > 0


@pytest.mark.jobs
@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_it_outlives_a_kill(tmp_path, where):
  fields = settings(
    tmp_path,
    train__steps=400,
    train__log_every=1,
    train__checkpoint_every=20,
    train__evaluate_every=400,
    mesh__fsdp=1,
    mesh__tensor=1,
  )
  workdir = places.path(buckets.fresh() if where == "bucket" else tmp_path / "run")
  words = ["train", f"--config={jobs.config_file(tmp_path, fields)}"]
  words.append(f"--workdir={workdir}")
  job = jobs.Job(tmp_path, 1, 1, words)
  job.reach(70)
  job.processes[0].send_signal(signal.SIGKILL)
  assert job.wait() == [-signal.SIGKILL]
  (killed,) = goodput.read_starts(workdir)
  job = jobs.Job(tmp_path, 1, 1, words)
  assert job.wait() == [0], job.text()
  first, second = goodput.read_starts(workdir)
  assert first == killed and first.step >= 60 and not first.done
  assert second.first % 20 == 0 and second.first >= 40 and second.done
  found = goodput.spent([first, second])
  lost = max(0, first.step - second.first) / first.step * first.seconds["step"]
  assert found["lost"] == pytest.approx(lost)
  assert found["down"] > 0 and first.seconds["start"] > 0
  assert job.text().splitlines()[-1] == goodput.summary([first, second])
  check_rows(workdir)
