"""Results of single rows on disk, so that a long evaluation can be interrupted."""

import hashlib
import json
import os
import pathlib

from set_diffusion_jax.errors import DiskError, UserError
from set_diffusion_jax.inputs.paths import LONGEST_NAME, file_content

Row = tuple[float, ...]


def _beside(output: pathlib.Path) -> pathlib.Path:
  """OUTPUT.partial; where that name would be too long, another one of this output."""
  name = f"{output.name}.partial"
  if len(os.fsencode(name)) > LONGEST_NAME:
    name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()}.partial"
  return output.with_name(name)


class PartialResults:
  """Rows that are done, in `OUTPUT.partial` beside the output file.

  The file's first line says what is evaluated; it is refused where that differs. Draws
  are keyed by row, so the rows may be done in any batch size and on any devices.

  Attributes:
    rows: row number -> its figures.
    found: how many rows the file held when it was opened.
  """

  def __init__(self, output: pathlib.Path, what: dict, total: int, figures: int):
    """Opens the file, or makes it.

    Args:
      output: of the whole evaluation.
      what: is evaluated.
      total: how many rows there are.
      figures: of a row.

    Raises:
      UserError: the file cannot be written, is another evaluation's, or is no such file
        at all.
    """
    self._total, self._figures = total, figures
    self.path = _beside(output)
    self.rows: dict[int, Row] = {}
    kept = 0
    header = json.dumps(what, sort_keys=True)
    try:
      if os.path.lexists(self.path):
        kept = self._read(header)
      if kept:
        os.truncate(self.path, kept)
      else:
        self.path.write_text(header + "\n")
    except OSError as error:
      raise UserError(f"--output={output}: {error.strerror}") from None
    self.found = len(self.rows)

  def _read(self, header: str) -> int:
    """Takes over the rows of the file; returns the length of its whole lines."""
    text = file_content(self.path).decode("ascii", errors="replace")
    if header.startswith(text):  # the first line was not finished
      return 0
    lines = text.splitlines(keepends=True)
    if lines[0] != f"{header}\n":
      raise UserError(
        f"{self.path}: holds another evaluation; delete it, or give another --output"
      )
    kept = len(lines[0])
    for line in lines[1:]:
      row = self._row(line)
      if row is None:
        break
      self.rows[row[0]] = row[1]
      kept += len(line)
    return kept

  def _row(self, line: str) -> tuple[int, Row] | None:
    """The row of a line; None if it is torn or damaged."""
    try:
      row, *figures = json.loads(line) if line.endswith("\n") else [None]
    except (ValueError, TypeError, RecursionError):
      return None
    known = type(row) is int and 0 <= row < self._total
    numbers = all(type(x) in (int, float) for x in figures)
    if not (known and numbers and len(figures) == self._figures):
      return None
    return row, tuple(figures)

  def add(self, rows: dict[int, Row]) -> None:
    """Remembers rows, on disk when it returns; DiskError where that fails."""
    self.rows.update(rows)
    lines = "".join(json.dumps([row, *rows[row]]) + "\n" for row in rows)
    try:
      with self.path.open("a") as file:
        file.write(lines)
    except OSError as error:
      raise DiskError(f"{self.path}: {error.strerror}") from None

  def finish(self) -> None:
    """The evaluation is complete: removes the file."""
    self.path.unlink()
