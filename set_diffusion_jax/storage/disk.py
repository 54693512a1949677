"""Files and folders of a disk that are there whole or not at all.

Each is written under another name beside its place and renamed into it. Nothing else in
the package renames, links or removes a folder.
"""

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator

from set_diffusion_jax.inputs import paths
from set_diffusion_jax.storage import mounts


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file: whole or not at all if it is one, and into what is no plain file.

  A device, a pipe or an open file such as /dev/stdout stays what it is. A symbolic link
  stays, and the file that it names is replaced. Text is written as UTF-8.

  Raises:
    OSError: it cannot be written.
  """
  if isinstance(content, str):
    content = content.encode()
  number = paths.descriptor(path)
  if number is not None:
    with open(number, "wb", closefd=False) as file:
      file.write(content)
    return
  if paths.is_special(path):
    with path.open("wb") as file:
      file.write(content)
    return
  target = pathlib.Path(os.path.realpath(path))
  with fresh_file(target) as fresh:
    with fresh.open("xb") as file:  # as the user's umask says
      file.write(content)
    with contextlib.suppress(FileNotFoundError):
      mode = target.stat().st_mode & 0o7777  # a private file stays private
      if fresh.stat().st_mode & 0o7777 != mode:  # some mounted buckets refuse to
        fresh.chmod(mode)


@contextlib.contextmanager
def fresh_file(path: pathlib.Path, name: str | None = None) -> Iterator[pathlib.Path]:
  """A new file beside `path` that takes its place when all went well.

  Args:
    path: a file, which may be there.
    name: of the new file, where what a kill leaves is written over by the next process;
      None: one of this thread, however long that of `path` is.

  Raises:
    OSError: it cannot be written; there is none of it then.
  """
  fresh = path.with_name(fresh_name() if name is None else name)
  try:
    fresh.unlink(missing_ok=True)
    yield fresh
    os.replace(fresh, path)
  except BaseException:
    with contextlib.suppress(OSError):
      fresh.unlink(missing_ok=True)
    raise


def fresh_name() -> str:
  """A name of this thread for what will be moved into place, however long that is."""
  return f".set-diffusion-{os.getpid()}-{threading.get_native_id()}.tmp"


def is_fresh(name: str) -> bool:
  """Whether a name is one of `fresh_name`, of any thread of any process."""
  return re.fullmatch(r"\.set-diffusion-\d+(-\d+)?\.tmp", name) is not None


def create(path: pathlib.Path, content: str) -> bool:
  """Writes a file whole unless there is one; whether it did.

  Of several processes that do so at once, on whatever host, one succeeds.
  """
  if mounts.in_bucket(path):
    return _create_in_place(path, content)  # no file has two names there
  # Processes of two hosts, or containers, may have the same number.
  fresh = path.with_name(f".set-diffusion-{secrets.randbits(63)}.tmp")
  try:
    fresh.write_text(content, encoding="utf-8")
    os.link(fresh, path)  # unlike a rename, it never replaces
  except FileExistsError:
    return False
  except OSError as error:
    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
      raise
    return _create_in_place(path, content)
  finally:
    fresh.unlink(missing_ok=True)
  return True


def _create_in_place(path: pathlib.Path, content: str) -> bool:
  try:
    with path.open("x", encoding="utf-8") as file:
      file.write(content)
  except FileExistsError:
    return False
  return True


def scratch() -> tempfile.TemporaryDirectory:
  """A folder among this machine's temporary files, as a context or until `cleanup`."""
  return tempfile.TemporaryDirectory(
    prefix="set-diffusion-", ignore_cleanup_errors=True
  )


@contextlib.contextmanager
def fresh_folder(path: pathlib.Path, prefix: str) -> Iterator[pathlib.Path]:
  """A new folder beside `path` that takes its place when all went well.

  Args:
    path: nothing, or an empty folder.
    prefix: how the name of the new one begins, which a kill leaves.

  Raises:
    OSError: it cannot be written; there is none of it then.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  # Its own name may be as long as names can be.
  fresh = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
  try:
    yield fresh
    umask = os.umask(0)
    os.umask(umask)
    fresh.chmod(0o777 & ~umask)
    os.replace(fresh, path)
  except BaseException:
    shutil.rmtree(fresh, ignore_errors=True)
    raise


def discard(folder: pathlib.Path, prefix: str) -> None:
  """Takes a folder away at once: a kill leaves all of it, or nothing of its name.

  Args:
    folder: it.
    prefix: as for `fresh_folder`.
  """
  aside = tempfile.mkdtemp(prefix=prefix, dir=folder.parent)
  os.replace(folder, aside)
  shutil.rmtree(aside, ignore_errors=True)
