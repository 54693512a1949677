"""A directory that is there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from set_diffusion_jax.errors import UserError


@contextlib.contextmanager
def fresh_directory(destination: pathlib.Path) -> Iterator[pathlib.Path]:
  """A directory beside `destination` that takes its place when all went well.

  Raises:
    UserError: the destination is in use, or the disk is full or fails.
  """
  if destination.exists() and not (
    destination.is_dir() and not any(destination.iterdir())
  ):
    raise UserError(f"{destination}: exists already; give a new directory")
  destination = destination.absolute()
  fresh = None
  try:
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Its own name may be as long as names can be.
    name = tempfile.mkdtemp(prefix=".set-diffusion-", dir=destination.parent)
    fresh = pathlib.Path(name)
    yield fresh
    umask = os.umask(0)
    os.umask(umask)
    fresh.chmod(0o777 & ~umask)
    os.replace(fresh, destination)
    fresh = None
  except OSError as error:
    why = error.strerror or str(error)
    raise UserError(f"{destination}: {why}; nothing was written") from None
  finally:
    if fresh is not None:
      shutil.rmtree(fresh, ignore_errors=True)
