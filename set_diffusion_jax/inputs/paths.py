"""Paths as users give them, and files that are read whole.

A name is bytes, and the same bytes stand on disk whatever they are. Libraries that take
some of them for a pattern or for an address get the folder under another name
(`Opened`).
"""

import errno
import glob
import os
import pathlib
import re
import stat

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.text import STREAM_BYTES

LONGEST_NAME, _PATH = 255, 4095  # bytes that Linux allows, of a name and of a path
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What no library that is used here reads as anything but itself.
_PLAIN = re.compile(r"[\w./+=,~ -]*")
_DESCRIPTOR = re.compile(rf"/(?:dev|proc/self|proc/{os.getpid()})/fd/(\d+)")


def given(text: str | os.PathLike) -> pathlib.Path:
  """The path that a user means: `~` and `~user` are expanded, as a shell does.

  Raises:
    UserError: it is empty, a URL, of an unknown user, or no path can be so long.
  """
  text = os.fspath(text)
  if not text:
    raise UserError("must be a path, is empty")
  if "\0" in text:
    raise UserError(f"{text!r}: a path cannot have a zero byte")
  if is_url(text):
    raise UserError(f"{text}: URLs are not supported; give a path")
  path = expanded(text)
  if path.startswith("~") and not os.path.lexists(path.split("/")[0]):
    name = path.split("/")[0]
    raise UserError(f"{text}: there is no user {name[1:]!r}; ./{text} is here")
  longest = max(len(os.fsencode(part)) for part in path.split("/"))
  if longest > LONGEST_NAME:
    right = f"must be at most {LONGEST_NAME}"
    raise UserError(f"{text}: has a name of {longest} bytes, {right}")
  size = len(os.fsencode(os.path.abspath(path)))
  if size > _PATH:
    raise UserError(f"{text}: has {size} bytes, must be at most {_PATH}")
  return pathlib.Path(path)


def is_url(text: str) -> bool:
  """Whether a text is meant as an address, such as gs://bucket/file, and no path."""
  return _URL.match(text) is not None


def expanded(text: str) -> str:
  """A path with `~` or `~user` at its start replaced, where there is that user."""
  return os.path.expanduser(text)


def matching(pattern: str) -> list[pathlib.Path]:
  """The files that a path or a pattern names, sorted by name.

  As far as a path is there just as it is written, it is no pattern.
  """
  parts = pattern.split("/")
  there = 0
  while there < len(parts) and os.path.lexists("/".join(parts[: there + 1]) or "/"):
    there += 1
  whole = [*map(glob.escape, parts[:there]), *parts[there:]]
  names = sorted(glob.glob("/".join(whole), recursive=True))
  return [path for path in map(pathlib.Path, names) if path.is_file()]


class Opened:
  """A folder under a name that every library takes for what it is.

  As a context, or until it is garbage; the name holds in this process only.

  Attributes:
    path: the folder's own absolute path, or another name of the same folder.

  Raises:
    OSError: the folder cannot be opened.
    UserError: its name needs another one, which this system does not have.
  """

  def __init__(self, folder: pathlib.Path):
    self._descriptor = None
    self.path = folder.absolute()
    if _PLAIN.fullmatch(str(self.path)):
      return
    self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    self.path = pathlib.Path(f"/proc/self/fd/{self._descriptor}")
    if not self.path.is_dir():
      raise UserError(f"{folder}: must have a name of letters, digits and ._-+=,~")

  def close(self) -> None:
    """Gives the other name up."""
    if self._descriptor is not None:
      os.close(self._descriptor)
      self._descriptor = None

  def __enter__(self) -> "Opened":
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def __del__(self):
    self.close()


def content(path: pathlib.Path, most: int = STREAM_BYTES) -> bytes:
  """All bytes of a file that the user names, which may be a pipe or a device.

  Raises:
    OSError: it cannot be read, or is no file and holds more than `most` bytes.
  """
  with path.open("rb") as file:
    found = file.read() if path.is_file() else file.read(most + 1)
  if len(found) > most and not path.is_file():
    raise OSError(errno.EFBIG, f"holds more than {most:,} bytes, but is no file")
  return found


def file_content(path: pathlib.Path) -> bytes:
  """All bytes of a file that a directory holds, where pipes and devices are refused.

  Raises:
    OSError: it cannot be read, or is no file.
  """
  if is_special(path):
    raise OSError(errno.EINVAL, "is a pipe or a device, must be a file")
  return path.read_bytes()


def is_special(path: pathlib.Path) -> bool:
  """Whether a path is there and neither a file nor a directory."""
  try:
    mode = path.stat().st_mode  # once: it may be gone the next time
  except OSError as error:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP):
      raise
    return False
  except ValueError:  # no name of a file
    return False
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def descriptor(path: pathlib.Path) -> int | None:
  """The number of the open file that a path such as /dev/stdout stands for, or None."""
  name = os.path.abspath(path)
  for _ in range(40):  # links, as many as the system follows
    if match := _DESCRIPTOR.fullmatch(name):
      return int(match[1])
    if not os.path.islink(name):
      return None
    name = os.path.abspath(os.path.join(os.path.dirname(name), os.readlink(name)))
  return None
