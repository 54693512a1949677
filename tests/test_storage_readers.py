"""Every reader of checkpoints, given one that is in a bucket or on the hub."""

import errno
import json
import os
import pathlib
import tempfile

import jax
import numpy as np
import pytest

from set_diffusion_jax import load
from set_diffusion_jax.cli import main
from set_diffusion_jax.convert import convert, describe, located
from set_diffusion_jax.errors import DiskError, UserError
from set_diffusion_jax.storage import folders, places, steps
from set_diffusion_jax.training.train import Run, train
from set_diffusion_jax.weights import read_weights
from tests import buckets, jobs, tiny
from tests.test_convert import stored

PUBLISHED = jobs.ROOT / "tests/reference/models/setdlm_dit"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """A run on a disk, and its copy in a bucket."""
  target = places.path(buckets.fresh()) / "run"
  folder = tmp_path_factory.mktemp("disk")
  text = str(tiny.text_file(folder))
  c = tiny.config(
    data__source="text",
    data__train_path=text,
    data__validation_path=text,
    train__steps=4,
    train__evaluate_every=4,
    model__ffn=64,
  )
  train(c, folder / "run")
  folders.upload(folder / "run", target)
  for step in (2, 4):  # older versions of Orbax write it in buckets only
    places.write_text(target / f"checkpoints/{step}" / steps.MARKER, "")
  return folder / "run", target


@pytest.fixture
def no_copies(monkeypatch):
  """Nothing may be copied to the folder of temporary files."""

  def refuse(*arguments):
    raise AssertionError("a file was copied")

  monkeypatch.setattr(places, "download", refuse)


def model_in_bucket(*more):
  """A published model in a bucket, with other objects beside its files."""
  target = places.path(buckets.fresh()) / "model"
  folders.upload(PUBLISHED, target)
  for name in more:
    places.store().pipe_file(f"{target}/{name}", b"hostile")
  return target


def rows_of(file):
  """What is the same in every run, of the rows of generated texts."""
  return [
    {k: v for k, v in json.loads(line).items() if k != "seconds"}
    for line in file.read_text().splitlines()
  ]


def test_a_run_is_read_where_it_is(both, no_copies, tmp_path):
  disk, remote = both
  for name in ("", "checkpoints/2"):
    ours, theirs = load(str(remote / name)), load(disk / name)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert ours.step == theirs.step and ours.config == theirs.config
    assert ours.origin == f"{remote}/checkpoints/{ours.step}"
    assert theirs.origin is None
    mine, its = describe(str(remote / name)), describe(disk / name)
    assert mine.pop("path") == f"{remote}/checkpoints/{ours.step}"
    assert its.pop("path") == str(disk / f"checkpoints/{ours.step}")
    assert mine == its
  for number, place in enumerate((disk, remote)):
    for kind in ("raw", "ema"):
      convert(str(place), tmp_path / f"{number}-{kind}", weights=kind, verify=True)
  for kind in ("raw", "ema"):
    assert stored(tmp_path / f"0-{kind}") == stored(tmp_path / f"1-{kind}")


def test_commands_give_what_they_give_on_a_disk(both, no_copies, tmp_path, capsys):
  disk, remote = both
  out = lambda number, verb: tmp_path / f"{number}.{verb}.json"
  for number, place in enumerate((disk, remote)):
    for verb, *words in (
      ("evaluate", "--draws=2"),
      ("sample", "--num=2", "--length=12", "--prompt=It"),
      ("infill", "It [MASK:3] the"),
    ):
      command = [verb, f"--checkpoint={place}", *words, f"--output={out(number, verb)}"]
      assert main(command) == 0, capsys.readouterr().err
  figures = [json.loads(out(number, "evaluate").read_text()) for number in (0, 1)]
  assert figures[1].pop("checkpoint") == f"{remote}/checkpoints/4"
  assert figures[0] == figures[1]
  for verb in ("sample", "infill"):
    ours, theirs = (rows_of(out(number, verb)) for number in (1, 0))
    assert {row.pop("checkpoint") for row in ours} == {f"{remote}/checkpoints/4"}
    assert ours == theirs and theirs


def test_a_run_starts_from_a_bucket(both, no_copies):
  disk, remote = both
  c = describe(disk)["config"]
  changed = {f"data__{name}": c["data"][name] for name in ("source", "train_path")}

  def started(place):
    config = tiny.config(init_from=str(place), model__ffn=64, **changed)
    return Run.build(config).start()

  (ours, where, _), (theirs, its, _) = started(remote), started(disk)
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  assert where.pop("checkpoint") == f"{remote}/checkpoints/4"
  assert its.pop("checkpoint") == str(disk)
  assert where == its


HOSTILE = ("../../evil", "a/../../../evil", "/abs", "deep/model.safetensors", "evil.py")


def test_only_the_files_of_a_model_leave_a_bucket(monkeypatch, tmp_path, capsys):
  remote = model_in_bucket(*HOSTILE)
  scratch, seen = tmp_path / "scratch" / "inside", set()
  scratch.mkdir(parents=True)
  monkeypatch.setattr(tempfile, "tempdir", str(scratch))
  download = places.download

  def watched(place, target):
    seen.add(pathlib.Path(target))
    return download(place, target)

  monkeypatch.setattr(places, "download", watched)
  ours, theirs = load(str(remote)), load(PUBLISHED)
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  assert ours.origin == str(remote)
  assert {path.name for path in seen} <= {path.name for path in PUBLISHED.iterdir()}
  assert {path.parent.parent for path in seen} == {scratch}
  assert not list(scratch.iterdir()), "copies are removed"
  file = load(f"{remote}/model.safetensors")
  jax.tree.map(np.testing.assert_array_equal, file.params, theirs.params)
  places.write_text(remote / "config.json", "{")
  with pytest.raises(UserError, match=rf"^{remote}/config.json: "):
    load(str(remote))
  assert not list(scratch.iterdir()), "and after an error"
  assert [path.name for path in tmp_path.rglob("*")] == ["scratch", "inside"]
  assert main(["inspect", f"{remote}/evil.py"]) == 2
  assert "must be a folder, or a file ending in .safetensors" in capsys.readouterr().err


def test_an_index_names_files_beside_it_only():
  remote = places.path(buckets.fresh()) / "model"
  folders.upload(PUBLISHED, remote)
  places.store().rm_file(f"{remote}/model.safetensors")
  for name in ("../x.safetensors", "a/b.safetensors", "evil.py"):
    index = json.dumps({"weight_map": {"x": name}})
    places.write_text(remote / "model.safetensors.index.json", index)
    with pytest.raises(UserError, match=rf"^{remote}/model.safetensors.index.json: "):
      load(str(remote))


def test_a_small_file_that_is_too_large(monkeypatch):
  remote = model_in_bucket()
  size = places.sizes(remote)["config.json"]
  monkeypatch.setattr(located, "LARGEST_JSON", size - 1)
  line = f"{remote}/config.json: has {size} bytes, must have at most {size - 1}"
  with pytest.raises(UserError, match=f"^{line}$"):
    load(str(remote))


def test_a_full_disk(monkeypatch, capsys):
  remote = model_in_bucket()

  def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(places, "download", full)
  with pytest.raises(DiskError):
    load(str(remote))
  assert main(["inspect", str(remote)]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and said.startswith(f"error: {remote}: its copy in ")
  assert "No space left on device; set TMPDIR" in said


def test_damage_is_told_in_a_line(both):
  _, remote = both
  target = places.path(buckets.fresh()) / "run"
  buckets.copy(remote, target)
  data = [n for n in places.store().find(f"{target}/checkpoints/4/state") if "/d/" in n]
  for name in data:
    places.store().pipe_file(name, b"x" * places.store().info(name)["size"])
  for act in (read_weights, describe):
    with pytest.raises(UserError, match=rf"^{target}/checkpoints/4\S*: .*"):
      act(str(target))
  places.write_text(target / "checkpoints/4/state/_METADATA", "{")
  with pytest.raises(UserError, match=rf"^{target}/checkpoints/4: is damaged"):
    describe(str(target))


@pytest.mark.parametrize(
  ("words", "named"),
  [
    (["train", "--config=s3://b/c.py", "--workdir=x"], "--config=s3://b/c.py"),
    (["train", "--config=gs://b/c.py", "--workdir=x"], "--config=gs://b/c.py"),
    (
      ["train", "--config=quickstart", "--config.init_from=s3://b/x", "--workdir=x"],
      'init_from = "s3://b/x": must be a path, gs://BUCKET/PATH or hf://ORG/NAME',
    ),
    (
      ["train", "--config=quickstart", "--config.init_from=hf://b", "--workdir=x"],
      'init_from = "hf://b": must be hf://ORG/NAME or',
    ),
    (["sample", "--checkpoint=x", "--input=gs://b/x"], "--input=gs://b/x"),
    (["sample", "--checkpoint=x", "--output=gs://b/x"], "--output=gs://b/x"),
    (["evaluate", "--checkpoint=x", "--by-output=gs://b/x"], "--by-output=gs://b/x"),
    (["evaluate", "--checkpoint=x", "--output=hf://b/x"], "--output=hf://b/x"),
    (
      ["evaluate", "--checkpoint=x", "--zero-shot-data=gs://b/x"],
      "--zero-shot-data=gs://b/x",
    ),
    (
      ["evaluate", "--checkpoint=x", "--compilation-cache=gs://b/x"],
      "--compilation-cache=gs://b/x",
    ),
    (["inspect", "x", "--backbone-config=hf://b/x"], "--backbone-config=hf://b/x"),
    (["convert", "x", "y", "--evaluation=gs://b/x"], "--evaluation=gs://b/x"),
    (["convert", "x", "gs://b/x"], "destination=gs://b/x"),
    (["plan", "--topology=v4:2x2x1", "--json=gs://b/x"], "--json=gs://b/x"),
  ],
)
def test_what_takes_no_such_address_says_so_at_once(
  words, named, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert main(words) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and said.startswith("error: ") and named in said
  assert not list(tmp_path.iterdir())
