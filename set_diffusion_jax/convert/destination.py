"""A directory that is there whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import disk

_FRESH = ".convert-"  # how names begin beside the destination, while it is written


@contextlib.contextmanager
def fresh_directory(destination: pathlib.Path) -> Iterator[pathlib.Path]:
  """A directory beside `destination` that takes its place when all went well.

  Raises:
    UserError: the destination is in use, or the disk is full or fails.
  """
  try:
    _check_free(destination)
    with disk.fresh_folder(_place(destination), _FRESH) as fresh:
      yield fresh
  except OSError as error:
    why = error.strerror or str(error)
    raise UserError(f"{destination}: {why}; nothing was written") from None


@contextlib.contextmanager
def removed_unless_right(destination: pathlib.Path) -> Iterator[None]:
  """Takes a written directory away again, at once, if what is done here fails."""
  try:
    yield
  except BaseException:
    disk.discard(_place(destination), _FRESH)
    raise


def _check_free(destination: pathlib.Path) -> None:
  """UserError unless there is nothing, or an empty directory."""
  if destination.is_dir():
    free = not any(destination.iterdir())
  else:
    free = not os.path.lexists(destination)
  if not free:
    raise UserError(f"{destination}: exists already; give a new directory")


def _place(destination: pathlib.Path) -> pathlib.Path:
  """The directory itself, if the name is a link to it."""
  return pathlib.Path(os.path.realpath(destination))
