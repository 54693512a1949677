"""Texts that commands are given: as arguments, in a file, or on standard input."""

import io
import os
import pathlib
import sys
from collections.abc import Sequence

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.records import parse_record
from set_diffusion_jax.inputs.text import (
  Found,
  argument_text,
  read_lines,
  utf8,
)


def given_texts(texts: Sequence[str] | None, option: str) -> list[str]:
  """Texts as arguments; UserError for one that is not UTF-8."""
  return [argument_text(text, option) for text in texts or ()]


def read_texts(name: str | None, field: str) -> list[str]:
  """Texts of a file, or of standard input for the name `-`; blank lines are left out.

  Where the first line that is not blank starts with "{", or the file's name ends in
  .jsonl, each line is a JSON object; otherwise each line is a text. What reading has
  changed is said on standard error.

  Args:
    name: of the file; None: no texts.
    field: of a JSON object, whose string is the text.

  Raises:
    UserError: it cannot be read, holds no text, or a line is no object with that field.
  """
  if name is None:
    return []
  where, found = f"--input={name}", Found()
  source = _standard_input() if name == "-" else pathlib.Path(os.path.expanduser(name))
  lines = list(enumerate(read_lines(source, where, found), 1))
  lines = [(number, line) for number, line in lines if line.strip()]
  if not lines:
    raise UserError(f"{where}: holds no text")
  named = name.removesuffix(".gz").endswith(".jsonl")
  if named or lines[0][1].lstrip().startswith("{"):
    return [_of_record(line, field, f"{where}, line {at}") for at, line in lines]
  if changed := found.line():
    print(f"{where}: {changed}", file=sys.stderr)
  return [line.removesuffix("\n") for _, line in lines]


def _of_record(line: str, field: str, where: str) -> str:
  record = parse_record(line, where)
  if not isinstance(record.get(field), str):
    raise UserError(f'{where}: must have "{field}", a string')
  utf8(record[field], where)
  return record[field]


def _standard_input():
  """Its bytes; where Python was given text in its place, that text's."""
  if sys.stdin is None:
    raise UserError("--input=-: there is no standard input")
  if hasattr(sys.stdin, "buffer"):
    return sys.stdin.buffer
  return io.BytesIO(sys.stdin.read().encode(errors="surrogatepass"))
