"""A checkpoint names files inside of itself, and no others."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from set_diffusion_jax.cli import main
from set_diffusion_jax.convert import convert, describe
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import bare_name, shown, step_number
from set_diffusion_jax.weights import read_weights
from tests.convert_files import safetensors_bytes
from tests.golden import Golden
from tests.test_convert import reference

NAME = "setdlm_dit"


def tree(folder):
  """Every path around a test, with the bytes of files."""
  paths = sorted(folder.rglob("*"))
  return {p: p.read_bytes() if p.is_file() else None for p in paths}


def refused(source, out, **options):
  """The one line of a conversion that changes nothing in the folder around it."""
  before = tree(out.parent)
  with pytest.raises(UserError) as error:
    convert(source, out, **options)
  assert tree(out.parent) == before
  message = str(error.value)
  assert message.isprintable() and len(message) < 600
  return message


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  """A work directory with a tokenizer file, as `convert` writes it."""
  folder = tmp_path_factory.mktemp("names")
  source = reference(NAME, folder / "published")
  (source / "merges.txt").write_text("a b\n")
  convert(source, folder / "run")
  return folder / "run"


def changed(run, folder, change):
  """A copy of a work directory whose `meta` was changed."""
  shutil.copytree(run, folder)
  file = folder / "checkpoints" / "0" / "meta" / "metadata"
  meta = json.loads(file.read_text())
  change(meta)
  file.write_text(json.dumps(meta))
  return folder


BAD_NAMES = [
  *("../../x", "/tmp/x", "a/b", "a\\b", "..", ".", "", "C:x", "C:\\x", "x\0.txt"),
  *("con", "NUL.txt", "com1.json", "LPT9", "x.", "x ", " x", "new\nline", "\x1b[2J"),
  *("é" * 128, "a" * 256, "tokenizer.json:stream", "*", "\ud800"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_bare_name(name):
  with pytest.raises(UserError) as error:
    bare_name(name, "files")
  assert str(error.value).isprintable()


def test_bare_names():
  for name in ("tokenizer.json", "a b.txt", ".hidden", "模型.bin", "console.txt"):
    assert bare_name(name, "files") == name
  with pytest.raises(UserError, match="must be a text"):
    bare_name(7, "files")


# Also names that are plain, but not those of a checkpoint.
OTHERS = ["config.json", "README.md", "x.py", "Tokenizer.json", "model.safetensors"]


@pytest.mark.parametrize("field", ["files", "tokenizer"])
@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "x\0", "nul", *OTHERS])
def test_files_of_a_foreign_work_directory(tmp_path, converted, field, name):
  def change(meta):
    group = meta if field == "files" else meta["tokenizer"]
    group["files"][name] = "PWNED"

  run = changed(converted, tmp_path / "run", change)
  out = tmp_path / "a" / "b" / "out"
  out.parent.mkdir(parents=True)
  before = tree(tmp_path)
  with pytest.raises(UserError, match=r"files: file name"):
    convert(run, out)
  with pytest.raises(UserError, match=r"files: file name"):
    describe(run)
  with pytest.raises(UserError, match=r"files: file name"):
    read_weights(run)
  assert tree(tmp_path) == before and not os.path.exists("/tmp/x")


def test_files_that_are_no_texts(tmp_path, converted):
  cases = {
    "must be texts by file name": ["merges.txt"],
    "merges.txt is a int; must be a text": {"merges.txt": 7},
    "half a character": {"merges.txt": "\ud800"},
    "merges.txt is there twice": {"merges.txt": "a"},
  }
  for number, (message, files) in enumerate(cases.items()):
    run = changed(
      converted, tmp_path / f"run{number}", lambda m, f=files: m.update(files=f)
    )
    assert message in refused(run, tmp_path / "out")


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "nul", "a\0", 7])
def test_shards(tmp_path, name):
  folder = reference(NAME, tmp_path / "source")
  (folder / "model.safetensors").rename(folder / "a.safetensors")
  weight_map = dict.fromkeys(Golden(NAME).tensors, "a.safetensors")
  weight_map[min(weight_map)] = name
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  assert "weight_map of backbone" in refused(folder, tmp_path / "out")


FILES = ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"]


@pytest.mark.parametrize("file", [*FILES, "backbone_config.json"])
def test_links_out_of_a_directory(tmp_path, file):
  folder = reference(NAME, tmp_path / "in" / "source")
  secret = tmp_path / "secret"
  path = folder / file
  if path.exists():
    path.rename(secret)
  else:
    secret.write_text("{}")
  path.symlink_to(secret)
  message = refused(folder, tmp_path / "in" / "out")
  assert f"{path}: is a symbolic link out of the checkpoint" in message
  path.unlink()
  secret.rename(folder / "kept")
  path.symlink_to(folder / "kept")  # inside of it
  if path.name in ("config.json", "model.safetensors"):
    open_source(folder)
  path.unlink()
  os.mkfifo(path)
  assert "must be a file" in refused(folder, tmp_path / "in" / "out2")


def test_the_configuration_of_a_run_is_in_its_directory(tmp_path, converted):
  run = tmp_path / "run"
  shutil.copytree(converted, run)
  (run / "config.json").rename(run / "kept")
  (run / "config.json").symlink_to("kept")
  read_weights(run)
  (run / "kept").rename(tmp_path / "outside")
  (run / "config.json").unlink()
  (run / "config.json").symlink_to("../outside")
  with pytest.raises(UserError, match=r"config\.json: is a symbolic link out of the"):
    read_weights(run)


def test_a_snapshot_of_a_cache(tmp_path):
  """models--X/snapshots/REVISION/file -> ../../blobs/HASH"""
  model = tmp_path / "hub" / "models--someone--model"
  folder, blobs = reference(NAME, model / "snapshots" / "abc"), model / "blobs"
  blobs.mkdir()
  for number, path in enumerate(sorted(folder.iterdir())):
    path.rename(blobs / f"{number:040x}")
    path.symlink_to(pathlib.Path("..") / ".." / "blobs" / f"{number:040x}")
  convert(folder, tmp_path / "out")
  convert(folder / "model.safetensors", tmp_path / "out2")
  other = model.parent / "models--another--model" / "blobs"
  other.parent.mkdir()
  blobs.rename(other)
  blobs.symlink_to(other)
  assert "is a symbolic link out" in refused(folder, tmp_path / "hub" / "out3")


def test_a_link_that_the_user_names(tmp_path):
  source = reference(NAME, tmp_path / "source")
  (tmp_path / "linked").symlink_to(source)
  open_source(tmp_path / "linked")
  (tmp_path / "here.safetensors").symlink_to(source / "model.safetensors")
  shutil.copy(source / "config.json", tmp_path / "config.json")
  open_source(tmp_path / "here.safetensors")


def test_links_out_of_a_step(tmp_path, converted):
  run, out = shutil.copytree(converted, tmp_path / "in" / "run"), tmp_path / "in/out"
  step = run / "checkpoints" / "0"
  data = next(path for path in (step / "state").rglob("d/*") if path.is_file())
  for path in (data, step / "meta" / "metadata", step / "meta", step, step.parent):
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert "is a symbolic link out of the checkpoint" in refused(run, out)
    with pytest.raises(UserError, match="is a symbolic link out of the checkpoint"):
      read_weights(run)
    path.unlink()
    (tmp_path / "outside").rename(path)
  open_source(run)
  os.mkfifo(step / "state" / "pipe")
  assert "must be a file or a folder" in refused(run, out)


POINTER = (
  f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4123456\n"
)


@pytest.mark.parametrize("file", [*FILES, "a.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointers(tmp_path, capsys, file):
  folder = reference(NAME, tmp_path / "source")
  if file in ("a.safetensors", "pytorch_model.bin"):
    (folder / "model.safetensors").unlink()
  if file == "a.safetensors":
    index = {"weight_map": {"backbone.x": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  (folder / file).write_text(POINTER)
  assert main(["convert", str(folder), str(tmp_path / "out")]) == 2
  found = capsys.readouterr()
  assert not found.out and found.err.count("\n") == 1
  assert f"{file}: is a git-lfs pointer" in found.err and "git lfs pull" in found.err


def test_git_lfs_pointers_in_a_step(tmp_path, converted):
  for number, name in enumerate(("meta/metadata", "state/_METADATA", "data")):
    run = shutil.copytree(converted, tmp_path / f"run{number}")
    step = run / "checkpoints" / "0"
    file = step / name
    if name == "data":
      file = next(path for path in (step / "state").rglob("d/*") if path.is_file())
    file.write_text(POINTER)
    assert "is a git-lfs pointer" in refused(run, tmp_path / "out")
    with pytest.raises(UserError, match="is a git-lfs pointer"):
      read_weights(run)


def test_step_numbers():
  assert step_number("0") == 0 and step_number("12000") == 12000
  for name in ("007", "1" * 23, "9223372036854775808", "-1", "²", "٣", "1_0", "", "1 "):
    assert step_number(name) is None


def test_names_that_are_no_steps(tmp_path, converted):
  run = shutil.copytree(converted, tmp_path / "in" / "run")
  folder = run / "checkpoints"
  for name in ("007", "9" * 23, "²", "٣"):
    shutil.copytree(folder / "0", folder / name)
    assert open_source(run).step == 0
    message = refused(folder / name, tmp_path / "in" / "out")
    assert "is no number of a step" in message
    with pytest.raises(UserError, match="is no number of a step"):
      read_weights(folder / name)
  assert read_weights(run).step == 0
  (folder / "3").write_text("")
  assert "checkpoints/3" in refused(run, tmp_path / "in" / "out")
  with pytest.raises(UserError, match="checkpoints/3"):
    read_weights(run)


def test_a_checkpoint_does_not_choose_what_is_read(tmp_path, converted):
  """Paths of its configuration are for training and `evaluate`."""

  def change(meta):
    for name in ("pipe", "pipe.npy"):
      os.mkfifo(tmp_path / name)  # whoever opens it waits for ever
    data = meta["config"]["data"]
    data |= {"source": "text", "train_path": str(tmp_path / "pipe")}
    data |= {"validation_path": str(tmp_path / "pipe")}
    meta["config"]["init_from"] = str(tmp_path / "pipe")
    meta["config"]["evaluate"]["order"] = str(tmp_path / "pipe.npy")
    data["tokenizer"] = str(tmp_path / "pipe")

  run = changed(converted, tmp_path / "run", change)
  convert(run, tmp_path / "out")
  describe(run)
  assert read_weights(run).tokenizer.name == "ids"


def test_names_of_tensors_in_messages(tmp_path):
  tensors = dict(Golden(NAME).tensors)
  for name in ("new\nline", "\x1b[2J", "x" * 2000):
    folder = reference(NAME, tmp_path / f"source{len(name)}")
    found = safetensors_bytes({**tensors, name: np.zeros(2, np.float32)})
    (folder / "model.safetensors").write_bytes(found)
    message = refused(folder, tmp_path / "out")
    assert "its name must be a readable text" in message
  assert shown("a\nb\x1b") == r"a\nb\x1b" and shown("x" * 200).endswith("...")
