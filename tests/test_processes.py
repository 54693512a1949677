"""Several processes on this machine: equal to one, killed, stopped, at odds."""

import json
import signal

import jax
import numpy as np
import pytest

from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.training.metrics import read_metrics
from set_diffusion_jax.training.train import train
from tests import tiny
from tests.jobs import Job, config_file
from tests.test_checkpoint import flip
from tests.test_train import assert_identical, config, final, settings

pytestmark = [pytest.mark.slow, pytest.mark.jobs]
WHOLE = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1}


def command(folder, workdir, **changes):
  """`train` with a configuration of its own."""
  home = folder / f"config-{workdir.name}"
  home.mkdir(exist_ok=True)
  file = config_file(home, settings(folder, **{**WHOLE, **changes}))
  return ["train", f"--config={file}", f"--workdir={workdir}"]


def curve(workdir):
  """Losses and held-out nats by step."""
  rows = read_metrics(workdir / "metrics.jsonl")
  names = ("train/loss", "validation/nats_per_token")
  return {(r["step"], name): r[name] for r in rows for name in names if name in r}


def assert_equal_curves(ours, theirs, rel=1e-5):
  assert ours.keys() == theirs.keys()
  for key, value in ours.items():
    assert value == pytest.approx(theirs[key], rel=rel), key


def test_two_processes_equal_one(tmp_path):
  """Losses, held-out figures and the final state; one process writes and prints."""
  changes = {"mesh__fsdp": 2, "train__log_every": 1, "train__checkpoint_minutes": 1e-4}
  two, one = tmp_path / "two", tmp_path / "one"
  job = Job(tmp_path, 2, 2, command(tmp_path, two, **changes))
  same = config(tmp_path, **{**WHOLE, **changes})
  assert jax.device_count() == 4
  train(same, one)
  assert job.wait() == [0, 0], job.text(0) + job.text(1)
  assert Checkpoints(two / "checkpoints").steps == [5, 6]  # minutes, not only steps
  assert_equal_curves(curve(two), curve(one))
  (ours, next_1), (theirs, next_2) = final(same, two), final(same, one)
  check = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
  jax.tree.map(check, ours, theirs)
  np.testing.assert_array_equal(next_1, next_2)
  assert "step 6  loss" in job.text(0)
  assert "loss" not in job.text(1)
  rows = read_metrics(two / "metrics.jsonl")
  assert {"hosts/input_seconds_longest", "hosts/slowest"} <= rows[0].keys()
  assert "train/mfu" not in rows[0]  # a CPU has no peak


@pytest.mark.parametrize(
  "count, mesh",
  [
    (2, {"mesh__data": 1, "mesh__fsdp": 1, "mesh__tensor": 4}),
    (4, {"mesh__data": 1, "mesh__fsdp": 8, "train__accumulate": 2}),
    (4, {"mesh__slice": 2, "mesh__data": 2, "mesh__tensor": 2}),
  ],
)
def test_any_mesh_over_processes_equals_one(tmp_path, count, mesh):
  """Rows, weights and slices cross the processes in every way."""
  changes = {"train__batch_size": 16, "train__log_every": 1, "model__dropout": 0.1}
  many, one = tmp_path / "many", tmp_path / "one"
  job = Job(tmp_path, count, 2, command(tmp_path, many, **changes, **mesh))
  assert job.wait() == [0] * count, job.text()
  train(config(tmp_path, **{**WHOLE, **changes}), one)
  assert_equal_curves(curve(many), curve(one))


# Every step is saved, so that saves are in progress whenever a process is killed.
LONG = {
  "train__steps": 24,
  "train__log_every": 1,
  "train__checkpoint_every": 1,
  "train__evaluate_every": 12,
  "train__batch_size": 8,
  "train__keep_latest": 99,
  "optimizer__learning_rate": 3e-3,
  "corruption__clip_width": 0.5,
  "method__name": "block",
}


def test_killed_and_continued_by_other_processes(tmp_path):
  """SIGKILL of either process, and each time the job goes on with another count."""
  whole, run = tmp_path / "whole", tmp_path / "run"
  train(config(tmp_path, **{**WHOLE, **LONG}), whole)
  arguments = command(tmp_path, run, **LONG)
  for count, devices, victim, step in ((2, 2, 1, 5), (4, 2, 0, 11)):
    job = Job(tmp_path, count, devices, arguments)
    job.reach(step)
    job.processes[victim].send_signal(signal.SIGKILL)
    codes = job.wait()
    assert codes[victim] == -signal.SIGKILL
    assert all(code not in (0, 42) for code in codes), codes
  job = Job(tmp_path, 2, 1, arguments)
  assert job.wait() == [0, 0], job.text()
  assert "continues from step" in job.text()
  assert_equal_curves(curve(run), curve(whole))


def test_stopped_by_sigterm_and_continued(tmp_path):
  """All save the same step and end with 42; the rest is bit for bit as without."""
  whole, run = tmp_path / "whole", tmp_path / "run"
  job = Job(tmp_path, 2, 2, command(tmp_path, whole, **LONG))
  assert job.wait() == [0, 0], job.text()
  arguments = command(tmp_path, run, **LONG)
  for step in (5, 11):
    job = Job(tmp_path, 2, 2, arguments)
    job.reach(step)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [42, 42], job.text()
    saved = {job.text(i).splitlines()[-1].split(",")[0] for i in range(2)}
    assert len(saved) == 1
    assert "stopped at step" in saved.pop()
  job = Job(tmp_path, 2, 2, arguments)
  assert job.wait() == [0, 0], job.text()
  same = config(tmp_path, **{**WHOLE, **LONG})
  assert_identical(final(same, run), final(same, whole))
  validation = lambda path: [
    (r["step"], r["validation/nats_per_token"], r["clip/t_min"])
    for r in read_metrics(path / "metrics.jsonl")
    if "clip/t_min" in r
  ]
  assert validation(run) == validation(whole)


def test_processes_at_odds_fail_together(tmp_path):
  """One line everywhere, code 2, and nothing is written."""
  work = tmp_path / "run"
  arguments = command(tmp_path, work)
  other = tiny.text_file(tmp_path).with_name("other.txt")
  other.write_text((tmp_path / "text.txt").read_text().replace("wisdom", "WISDOM"))
  for extra, words in (
    ("--config.optimizer.learning_rate=0.5", ["optimizer.learning_rate = 0.01 in"]),
    ("--config.mesh.fsdp=4", ["mesh.fsdp = 1 in process 0, 4 in process 1"]),
    (f"--config.data.train_path={other}", ["data.train_sha256", "in process 1"]),
    ("--config.data.train_path=/nowhere", ["process 1: data.train_path", "no such"]),
    ("--config.model.widht=3", ["process 1: model.widht is not a field"]),
    (f"--workdir={tmp_path}/elsewhere", ["--workdir", "elsewhere"]),
  ):
    job = Job(tmp_path, 2, 2, arguments, {1: [extra]})
    assert job.wait() == [2, 2], job.text()
    for index in range(2):
      # What JAX's runtime logs, such as "[Gloo] ..." and "W1125 ...", may be there too.
      (line,) = [x for x in job.text(index).splitlines() if x.startswith("error: ")]
      assert "Traceback" not in job.text(index)
      assert all(word in line for word in words), line
    assert not work.exists()
    assert not (tmp_path / "elsewhere").exists()


def test_nobody_there(tmp_path):
  """A process that cannot meet the others says so and ends with 5."""
  arguments = [*command(tmp_path, tmp_path / "run"), "--processes=2"]
  arguments += ["--coordinator=127.0.0.1:9", "--meeting-timeout=5"]
  for index in range(2):
    job = Job(tmp_path, 1, 1, [*arguments, f"--process={index}"])
    assert job.wait() == [5]
    assert f"error: process {index} of 2" in job.text()


def test_a_damaged_step_is_passed_over_by_all(tmp_path):
  """Damage that only one process would meet."""
  run, whole = tmp_path / "run", tmp_path / "whole"
  arguments = command(tmp_path, run, train__steps=4, mesh__fsdp=4)
  job = Job(tmp_path, 2, 2, arguments)
  assert job.wait() == [0, 0], job.text()
  (part,) = (run / "checkpoints" / "4" / "state").glob("*process_1")
  flip(part)
  job = Job(tmp_path, 2, 2, command(tmp_path, run, mesh__fsdp=4))
  assert job.wait() == [0, 0], job.text()
  assert "WARNING" in job.text()
  assert "continues from step 2" in job.text()
  assert (run / "damaged" / "4").is_dir()
  job = Job(tmp_path, 2, 2, command(tmp_path, whole, mesh__fsdp=4))
  assert job.wait() == [0, 0]
  same = config(tmp_path, **{**WHOLE, "mesh__fsdp": 4})
  assert_identical(final(same, run), final(same, whole))


def test_evaluation_by_two_processes_equals_one(tmp_path):
  """The same figures; only the first process prints; interrupted work goes on."""
  work = tmp_path / "run"
  train(config(tmp_path, **WHOLE, evaluate__batch_size=3), work)
  figures, texts = [], []
  for count in (1, 2):
    output = tmp_path / f"figures-{count}.json"
    words = ["evaluate", f"--checkpoint={work}", f"--output={output}", "--draws=2"]
    job = Job(tmp_path, count, 2, words)
    assert job.wait() == [0] * count, job.text()
    found = json.loads(output.read_text())
    assert found["protocol"].pop("weights_digest")
    figures.append(found)
    texts.append([x for x in job.text(0).splitlines() if "Gloo" not in x])
  assert "perplexity" not in job.text(1)
  for name, value in figures[0].items():
    if isinstance(value, float):
      # A standard error is made of differences: it is as exact as what differs.
      scale = figures[0][name.split("_standard_error")[0]]
      value = pytest.approx(value, abs=1e-6 * scale)
    assert figures[1][name] == value
  for count, lines in zip((1, 2), texts, strict=True):
    assert lines.pop(0).startswith(f"evaluate: on {2 * count} x cpu, ")
  assert texts[0] == texts[1]
