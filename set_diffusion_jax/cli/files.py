"""What commands read and write besides checkpoints."""

import json
import os
import pathlib
import sys

from set_diffusion_jax import workdir
from set_diffusion_jax.errors import UserError


def write(path: pathlib.Path | None, figures: dict, option: str = "--output") -> None:
  """Writes a JSON file, whole or not at all; nothing without a path."""
  write_text(path, json.dumps(figures, indent=2, allow_nan=False) + "\n", option)


def write_text(path: pathlib.Path | None, text: str, option: str = "--output") -> None:
  """Writes a file, whole or not at all; nothing without a path."""
  if path is None:
    return
  try:
    workdir.write_text(path, text)
  except OSError as error:
    raise UserError(f"{option}={path}: {error.strerror}") from None


def check_output(path: pathlib.Path | None, option: str = "--output") -> None:
  """UserError, before any work is done, for a file that cannot be written."""
  if path is None:
    return
  if path.is_dir() or not path.name:
    raise UserError(f"{option}={path}: must be a file, is a directory")
  if not os.access(path.parent, os.W_OK):
    raise UserError(f"{option}={path}: its directory is missing or not writable")


def read_texts(name: str | None, field: str) -> list[str]:
  """Texts of a file or of standard input: one a line, or a field of JSON lines."""
  if name is None:
    return []
  try:
    text = sys.stdin.read() if name == "-" else pathlib.Path(name).read_text()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "is not UTF-8"
    raise UserError(f"--input={name}: {reason}") from None
  lines = [line for line in text.splitlines() if line.strip()]
  if not lines:
    raise UserError(f"--input={name}: holds no text")
  if not lines[0].lstrip().startswith("{"):
    return lines
  found = []
  for number, line in enumerate(lines, 1):
    try:
      value = json.loads(line)[field]
    except (ValueError, KeyError, TypeError):
      value = None
    if not isinstance(value, str):
      raise UserError(f'--input={name}, line {number}: must be JSON with "{field}"')
    found.append(value)
  return found
