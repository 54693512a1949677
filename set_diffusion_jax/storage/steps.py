"""Steps of a run: folders named by a number, which are whole or do not count."""

import os
import pathlib

from set_diffusion_jax.inputs.names import step_number
from set_diffusion_jax.storage import places

MARKER = "commit_success.txt"  # Orbax writes it last, into every step that is whole


def finished(step: pathlib.Path) -> bool:
  """Whether the folder of a step is whole.

  On a disk it is renamed into place when it is; in a bucket a marker is written last.
  """
  if places.is_remote(step):
    return places.exists(step / MARKER)
  return os.path.lexists(step)


def numbers(folder: pathlib.Path) -> list[int]:
  """Numbers of the finished steps of a folder of checkpoints, ascending."""
  if places.is_remote(folder):
    found = places.names(folder)
  else:
    found = [place.name for place in folder.glob("*")]
  steps = {name: step_number(name) for name in found}
  return sorted(
    number
    for name, number in steps.items()
    if number is not None and finished(folder / name)
  )
