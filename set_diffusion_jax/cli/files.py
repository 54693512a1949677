"""What commands read and write besides checkpoints."""

import json
import os
import pathlib

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
