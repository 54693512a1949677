"""The files of a checkpoint's tokenizer: those of a directory, and as it stores them.

A checkpoint stores texts by name. A SentencePiece model is bytes: it is stored in
base64, and is a file of its own in a directory.
"""

import base64
import binascii
import os
import pathlib
from collections.abc import Mapping

from set_diffusion_jax.data import IdTokenizer, JsonTokenizer, PieceTokenizer
from set_diffusion_jax.data.pieces import FILE, STORED
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import names
from set_diffusion_jax.inputs.pieces import check_pieces


def read_pieces(folder: pathlib.Path) -> dict[str, str]:
  """A directory's SentencePiece model, as a checkpoint stores it; {} without one.

  UserError if it is damaged.
  """
  path = folder / FILE
  if not os.path.lexists(path):
    return {}
  try:
    model = names.part(path, folder).read_bytes()
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None
  check_pieces(model, str(path))
  return {STORED: base64.b64encode(model).decode()}


def kind(files: Mapping[str, str]) -> str:
  """The name of the tokenizer that stored files make; a tokenizer.json comes first."""
  names = {"tokenizer.json": JsonTokenizer.name, STORED: PieceTokenizer.name}
  return next((names[name] for name in names if name in files), IdTokenizer.name)


def write_file(folder: pathlib.Path, name: str, text: str) -> None:
  """Writes a stored file to a directory; UserError if it is damaged."""
  if name != STORED:
    (folder / name).write_text(text, encoding="utf-8")
    return
  try:
    model = base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError):
    raise UserError(f"checkpoint: its {FILE} is damaged") from None
  check_pieces(model, f"checkpoint: its {FILE}")
  (folder / FILE).write_bytes(model)
