"""A directory that is there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from set_diffusion_jax.errors import UserError

_FRESH = ".convert-"  # how names begin beside the destination, while it is written


@contextlib.contextmanager
def fresh_directory(destination: pathlib.Path) -> Iterator[pathlib.Path]:
  """A directory beside `destination` that takes its place when all went well.

  Raises:
    UserError: the destination is in use, or the disk is full or fails.
  """
  fresh = None
  try:
    _check_free(destination)
    place = _place(destination)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Its own name may be as long as names can be.
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=_FRESH, dir=place.parent))
    yield fresh
    umask = os.umask(0)
    os.umask(umask)
    fresh.chmod(0o777 & ~umask)
    os.replace(fresh, place)
    fresh = None
  except OSError as error:
    why = error.strerror or str(error)
    raise UserError(f"{destination}: {why}; nothing was written") from None
  finally:
    if fresh is not None:
      shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def removed_unless_right(destination: pathlib.Path) -> Iterator[None]:
  """Takes a written directory away again, at once, if what is done here fails."""
  try:
    yield
  except BaseException:
    place = _place(destination)
    aside = tempfile.mkdtemp(prefix=_FRESH, dir=place.parent)
    os.replace(place, aside)
    shutil.rmtree(aside, ignore_errors=True)
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
