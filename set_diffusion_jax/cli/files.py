"""What commands read and write besides checkpoints."""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import stat
import sys
from collections.abc import Iterable

from set_diffusion_jax.errors import DiskError, UserError
from set_diffusion_jax.inputs import paths, terminal
from set_diffusion_jax.storage import disk


def write(path: pathlib.Path | None, figures: dict, option: str = "--output") -> None:
  """Writes a JSON file, whole or not at all; nothing without a path."""
  write_text(path, json.dumps(figures, indent=2, allow_nan=False) + "\n", option)


def write_text(
  path: pathlib.Path | None, text: str | bytes, option: str = "--output"
) -> None:
  """Writes a file, whole or not at all; nothing without a path."""
  if path is None:
    return
  try:
    disk.write_whole(path, text)
  except OSError as error:
    raise DiskError(f"{option}={path}: {error.strerror}") from None


def show(text: str, on_terminal: str | None = None) -> None:
  """Prints for the user; a terminal gets no control characters of the text.

  What a command writes to files must not depend on who reads its standard output: where
  the reader has left, as `head` does, nothing more is shown, and the command goes on.

  Args:
    text: what is printed.
    on_terminal: what a terminal gets as it is; None: the text, its controls escaped.
  """
  if sys.stdout.isatty():
    text = terminal.shown(text) if on_terminal is None else on_terminal
  try:
    print(text, flush=True)
  except BrokenPipeError:
    drop_output()
  except OSError as error:
    raise UserError(f"standard output: {error.strerror}") from None


def drop_output() -> None:
  """Standard output goes nowhere from here on."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_output(
  path: pathlib.Path | None,
  option: str = "--output",
  inputs: Iterable[str | os.PathLike | None] = (),
) -> None:
  """UserError, before any work is done, for a file that cannot be written.

  Args:
    path: of the file; None: nothing is written.
    option: that names it.
    inputs: files and checkpoints that the command reads, and must not overwrite; a
      pattern stands for all files that it names.
  """
  if path is None:
    return
  where = f"{option}={path}"
  try:
    if _is_open_or_special(path):
      return
  except OSError as error:
    raise UserError(f"{where}: {error.strerror}") from None
  if path.is_dir() or not path.name:
    raise UserError(f"{where}: must be a file, is a directory")
  target = pathlib.Path(os.path.realpath(path))
  if not os.access(target.parent, os.W_OK):
    raise UserError(f"{where}: its directory is missing or not writable")
  given = [os.fspath(name) for name in inputs if name is not None]
  for name in [*given, *itertools.chain.from_iterable(map(paths.matching, given))]:
    if _is_part(target, pathlib.Path(os.path.realpath(name))):
      raise UserError(f"{where}: is read by this command; give another file")


def check_folder(path: pathlib.Path, option: str) -> None:
  """UserError for a folder that is not there and cannot be made, or is not writable."""
  whole = path.absolute()
  there = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
  if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
    raise UserError(f"{option}={path}: {there} is no directory that can be written")


def is_file(output: pathlib.Path) -> bool:
  """Whether an output is, or becomes, a file: it can be read again later on."""
  return not paths.is_special(output) and paths.descriptor(output) is None


def _is_open_or_special(path: pathlib.Path) -> bool:
  """Whether a path is an open file, a device or a pipe, which can be written.

  Raises:
    OSError: it cannot be, as /dev/full, a socket, or a link that leads to itself.
  """
  number = paths.descriptor(path)
  if number is not None:
    os.write(number, b"")
    return True
  with contextlib.suppress(FileNotFoundError):
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode):
      number = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
      try:
        os.write(number, b"")
      finally:
        os.close(number)
    elif stat.S_ISSOCK(mode):
      raise OSError(errno.ENXIO, "must be a file, is a socket")
  return paths.is_special(path)


# What a checkpoint's directory holds; other files may be written there.
_PARTS = ("config.json", "metrics.jsonl", "generation_config.json", "manifest.json")
_PARTS += ("goodput.jsonl",)
_PARTS += ("backbone_config.json", "special_tokens_map.json", "added_tokens.json")
_PARTS += ("merges.txt", "chat_template.jinja")
_ENDS = (".index.json", ".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".model")


def _is_part(target: pathlib.Path, source: pathlib.Path) -> bool:
  """Whether a file is an input itself, or a part of one that is a directory."""
  if target == source:
    return True
  if not target.is_relative_to(source):
    return False
  inside = target.relative_to(source)
  known = inside.name in _PARTS or inside.name.startswith(("tokenizer", "vocab"))
  folders = {"checkpoints", "state", "meta", "tensorboard"} & set(inside.parts[:-1])
  return known or inside.name.endswith(_ENDS) or bool(folders)
