"""The files of a prepared corpus, on a disk or in a bucket."""

import contextlib
import errno
import hashlib
import os
import pathlib
from collections.abc import Mapping

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import places, refusals
from set_diffusion_jax.storage.faults import retried


class Folder:
  """A folder of files; what a bucket refuses is told in one line.

  Args:
    path: where it is.
    where: names it in messages.
  """

  def __init__(self, path: pathlib.Path, where: str):
    self._path, self._where = path, where
    self.remote = places.is_remote(path)

  def reach(self) -> None:
    """UserError where a bucket cannot be read, or is not there."""
    places.reach(self._path, "data.directory")

  def has(self, name: str) -> bool:
    """Whether there is a file of this name."""
    with self._explained():
      return places.exists(self._path / name)

  def content(self, name: str) -> bytes:
    """All of a file; FileNotFoundError where there is none."""
    with self._explained():
      return retried(lambda: places.read_bytes(self._path / name))

  def check_sizes(self, files: Mapping[str, dict]) -> None:
    """UserError for a file that is not there or has not the bytes it should have.

    A bucket is asked once for all of them, not for one after another.
    """
    listed = None
    if self.remote:
      with self._explained():
        listed = retried(lambda: places.sizes(self._path))
    for name, entry in files.items():
      try:
        size = (self._path / name).stat().st_size if listed is None else listed[name]
      except KeyError:
        missing = os.strerror(errno.ENOENT)
        raise UserError(f"{self._where}: {name}: {missing}") from None
      except OSError as error:
        raise UserError(f"{self._where}: {name}: {error.strerror}") from None
      if size != entry["bytes"]:
        right = f"must have {entry['bytes']}; copy or prepare it again"
        raise UserError(f"{self._where}: {name} has {size} bytes, {right}")

  def digest(self, name: str) -> str:
    """SHA-256 of a file."""
    if self.remote:
      return hashlib.sha256(self.content(name)).hexdigest()
    return file_digest(self._path / name)

  def _explained(self) -> contextlib.AbstractContextManager:
    return refusals.explained(self._where) if self.remote else contextlib.nullcontext()


def file_digest(path: pathlib.Path) -> str:
  """SHA-256 of a file on a disk."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
