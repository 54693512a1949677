"""Documents from files: which files a path names, and their formats."""

import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import paths
from set_diffusion_jax.inputs.names import shown
from set_diffusion_jax.inputs.records import parse_record
from set_diffusion_jax.inputs.text import Found, read_lines, utf8
from set_diffusion_jax.storage import hub_datasets

# What a value of JSON is called, in messages.
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
_KINDS |= {list: "a list", dict: "an object"}


class Files:
  """The documents of the files that a path or a pattern names.

  Args:
    config: says their format.
    field: of the configuration, that names them.
    pattern: a path, or a pattern such as dir/*.txt. What exists by that very name is
      meant, be there brackets, stars or question marks in it.
    fetched: the files that an address of the hub names, with their origins.

  Raises:
    UserError: there is none, or it is no file.
  """

  def __init__(
    self,
    config: DataConfig,
    field: str,
    pattern: str,
    fetched: Sequence[hub_datasets.Fetched] = (),
  ):
    self._config = config
    self._where = f"{field} = {json.dumps(pattern, ensure_ascii=False)}"
    self._origins = dict(fetched)
    self.paths = list(self._origins) or _matching(self._where, pattern)
    self._sizes: dict[pathlib.Path, tuple] = {}
    self._found: dict[pathlib.Path, Found] = {}

  def documents(self) -> Iterator[str]:
    """The documents in order, however often they are asked for.

    Raises:
      UserError: a file cannot be read, is not in its format, or has changed since it
        was first read; or, after the last document, all of them are blank.
    """
    every = (document for path in self.paths for document in self._of(path))
    return some_text(self._where, every)

  def _of(self, path: pathlib.Path) -> Iterator[str]:
    where = f"{self._where}: {shown(self._origins.get(path, str(path)), 300)}"
    self._check_same(path, where)
    found = Found()
    # JSON has its own white space, and what stands in its strings is kept.
    counted = None if self._config.source == "jsonl" else found
    lines = read_lines(path, where, counted)
    if self._config.source == "text":
      yield "".join(lines)
    elif self._config.source == "lines":
      yield from lines
    else:
      for number, line in enumerate(lines, 1):
        if line.strip():
          record = parse_record(line, f"{where}, line {number}")
          yield from record_texts(self._config, record, f"{where}, line {number}")
    self._check_same(path, where)
    self._found[path] = found

  def _check_same(self, path: pathlib.Path, where: str) -> None:
    try:
      stat = path.stat()
    except OSError as error:
      raise UserError(f"{where}: {error.strerror}") from None
    now = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if self._sizes.setdefault(path, now) != now:
      raise UserError(f"{where}: has changed while it was read; start again")

  def notes(self) -> list[str]:
    """A line that says what reading has changed, if it has changed anything."""
    line = functools.reduce(Found.__add__, self._found.values(), Found()).line()
    return [f"{self._where}: {line}"] if line else []

  def facts(self) -> list[dict]:
    """The files, with their sizes in bytes and what reading them has changed."""
    return [
      {
        "file": self._origins.get(path, str(path)),
        "bytes": path.stat().st_size,
        **self._found.get(path, Found()).counts(),
      }
      for path in self.paths
    ]


def _matching(where: str, pattern: str) -> list[pathlib.Path]:
  """The files that a path or a pattern names, sorted by name."""
  path = pathlib.Path(paths.expanded(pattern))
  try:
    if path.exists() and not path.is_file():
      kind = "a directory" if path.is_dir() else "no regular file"
      raise UserError(f"{where}: is {kind}; give a file or a pattern such as dir/*.txt")
    found = paths.matching(str(path))
  except OSError as error:
    raise UserError(f"{where}: {error.strerror}") from None
  if not found:
    raise UserError(f"{where}: no such file; give a path or a pattern")
  return found


def some_text(where: str, documents: Iterable[str]) -> Iterator[str]:
  """The documents; UserError after the last one if all are blank."""
  found = False
  for document in documents:
    found = found or bool(document.strip())
    yield document
  if not found:
    raise UserError(f"{where}: holds no text")


def record_texts(config: DataConfig, record: dict, where: str) -> Iterator[str]:
  """The text of a record; with cut=prompt its prompt first.

  It is kept as it is: what stands inside a record has been put there.
  """
  if config.cut == "prompt":
    yield _text_of(record, "prompt_field", config.prompt_field, where)
  yield _text_of(record, "field", config.field, where)


def _text_of(record: dict, name: str, field: str, where: str) -> str:
  """The text of a record's fields, joined by spaces."""
  values = []
  for key in field.split(","):
    if key not in record:
      known = shown(", ".join(map(str, record)), 300) or "no field at all"
      raise UserError(f'data.{name} = "{field}": {where} has no such text, but {known}')
    value = record[key]
    try:
      value = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
      raise UserError(f"{where}: is not UTF-8 at byte {error.start}") from None
    if not isinstance(value, str):
      found = f"{shown(key)} is {_KINDS.get(type(value), type(value).__name__)}"
      raise UserError(f'data.{name} = "{field}": {where}: {found}; must be a string')
    values.append(value)
  text = " ".join(values)
  utf8(text, where)
  return text
