"""A step is whole once its marker is there, wherever the folder is copied to."""

import os
import pathlib
import shutil
import sys

import pytest

from set_diffusion_jax.convert import convert
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import folders, places, steps, workdir
from tests import buckets, jobs

PUBLISHED = jobs.ROOT / "tests" / "reference" / "models" / "setdlm_dit"
_LISTENERS: list = []  # an audit hook cannot be taken away again


@sys.addaudithook
def _hook(event, arguments):
  if _LISTENERS and event == "open" and isinstance(arguments[0], str | os.PathLike):
    (listener,) = _LISTENERS
    listener(pathlib.Path(arguments[0]), arguments[2])


def at_every_write(root, act):
  """Calls `act()` before a file below `root` is opened to be written."""

  def listener(path, flags):
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and root in path.parents:
      _LISTENERS.clear()
      act()
      _LISTENERS.append(listener)

  _LISTENERS.append(listener)


def contents(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_conversion_that_is_cut_short_has_no_marker(tmp_path):
  """What a kill leaves is what lies there before each write."""
  home, kept = tmp_path / "home", tmp_path / "kept"
  home.mkdir()
  at_every_write(home, lambda: shutil.copytree(home, kept / f"{len(os.listdir(kept))}"))
  kept.mkdir()
  try:
    convert(PUBLISHED, home / "run")
  finally:
    _LISTENERS.clear()
  whole = contents(home / "run" / "checkpoints" / "0")
  left = list(kept.rglob("checkpoints/0"))
  torn = [step for step in left if not (step / steps.MARKER).exists()]
  assert len(torn) > 3
  assert all(contents(step) == whole for step in left if step not in torn)
  fullest = max(torn, key=lambda step: len(contents(step)))
  assert whole.keys() - contents(fullest).keys() == {pathlib.Path(steps.MARKER)}
  bucket = places.path(buckets.fresh())
  folders.upload(fullest, bucket / "checkpoints" / "0")
  assert places.names(bucket / "checkpoints") == ["0"]
  assert steps.numbers(bucket / "checkpoints") == []
  folders.upload(home / "run", bucket)
  assert steps.numbers(bucket / "checkpoints") == [0]


@pytest.mark.parametrize("name", ["00", "9" * 30, "007"])
def test_numbers_that_no_step_has(tmp_path, name):
  path = tmp_path / "checkpoints" / name
  with pytest.raises(UserError, match=f"{name} is no number of a step"):
    workdir.names_step(path)
  assert not workdir.names_step(tmp_path / name)
  assert workdir.names_step(path.parent / "7")
  path.mkdir(parents=True)
  with pytest.raises(UserError, match="has no checkpoint yet"):
    workdir.newest_step(tmp_path)
