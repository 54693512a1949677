"""Where text comes from: documents for training and documents held out.

Documents are read one at a time, again from the start whenever they are asked for, so
that a corpus need not fit into memory. With cut=prompt a record is two documents, its
prompt and then its target.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import json
import pathlib
import pydoc_data.topics
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.config.checks import check_text
from set_diffusion_jax.data.detokenize import detokenizer
from set_diffusion_jax.data.prepared import Prepared
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import matching

SIDES = ("train", "validation")


class Documents(NamedTuple):
  """Texts; no text is in both."""

  train: list[str]
  validation: list[str]


def read(config: DataConfig) -> Documents:
  """The documents that a configuration names, both sides."""
  source = Source(config)
  return Documents(*(list(finished(config, source.documents(side))) for side in SIDES))


def read_validation(config: DataConfig) -> list[str]:
  """The held-out documents; training text is read only if they are cut off it."""
  return list(finished(config, Source(config).documents("validation")))


def finished(config: DataConfig, documents: Iterable[str]) -> Iterator[str]:
  """Documents as they are tokenized: detokenized, prompts and targets prefixed."""
  if _is_prepared(config):
    yield from documents
    return
  clean = detokenizer(config.detokenizer)
  prefixes = itertools.cycle((config.prompt_prefix, config.target_prefix))
  for prefix, document in zip(prefixes, documents, strict=False):
    yield prefix + clean(document)


def _is_prepared(config: DataConfig) -> bool:
  return config.source == "prepared"


class Source:
  """The documents that a configuration names, as they are stored.

  Attributes:
    config: the configuration.
    prepared: what data.directory holds for data.source=prepared.
    prompts: whether documents are prompts and targets in turn.
  """

  def __init__(self, config: DataConfig):
    self.config = config
    check_text(config)
    self.prepared = Prepared.open(config)
    self.prompts = config.cut == "prompt"

  def documents(self, side: str) -> Iterator[str]:
    """The documents of "train" or "validation", in order.

    Raises:
      UserError: they cannot be read, or hold no text.
    """
    config = self.config
    if config.source == "embedded":
      yield from embedded(config.validation_fraction)[SIDES.index(side)]
    elif config.source == "prepared":
      yield from self.prepared.texts(side)
    elif config.source == "tfds":
      yield from TfdsTexts(config, side)
    elif side == "validation" and config.validation_path is not None:
      yield from _files(config, "data.validation_path", config.validation_path)
    elif config.train_path is None:
      raise UserError("data.train_path = null: must name the text to train on")
    elif config.validation_path is not None:
      yield from self._whole()
    else:
      yield from self._part(side)

  def _whole(self) -> Iterator[str]:
    return _files(self.config, "data.train_path", self.config.train_path)

  def _part(self, side: str) -> Iterator[str]:
    """What is left of the training files, or what is held out of them."""
    if self._by_characters:
      left = round(self._totals[1] * (1 - self.config.validation_fraction))
      yield from (_before if side == "train" else _after)(self._whole(), left)
    else:
      documents, held_out = self._totals[0], self._held_out
      cut = documents - held_out
      span = (0, cut) if side == "train" else (cut, documents)
      yield from itertools.islice(self._whole(), *span)

  @property
  def _by_characters(self) -> bool:
    return self.config.validation_documents is None and not self.prompts

  @property
  def _held_out(self) -> int:
    """How many of the documents of the training files are held out."""
    each = 2 if self.prompts else 1
    records, count = self._totals[0] // each, self.config.validation_documents
    if count is None:
      count = max(1, round(records * self.config.validation_fraction))
    if count >= records:
      raise UserError(
        f"data.validation_documents = {count}: must leave some to train on, "
        f"data.train_path has {records}"
      )
    return count * each

  @functools.cached_property
  def _totals(self) -> tuple[int, int]:
    """Documents and characters of the training files."""
    documents = characters = 0
    for document in self._whole():
      documents += 1
      characters += len(document)
    return documents, characters

  def count(self, side: str) -> int:
    """How many documents a side has; reads files from end to end."""
    config = self.config
    if config.source == "tfds":
      return len(TfdsTexts(config, side)) * (2 if self.prompts else 1)
    if self.prepared:
      return len(self.prepared.texts(side))
    return sum(1 for _ in self.documents(side))

  def files(self) -> list[dict]:
    """The files that documents come from, with their sizes in bytes."""
    paths = [self.config.train_path, self.config.validation_path]
    if self.config.source in ("text", "lines", "jsonl"):
      found = [path for pattern in paths if pattern for path in matching(pattern)]
      return [{"file": str(path), "bytes": path.stat().st_size} for path in found]
    return []


def embedded(validation_fraction: float) -> Documents:
  """The manual pages that come with Python's own `help()`: English about Python.

  Paragraphs that occur again, in the same topic or another, are dropped, so that none
  is on both sides of the split. Whole topics are held out, picked by a hash of their
  names, until they hold the wanted fraction of the text.
  """
  seen = set()
  topics = {}
  for name, text in sorted(pydoc_data.topics.topics.items()):
    kept = []
    for paragraph in text.split("\n\n"):
      if paragraph.strip() and paragraph.strip() not in seen:
        seen.add(paragraph.strip())
        kept.append(paragraph.strip("\n"))
    if kept:
      topics[name] = "\n\n".join(kept)
  by_hash = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
  wanted = validation_fraction * sum(map(len, topics.values()))
  held_out = []
  while by_hash and sum(len(topics[name]) for name in held_out) < wanted:
    held_out.append(by_hash.pop(0))
  return Documents(
    [topics[name] for name in sorted(by_hash)],
    [topics[name] for name in sorted(held_out)],
  )


def _files(config: DataConfig, field: str, pattern: str) -> Iterator[str]:
  """The documents of the files that a path or a pattern names."""
  where = f'{field} = "{pattern}"'
  files = matching(pattern)
  if not files:
    raise UserError(f"{where}: no such file; give a path or a pattern")
  yield from _some_text(where, _all_documents(config, where, files))


def _all_documents(config: DataConfig, where: str, files) -> Iterator[str]:
  for path in files:
    if config.source == "text":
      yield "".join(_lines(where, path))
    elif config.source == "lines":
      for line in _lines(where, path):
        yield from io.StringIO(line, newline="")
    else:
      yield from _records(config, f"{where}: {path}", _lines(where, path))


def _some_text(where: str, documents: Iterable[str]) -> Iterator[str]:
  """The documents; UserError after the last one if all are blank."""
  found = False
  for document in documents:
    found = found or bool(document.strip())
    yield document
  if not found:
    raise UserError(f"{where}: holds no text")


def _lines(where: str, path: pathlib.Path) -> Iterator[str]:
  """The lines of a UTF-8 file with their ends, which are newlines only."""
  place = 0
  try:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
      for line in file:
        yield line.decode()
        place += len(line)
  except UnicodeDecodeError as error:
    at = place + error.start
    raise UserError(f"{where}: {path} is not UTF-8 at byte {at}") from None
  except (OSError, EOFError, zlib.error) as error:
    reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{where}: {path}: {reason}") from None


def _records(config: DataConfig, where: str, lines: Iterable[str]) -> Iterator[str]:
  """The texts of each JSON object of a file that has one a line."""
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f"{where}, line {number}: not JSON: {error.msg}") from None
    if not isinstance(record, dict):
      raise UserError(f"{where}, line {number}: must be a JSON object")
    yield from _texts(config, record, f"{where}, line {number}")


def _texts(config: DataConfig, record: dict, where: str) -> Iterator[str]:
  """The text of a record; with cut=prompt its prompt first."""
  if config.cut == "prompt":
    yield _text_of(record, "prompt_field", config.prompt_field, where)
  yield _text_of(record, "field", config.field, where)


def _text_of(record: dict, name: str, field: str, where: str) -> str:
  """The text of a record's fields, joined by spaces."""
  values = [record.get(key) for key in field.split(",")]
  try:
    values = [v.decode() if isinstance(v, bytes) else v for v in values]
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: is not UTF-8 at byte {error.start}") from None
  if not all(isinstance(value, str) for value in values):
    known = ", ".join(map(str, record))
    raise UserError(f'data.{name} = "{field}": {where} has no such text, but {known}')
  text = " ".join(values)
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"{where}: half a character (a surrogate) at {error.start}"
    ) from None
  return text


class TfdsTexts:
  """The texts of a split of a data set that TFDS prepared as array_record.

  Record i is documents i, or 2 i and 2 i + 1 with cut=prompt.
  """

  def __init__(self, config: DataConfig, side: str):
    self.config = config
    self.split = config.train_split if side == "train" else config.validation_split
    self.where = f'data.name = "{config.name}", split "{self.split}"'
    import tensorflow_datasets as tfds

    with self._explained():
      self._records = tfds.data_source(
        config.name, split=self.split, data_dir=config.directory, download=False
      )

  @property
  def digest(self) -> str:
    """Tells data sets apart by their names and sizes; the text is not read for it."""
    return f"{self._records.__class__.__name__} {self.where}: {len(self)} records"

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> str:
    """The text of a record, where a record has one."""
    return self._of(index)[0]

  def __iter__(self) -> Iterator[str]:
    every = itertools.chain.from_iterable(map(self._of, range(len(self))))
    yield from _some_text(self.where, every)

  def _of(self, index: int) -> list[str]:
    with self._explained():
      record = self._records[index]
    return list(_texts(self.config, record, self.where))

  @contextlib.contextmanager
  def _explained(self):
    """What TFDS raises is of many kinds, and often misleading."""
    try:
      yield
    except Exception as error:
      reason = str(error).strip().splitlines()[0] if str(error) else repr(error)
      raise UserError(
        f"{self.where}: not prepared as array_record in data.directory = "
        f'"{self.config.directory}" ({reason[:120]})'
      ) from None


def hold_out_end(documents: list[str], fraction: float) -> Documents:
  """Holds out the last part of the text, by characters of the documents in order."""
  left = round(sum(map(len, documents)) * (1 - fraction))
  return Documents(list(_before(documents, left)), list(_after(documents, left)))


def _before(documents: Iterable[str], characters: int) -> Iterator[str]:
  """The first so many characters of documents."""
  for document in documents:
    if document[:characters]:
      yield document[:characters]
    characters = max(0, characters - len(document))


def _after(documents: Iterable[str], characters: int) -> Iterator[str]:
  """What `_before` leaves."""
  for document in documents:
    if document[characters:]:
      yield document[characters:]
    characters = max(0, characters - len(document))
