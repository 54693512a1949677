"""Values of options: exactly what was written, or one line that says what is right."""

import argparse
import math
import pathlib
import re
from collections.abc import Callable

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import hub, places

_LARGEST = 2**63 - 1  # of any count: more is a slip, and no array can have it


def path(text: str) -> pathlib.Path:
  """A path on a disk, see `places.path`."""
  return _path(text, "disk")


def place(text: str) -> pathlib.Path:
  """A path on a disk or in a bucket."""
  return _path(text, "disk", "gs")


def checkpoint(text: str) -> pathlib.Path | str:
  """A path on a disk or in a bucket, or hf://ORG/NAME[@REVISION], as it was given."""
  return _path(text, "disk", "gs", "hf")


def destination(text: str) -> pathlib.Path | str:
  """A path on a disk, or hf://ORG/NAME."""
  return _path(text, "disk", "hf")


def corpus(text: str) -> pathlib.Path:
  """A directory on a disk for a corpus to be prepared in."""
  if places.is_remote(text):
    copy = f"gcloud storage rsync -r DIR {text}"
    right = f"must be a directory on a disk; prepare it there, then copy it: {copy}"
    raise _wrong(text, right)
  return _path(text, "disk")


def _path(text: str, *stores: str) -> pathlib.Path | str:
  if not text:
    raise _wrong(text, "must be a path, is empty")
  try:
    if "hf" in stores and hub.is_url(text):
      hub.address(text)
      return text
    return places.path(text, stores=stores)
  except UserError as error:
    raise argparse.ArgumentTypeError(f"={error}") from None


def source(text: str) -> str:
  """A path, or - for standard input."""
  return text if text == "-" else str(path(text))


def whole(least: int = -_LARGEST, most: int = _LARGEST) -> Callable[[str], int]:
  """Reads whole numbers in a range, in plain digits."""

  def read(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):
      raise _wrong(text, "must be a whole number")
    value = int(text) if len(text) < 100 else _LARGEST + 1
    if value < least:
      raise _wrong(text, f"must be at least {least}")
    if value > most:
      raise _wrong(text, f"must be at most {most}")
    return value

  return read


def seed(text: str) -> int:
  """Reads a seed: 0 to 2^32 - 1, each with a key of its own."""
  return whole(0, 2**32 - 1)(text)


def number(above: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
  """Reads finite numbers in a range, in plain digits."""

  def read(text: str) -> float:
    plain = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text)
    value = float(text) if plain else math.nan
    if not math.isfinite(value):
      raise _wrong(text, "must be a finite number")
    if not value > above:
      raise _wrong(text, f"must be above {above:g}")
    if value > most:
      raise _wrong(text, f"must be at most {most:g}")
    return value

  return read


def _wrong(text: str, right: str) -> argparse.ArgumentTypeError:
  """What the parser makes `--option=value: must be ...` of."""
  shown = text if len(text) <= 80 else f"{text[:80]}..."
  return argparse.ArgumentTypeError(f"={shown}: {right}")
