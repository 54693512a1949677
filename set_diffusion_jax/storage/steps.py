"""Steps of a run: folders named by a number, which are whole or do not count."""

import os
import pathlib

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import step_number
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.storage import places

MARKER = "commit_success.txt"  # Orbax writes it last, into every step that is whole
_DESCRIPTION = "_CHECKPOINT_METADATA"  # before it, with the time at which all was there


def finished(step: pathlib.Path) -> bool:
  """Whether the folder of a step is whole.

  On a disk it is renamed into place when it is; in a bucket a marker is written last.
  Where a bucket is mounted as a folder, steps may be from before markers were written
  there, so one that says itself that it was finished counts as well.
  """
  if places.renames(step):
    return os.path.lexists(step)
  return places.exists(step / MARKER) or _unmarked(step)


def numbers(folder: pathlib.Path) -> list[int]:
  """Numbers of the finished steps of a folder of checkpoints, ascending."""
  return [number for number in _numbers(folder) if finished(folder / str(number))]


def mark(folder: pathlib.Path) -> None:
  """Writes the marker into each finished step that has none, in a mounted bucket.

  Orbax removes steps without it there when it begins to save.
  """
  if places.is_remote(folder) or places.renames(folder):
    return
  for number in _numbers(folder):
    step = folder / str(number)
    if not places.exists(step / MARKER) and _unmarked(step):
      places.write_text(step / MARKER, "")


def _numbers(folder: pathlib.Path) -> list[int]:
  """Numbers of all steps, torn ones among them, ascending."""
  if places.is_remote(folder):
    found = places.names(folder)
  else:
    found = [place.name for place in folder.glob("*")]
  steps = (step_number(name) for name in found)
  return sorted(number for number in steps if number is not None)


def _unmarked(step: pathlib.Path) -> bool:
  """Whether a step on a disk says that it was finished, in whatever place it was."""
  if places.is_remote(step):
    return False
  try:
    said = parse_json(places.read_bytes(step / _DESCRIPTION), _DESCRIPTION)
  except (FileNotFoundError, NotADirectoryError, UserError):
    return False
  return isinstance(said, dict) and said.get("commit_timestamp_nsecs") is not None
