"""Folders with all that is in them, on disks and in buckets.

In a bucket, mounted or not, a folder is written and moved one object after the other:
the marker of a step comes last and goes first, so that what is cut short does not
count.
"""

import contextlib
import os
import pathlib
import shutil

from set_diffusion_jax.storage import disk, places
from set_diffusion_jax.storage.steps import MARKER


def remove(place: pathlib.Path) -> None:
  """Removes a file, or a folder with all that is in it; nothing if it is not there."""
  if places.is_remote(place):
    _each(place, _remove_one)
  elif place.is_dir() and not place.is_symlink():
    shutil.rmtree(place)
  else:
    place.unlink(missing_ok=True)


def move(source: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a folder or a file within a store to where nothing is.

  In a bucket the marker of a step goes first, so that one whose move is cut short is
  unfinished at its old place.
  """
  if not places.is_remote(source):
    if places.renames(source) or not source.is_dir():
      os.replace(source, target)
    else:
      _move_files(source, target)
    return
  start, end = (os.fspath(place).removeprefix("gs://") for place in (source, target))

  def one(store, name: str) -> None:
    store.cp_file(name, end + name.removeprefix(start))
    _remove_one(store, name)

  _each(source, one)


def _remove_one(store, name: str) -> None:
  # It may be gone: by another process, or by a request whose answer was lost.
  with contextlib.suppress(FileNotFoundError):
    store.rm_file(name)


def _each(place: pathlib.Path, act) -> None:
  """Calls `act` with the store and every object of a path, markers first."""
  store, here = places.store(), os.fspath(place).removeprefix("gs://")
  found = [n for n in store.find(here) if n == here or n.startswith(f"{here}/")]
  for name in sorted(found, key=_step_first):
    act(store, name)


def _step_first(name: str) -> tuple:
  """Sorts names: markers, of which the step's is the first, then what is highest."""
  return (not name.endswith(f"/{MARKER}"), name.count("/"), name)


def _move_files(source: pathlib.Path, target: pathlib.Path) -> None:
  files = [os.fspath(path) for path in source.rglob("*") if not path.is_dir()]
  for file in sorted(files, key=_step_first):
    end = target / pathlib.Path(file).relative_to(source)
    end.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, end)
  shutil.rmtree(source)


def upload(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Copies all files of a folder on a disk into a bucket, the marker of a step last."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  last = lambda path: (path.name == MARKER, -len(path.parts), path)
  for file in sorted(files, key=last):
    end = target / file.relative_to(folder).as_posix()
    if places.is_remote(target):
      places.store().put_file(str(file), os.fspath(end))
    else:  # it is mounted
      end.parent.mkdir(parents=True, exist_ok=True)
      disk.write_whole(end, file.read_bytes())
