"""Restart to first step: programs kept in the work directory, compiled ahead."""

import json
import shutil
import threading
import time
import types

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.jobs.phases import here
from set_diffusion_jax.storage import places
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.training.compilation_cache import FOLDER, CompilationCache
from set_diffusion_jax.training.train import Run, train
from tests import jobs
from tests.test_storage_runs import rows
from tests.test_train import assert_identical, config, final, settings

QUICK = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1, "model__layers": 1}
QUICK |= {"train__evaluate_every": 2, "train__log_every": 1}
DIGESTS = "digests.json"


@pytest.fixture
def unset():
  """JAX has no place for compiled programs, as in a user's shell."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


def small(folder, steps):
  return config(folder, train__steps=steps, **QUICK)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A folder with a run that trained 2 steps, without programs."""
  folder = tmp_path_factory.mktemp("runs")
  train(small(folder, 2), folder / "2")
  return folder


@pytest.fixture(scope="module")
def whole(runs):
  """A run that trained 4 steps, without programs."""
  train(small(runs, 4), runs / "4")
  return runs / "4"


@pytest.fixture
def begun(runs, whole, tmp_path, unset):
  """A run that trained 2 steps, with the programs of one that trained 4."""
  run = tmp_path / "run"
  shutil.copytree(runs / "2", run)
  if not (runs / "programs").exists():
    jax.clear_caches()
    train(small(runs, 4), run)
    shutil.copytree(run / FOLDER, runs / "programs")
    shutil.rmtree(run)
    shutil.copytree(runs / "2", run)
  shutil.copytree(runs / "programs", run / FOLDER)
  return run


def entries(run):
  """Programs that are kept, by name, all of them recorded."""
  folder = run / FOLDER
  found = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != DIGESTS}
  assert found.keys() == json.loads((folder / DIGESTS).read_text()).keys()
  return found


def go_on(runs, run):
  """Continues to step 4, as a new process would; programs read and not compiled."""
  hits = []

  def heard(event, **more):
    if event == "/jax/compilation_cache/cache_hits":
      hits.append(event)

  jax.clear_caches()
  jax.monitoring.register_event_listener(heard)
  try:
    train(small(runs, 4), run)
  finally:
    jax.monitoring.unregister_event_listener(heard)
  assert rows(run) == rows(runs / "4")
  assert_identical(final(small(runs, 4), run), final(small(runs, 4), runs / "4"))
  assert jax.config.jax_compilation_cache_dir is None
  return len(hits)


@pytest.mark.slow
def test_a_restart_finds_its_programs(runs, begun):
  before = entries(begun)
  assert any(name.startswith("jit_train_step") for name in before)
  assert go_on(runs, begun) > 0
  after = entries(begun)
  assert {name: after[name] for name in before} == before


def flipped(content):
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("change", [flipped, lambda content: content[:100]])
def test_damage_changes_nothing_and_is_repaired(runs, begun, change, recwarn):
  before = entries(begun)
  for name, content in before.items():
    (begun / FOLDER / name).write_bytes(change(content))
  assert go_on(runs, begun) == 0
  assert entries(begun).keys() >= before.keys()
  assert not [w for w in recwarn if "compilation cache" in str(w.message)]


@pytest.mark.parametrize(
  ("name", "change", "left"),
  [
    ("a", lambda content: content, ["a", "b"]),
    ("a", flipped, ["b"]),
    ("a", lambda content: content[:3], ["b"]),
    ("c", lambda content: b"not recorded", ["a", "b"]),
    (DIGESTS, lambda content: None, []),
    (DIGESTS, lambda content: content[:-9], []),
    (DIGESTS, lambda content: b"[" * 100_000, []),
    (DIGESTS, lambda content: content.replace(b'"b-', b'"a-'), []),
    (DIGESTS, lambda content: content.replace(b"}", b', "c": [{}, 7]}'), ["a", "b"]),
    (DIGESTS, lambda content: b"[1]", []),
    (DIGESTS, lambda content: b"\xff", []),
  ],
  ids="whole bit torn unrecorded none half deep twice nested list bytes".split(),
)
def test_only_what_is_as_recorded_is_left(tmp_path, unset, name, change, left):
  folder = tmp_path / FOLDER
  with CompilationCache(tmp_path) as cache:
    assert jax.config.jax_compilation_cache_dir == str(folder)
    for entry in "ab":
      (folder / f"{entry}-cache").write_text(f"program {entry}")
    cache.record()
  assert jax.config.jax_compilation_cache_dir is None
  file = folder / (name if name == DIGESTS else f"{name}-cache")
  content = change(file.read_bytes() if file.exists() else None)
  file.unlink(missing_ok=True)
  if content is not None:
    file.write_bytes(content)
  with CompilationCache(tmp_path) as cache:
    assert cache.news == []
    names = [n for n in places.names(folder) if n != DIGESTS]
    assert names == [f"{entry}-cache" for entry in left]
    (folder / "d-cache").write_text("new")
  assert entries(tmp_path).keys() == {*names, "d-cache"}


def test_a_place_that_cannot_be_used_is_told(tmp_path, unset):
  (tmp_path / FOLDER).write_text("")
  with CompilationCache(tmp_path) as cache:
    assert jax.config.jax_compilation_cache_dir is None
  line = f"{tmp_path / FOLDER}: File exists; compiled programs are not kept"
  assert cache.news == [line]


def test_a_full_disk_ends_no_run(tmp_path, unset, monkeypatch):
  def full(*arguments):
    raise OSError(28, "No space left on device")

  with CompilationCache(tmp_path):
    (tmp_path / FOLDER / "a-cache").write_text("program a")
    monkeypatch.setattr("set_diffusion_jax.storage.disk.write_whole", full)
  assert places.names(tmp_path / FOLDER) == ["a-cache"]


def test_another_place_is_the_user_s(tmp_path):
  given = jax.config.jax_compilation_cache_dir
  with CompilationCache(tmp_path):
    assert jax.config.jax_compilation_cache_dir == given
  assert given is not None and not (tmp_path / FOLDER).exists()


def test_a_bucket_has_none(unset):
  with CompilationCache(places.path("gs://runs/mine")) as cache:
    assert jax.config.jax_compilation_cache_dir is None
  assert cache.news == []


def elsewhere(act, monkeypatch):
  """Compiling in another thread calls `act` before."""
  true = jax.stages.Lowered.compile

  def compile(self, *arguments, **more):
    if threading.current_thread() is not threading.main_thread():
      act()
    return true(self, *arguments, **more)

  monkeypatch.setattr(jax.stages.Lowered, "compile", compile)


def see(phase):
  """Waits until the process is in a phase."""
  deadline = time.monotonic() + jobs.TIMEOUT
  while here.now.phase != phase:
    assert time.monotonic() < deadline
    time.sleep(0.001)


def after(seen, true):
  """Does it once the phase that the process is in was seen."""

  def wrapped(*arguments):
    deadline = time.monotonic() + jobs.TIMEOUT
    while here.now.phase not in seen:
      assert time.monotonic() < deadline
      time.sleep(0.001)
    return true(*arguments)

  return wrapped


def test_the_state_is_restored_and_read_while_the_step_is_compiled(
  runs, tmp_path, monkeypatch
):
  shutil.copytree(runs / "2", tmp_path / "run")
  seen = []

  def act():
    for phase in ("restore", "input", "compile"):  # the last waits for this thread
      see(phase)
      seen.append(phase)

  restore, put = Checkpoints.restore_newest, Run.put
  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, "restore_newest", after(seen, restore))
    patch.setattr(Run, "put", after(seen, put))
    elsewhere(act, patch)
    train(small(runs, 4), tmp_path / "run")
  assert seen == ["restore", "input", "compile"]
  assert rows(tmp_path / "run")[-1]["step"] == 4


def test_what_compiling_raises_ends_the_run(runs, tmp_path, monkeypatch):
  def fail():
    raise MemoryError("too large")

  shutil.copytree(runs / "2", tmp_path / "run")
  with monkeypatch.context() as patch:
    elsewhere(fail, patch)
    with pytest.raises(MemoryError, match="too large"):
      train(small(runs, 4), tmp_path / "run")
  train(small(runs, 4), tmp_path / "run")  # the lease was given back
  assert rows(tmp_path / "run")[-1]["step"] == 4


def test_what_restoring_raises_comes_first(runs, tmp_path, monkeypatch):
  def fail():
    raise MemoryError("too large")

  run = tmp_path / "run"
  shutil.copytree(runs / "2", run)
  (run / "checkpoints/2/meta/metadata").write_text("{")
  elsewhere(fail, monkeypatch)
  with pytest.raises(UserError, match="no other step is whole"):
    train(small(runs, 4), run)


@pytest.mark.jobs
@pytest.mark.slow
def test_two_processes_share_a_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(jobs, "CACHE", types.SimpleNamespace(name=""))
  fields = settings(tmp_path, mesh__data=2, mesh__fsdp=1, mesh__tensor=1)
  words = ["train", f"--config={jobs.config_file(tmp_path, fields)}"]

  def run(name, *more):
    job = jobs.Job(tmp_path, 2, 1, [*words, f"--workdir={tmp_path / name}", *more])
    assert job.wait() == [0, 0], job.text()

  run("parts", "--config.train.steps=3")
  before = entries(tmp_path / "parts")
  assert any(name.startswith("jit_train_step") for name in before)
  run("parts")
  after = entries(tmp_path / "parts")
  assert {name: after[name] for name in before} == before
  assert len([name for name in after if name.startswith("jit_train_step")]) == 1
  run("whole")
  names = ("step", "train/loss", "train/gradient_norm", "validation/nats_per_token")
  parts, whole = (
    [[row.get(name) for name in names] for row in rows(tmp_path / run)[-2:]]
    for run in ("parts", "whole")
  )
  assert parts == whole and [row[0] for row in parts] == [6, 6]
