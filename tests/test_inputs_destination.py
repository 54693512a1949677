"""A conversion is there whole or not at all, and proved from a fresh process."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from set_diffusion_jax.cli import main
from set_diffusion_jax.convert import convert, torch_directory, verify
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.errors import UserError
from tests.test_convert import reference

NAME = "setdlm_dit"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """A published directory and its work directory."""
  folder = tmp_path_factory.mktemp("destination")
  published = reference(NAME, folder / "published")
  convert(published, folder / "run")
  return published, folder / "run"


def contents(folder):
  paths = sorted(folder.rglob("*"))
  return {p: p.read_bytes() if p.is_file() and not p.is_symlink() else 0 for p in paths}


def refused(source, out, around, message, **options):
  before = contents(around)
  with pytest.raises(UserError, match=message) as error:
    convert(source, out, **options)
  assert str(error.value).isprintable() and contents(around) == before


def test_places_that_are_taken(tmp_path, both):
  published, run = both
  (tmp_path / "file").write_text("kept")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "x").write_text("kept")
  (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
  (tmp_path / "to_file").symlink_to(tmp_path / "file")
  (tmp_path / "to_full").symlink_to(tmp_path / "full")
  os.mkfifo(tmp_path / "pipe")
  for name in ("file", "full", "nowhere", "to_file", "to_full", "pipe"):
    refused(published, tmp_path / name, tmp_path, "exists already")
  refused(published, published, published, "exists already")
  refused(run, run, run, "exists already")
  refused(published, tmp_path / "file" / "x", tmp_path, "nothing was written")
  refused(published, tmp_path / ("x" * 300), tmp_path, "at most 255")


def test_places_that_are_free(tmp_path, both):
  published, _ = both
  (tmp_path / "empty").mkdir()
  (tmp_path / "linked").symlink_to(tmp_path / "empty")
  convert(published, tmp_path / "linked")
  assert (tmp_path / "linked").is_symlink() and open_source(tmp_path / "empty")
  longest = "x" * 255
  convert(published, tmp_path / longest)
  names = {"empty", "linked", longest}
  assert {path.name for path in tmp_path.iterdir()} == names


def test_a_part_of_the_source(tmp_path, both):
  run = shutil.copytree(both[1], tmp_path / "run")
  refused(run, run / "checkpoints" / "7", tmp_path, "is inside of")
  refused(run / "checkpoints" / "0", run / "checkpoints/0/x", tmp_path, "is inside of")
  (tmp_path / "link").symlink_to(run)
  refused(run, tmp_path / "link" / "checkpoints" / "7", tmp_path, "is inside of")
  convert(run, run / "pytorch")
  assert open_source(run).step == 0


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_differs_is_removed(tmp_path, both, monkeypatch, fresh):
  _, run = both
  write = torch_directory.SafetensorsWriter.write

  def lossy(self, name, start, rows):
    return write(self, name, start, -rows if "attn_out" in name else rows)

  monkeypatch.setattr(torch_directory.SafetensorsWriter, "write", lossy)
  options = {"verify": True, "fresh_process": fresh}
  refused(run, tmp_path / "out", tmp_path, "differs", **options)


@pytest.mark.slow
def test_a_fresh_process_reads_the_path_that_was_given(tmp_path, both):
  """Percent signs are bytes of a name; modules that lie around are not imported."""
  published, _ = both
  name = "50%25 [1] #?é"
  here = tmp_path / "here"
  here.mkdir()
  for module in ("jax", "numpy", "json"):
    (here / f"{module}.py").write_text("raise SystemExit('imported')\n")
  run = subprocess.run(
    [sys.executable, "-c", _MAIN, str(published), name],
    cwd=here,
    env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  assert "equal bit by bit" in run.stdout
  names = {path.name for path in here.iterdir()}
  assert names == {"jax.py", "numpy.py", "json.py", name}


_MAIN = """
import sys
sys.path.remove("")
from set_diffusion_jax.cli import main
sys.exit(main(["convert", *sys.argv[1:], "--verify"]))
"""


def test_a_process_that_ends_without_a_result(tmp_path, both, monkeypatch, capsys):
  published, _ = both
  monkeypatch.setattr(verify, "_CHILD", "raise SystemExit('no memory')")
  assert main(["convert", str(published), str(tmp_path / "out"), "--verify"]) == 2
  found = capsys.readouterr()
  assert "ended with code 1 (no memory)" in found.err and found.err.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


_SLOW = """
import sys, time
from set_diffusion_jax.convert import convert, to_pytorch
write = to_pytorch.write_json
def slow(values):
  print("writing", flush=True)
  time.sleep(60)
to_pytorch.write_json = slow
convert(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_looks_whole(tmp_path, both):
  _, run = both
  out = tmp_path / "out"
  with subprocess.Popen(
    [sys.executable, "-c", _SLOW, str(run), str(out)], stdout=subprocess.PIPE
  ) as process:
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
  time.sleep(0.1)
  assert not out.exists()
  for path in tmp_path.iterdir():
    assert path.name.startswith(".convert-")
    with pytest.raises(UserError):
      open_source(path)
