"""Names that a checkpoint gives: they name a known file inside it, and nothing else."""

import os
import pathlib
import stat
from collections.abc import Collection, Iterator, Mapping

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.text import check_pointer, utf8

LONGEST = 255  # bytes of a file's name, as file systems have it
LARGEST_STEP = 2**63 - 1
_FOLDER_DEPTH = 32  # of folders in a step
# Names that Windows gives to devices, whatever their extension.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
_DEVICES |= {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}


def shown(text: object, length: int = 120) -> str:
  """A text from outside for a message: in one line, control characters escaped, cut."""
  plain = text if isinstance(text, str) else f"a {type(text).__name__}"
  cut = plain[:length] + ("..." if len(plain) > length else "")
  if cut.isprintable():
    return cut
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def bare_name(name: object, where: str) -> str:
  """The name itself, if it names a file in one folder, on any system.

  Raises:
    UserError: it is no text, is empty or too long, is a path, a drive or a device, or
      ends in a way that Windows drops.
  """
  reason = "must be a text"
  if isinstance(name, str):
    size = len(name.encode("utf-8", "surrogatepass"))
    reason = f"must be 1 to {LONGEST} bytes long"
    if 0 < size <= LONGEST:
      reason = _why_not_bare(name)
  if reason is not None:
    raise UserError(f"{where}: file name '{shown(name)}': {reason}")
  return name


def _why_not_bare(name: str) -> str | None:
  if set(name) & set('/\\:*?"<>|') or not name.isprintable() or name in (".", ".."):
    return "must be a file in the same directory, without path or control characters"
  if name[-1] in ". " or name[0] == " ":
    return "must not begin or end with a space or end with a point"
  if name.split(".")[0].rstrip(" ").casefold() in _DEVICES:
    return "is a device on some systems"
  return None


def named_texts(files: object, where: str, allowed: Collection[str]) -> dict[str, str]:
  """Texts by file name, as a checkpoint stores them.

  Args:
    files: what it stores; None: nothing.
    where: names the field in messages.
    allowed: the names that a checkpoint may have, in their spelling.

  Raises:
    UserError: no mapping, a name that is not allowed, or a content that is no text.
  """
  if files is None:
    return {}
  if not isinstance(files, Mapping):
    raise UserError(f"{where} is {shown(files)}; must be texts by file name")
  for name, text in files.items():
    bare_name(name, where)
    if name not in allowed:
      known = ", ".join(sorted(allowed))
      raise UserError(f"{where}: file name '{shown(name)}': must be one of {known}")
    if not isinstance(text, str):
      raise UserError(f"{where}: {name} is {shown(text)}; must be a text")
    utf8(text, f"{where}: {name}")
  return dict(files)


def step_number(name: str) -> int | None:
  """The step that a folder's name stands for; None: it is not the name of a step.

  That is the number in plain digits, without zeros before it.
  """
  if not (name.isascii() and name.isdecimal() and len(name) < 20):
    return None
  number = int(name)
  return number if str(number) == name and number <= LARGEST_STEP else None


def part(path: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
  """The file at `path`, if it may be read as a part of the checkpoint in `root`.

  A symbolic link is followed inside of `root` only, or from a snapshot of a Hugging
  Face cache to the blobs of the same model.

  Raises:
    UserError: there is no such file, a link leaves the checkpoint, it is no regular
      file, or a Git LFS pointer stands in its place.
  """
  check_link(path, root)
  try:
    if not stat.S_ISREG(path.stat().st_mode):
      raise UserError(f"{path}: must be a file")
    with path.open("rb") as file:
      check_pointer(file.read(64), str(path))
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None
  except ValueError:
    raise UserError(f"{shown(str(path))}: is no name of a file") from None
  return path


def check_link(path: pathlib.Path, root: pathlib.Path) -> None:
  """UserError if a path inside of `root` leads out of it by symbolic links."""
  home, target = os.path.realpath(root), os.path.realpath(path)
  if is_inside(target, home):
    return
  folder = pathlib.PurePath(home)
  # models--X/snapshots/REVISION/file -> models--X/blobs/HASH
  for model in (folder, *folder.parents):
    if model.name.startswith("models--"):
      inside = folder.relative_to(model).parts
      snapshot = len(inside) > 1 and inside[0] == "snapshots"
      if snapshot and is_inside(target, str(model / "blobs")):
        return
      break
  raise UserError(
    f"{path}: is a symbolic link out of the checkpoint, to {shown(target)}; put the "
    "file itself in its place"
  )


def is_inside(path: str, folder: str) -> bool:
  """Whether a resolved path is a resolved folder, or lies below it."""
  return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def check_tree(root: pathlib.Path) -> int:
  """Looks at every file below a folder, as `part` does at one.

  Returns:
    The bytes of all of them.

  Raises:
    UserError: as `part`, or folders are nested too deeply.
  """
  size = 0
  for path in _files(root, _FOLDER_DEPTH):
    if path.is_symlink():
      check_link(path, root)
    if path.is_dir():  # by a link: its files are looked at where they are
      continue
    status = path.stat() if path.exists() else None
    if status is None or not stat.S_ISREG(status.st_mode):
      raise UserError(f"{path}: must be a file or a folder")
    if status.st_size < 1024:  # as large as a pointer at most
      part(path, root)
    size += status.st_size
  return size


def _files(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  """What is no folder below a folder; links to folders are what they are."""
  if depth == 0:
    raise UserError(f"{folder}: has more than {_FOLDER_DEPTH} folders in each other")
  try:
    entries = list(os.scandir(folder))
  except OSError as error:
    raise UserError(f"{folder}: {error.strerror}") from None
  for entry in entries:
    if entry.is_dir(follow_symlinks=False):
      yield from _files(pathlib.Path(entry.path), depth - 1)
    else:
      yield pathlib.Path(entry.path)
