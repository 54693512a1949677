"""Copies on a disk of the files of a bucket that libraries open by their names."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterable

from set_diffusion_jax.errors import DiskError, UserError, disk_reason
from set_diffusion_jax.storage import disk, places
from set_diffusion_jax.storage.faults import retried


class Copies:
  """A folder of a bucket, of which single files are copied to this disk when asked for.

  As a context: the copies lie in the folder of temporary files (`TMPDIR`) and are
  removed at its end. What else the bucket holds, whatever its names, is left there.

  Args:
    folder: in a bucket.

  Attributes:
    origin: its address.
    path: the folder of the copies.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self.origin = folder, os.fspath(folder)
    self._sizes = places.sizes(folder)

  def __enter__(self) -> "Copies":
    with self._told():
      self._scratch = disk.scratch()
    self.path = pathlib.Path(self._scratch.name)
    return self

  def __exit__(self, *exception) -> None:
    self._scratch.cleanup()

  def get(self, names: Iterable[str], most: int | None = None) -> pathlib.Path:
    """The folder of the copies, with those of the named files that the bucket has.

    Args:
      names: of files directly in the folder, each without a slash.
      most: bytes that each may have; None: as many as it has.

    Raises:
      DiskError: the disk is full or fails.
      UserError: a file has more bytes, or is gone.
    """
    for name in names:
      size, target = self._sizes.get(name), self.path / name
      if size is None or target.exists():
        continue
      if most is not None and size > most:
        where = f"{self.origin}/{name}"
        raise UserError(f"{where}: has {size} bytes, must have at most {most}")
      with self._told():
        retried(lambda name=name, to=target: places.download(self._folder / name, to))
    return self.path

  @contextlib.contextmanager
  def _told(self):
    try:
      yield
    except OSError as error:
      reason = disk_reason(error)
      if reason is None:
        raise
      where = f"{self.origin}: its copy in {tempfile.gettempdir()}"
      raise DiskError(f"{where}: {reason}; set TMPDIR to a larger disk") from None
