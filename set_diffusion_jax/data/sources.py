"""Where text comes from: documents for training and documents held out."""

import glob
import gzip
import hashlib
import io
import json
import pathlib
import pydoc_data.topics
from collections.abc import Iterator
from typing import NamedTuple

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data.detokenize import detokenizer
from set_diffusion_jax.errors import UserError


class Documents(NamedTuple):
  """Texts; no text is in both."""

  train: list[str]
  validation: list[str]


def read(config: DataConfig) -> Documents:
  """The documents that a configuration names, both sides."""
  _check_source(config)
  if config.source == "embedded":
    return embedded(config.validation_fraction)
  if config.source == "tfds":
    return Documents(_tfds(config, config.train_split), read_validation(config))
  if config.train_path is None:
    raise UserError("data.train_path = null: must name the text to train on")
  train = _files(config, "data.train_path", config.train_path)
  if config.validation_path is None:
    return hold_out_end(train, config.validation_fraction)
  return Documents(train, read_validation(config))


def read_validation(config: DataConfig) -> list[str]:
  """The held-out documents; training text is read only if they are cut off it."""
  _check_source(config)
  if config.source == "tfds":
    return _tfds(config, config.validation_split)
  if config.source == "embedded" or config.validation_path is None:
    return read(config).validation
  return _files(config, "data.validation_path", config.validation_path)


def _check_source(config: DataConfig) -> None:
  if config.source == "none":
    raise UserError(
      'data.source = "none": the weights came without text; give '
      "--config.data.source=text --config.data.validation_path=FILE"
    )


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


def _files(config: DataConfig, field: str, pattern: str) -> list[str]:
  """The documents of the files that a path or a pattern names, sorted by name."""
  where = f'{field} = "{pattern}"'
  names = sorted(glob.glob(pattern, recursive=True))
  files = [path for path in map(pathlib.Path, names) if path.is_file()]
  if not files:
    raise UserError(f"{where}: no such file; give a path or a pattern")
  documents = []
  clean = detokenizer(config.detokenizer)
  for path in files:
    text = _read_text(where, path)
    if config.source == "jsonl":
      documents += map(clean, _records(f"{where}: {path}", text, config.field))
    elif config.source == "lines":
      documents += map(clean, io.StringIO(text, newline=""))
    else:
      documents.append(clean(text))
  return _some_text(where, documents)


def _some_text(where: str, documents: list[str]) -> list[str]:
  if not any(document.strip() for document in documents):
    raise UserError(f"{where}: holds no text")
  return documents


def _read_text(where: str, path: pathlib.Path) -> str:
  """A UTF-8 file, line ends as they are."""
  try:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: {path} is not UTF-8 at byte {error.start}") from None
  except (OSError, EOFError, ValueError) as error:
    reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{where}: {path}: {reason}") from None


def _records(where: str, text: str, field: str) -> Iterator[str]:
  """The field of each JSON object of a text that has one a line."""
  for number, line in enumerate(io.StringIO(text), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f"{where}, line {number}: not JSON: {error.msg}") from None
    if not isinstance(record, dict):
      raise UserError(f"{where}, line {number}: must be a JSON object")
    yield _text_of(record, field, f"{where}, line {number}")


def _text_of(record: dict, field: str, where: str) -> str:
  """The text of a record's fields, joined by spaces."""
  values = [record.get(name) for name in field.split(",")]
  try:
    values = [v.decode() if isinstance(v, bytes) else v for v in values]
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: is not UTF-8 at byte {error.start}") from None
  if not all(isinstance(value, str) for value in values):
    known = ", ".join(map(str, record))
    raise UserError(f'data.field = "{field}": {where} has no such text, but {known}')
  return " ".join(values)


def _tfds(config: DataConfig, split: str) -> list[str]:
  """The documents of a split of a data set that TFDS prepared as array_record."""
  where = f'data.name = "{config.name}", split "{split}"'
  import tensorflow_datasets as tfds

  clean = detokenizer(config.detokenizer)
  try:
    source = tfds.data_source(
      config.name, split=split, data_dir=config.directory, download=False
    )
    records = [source[i] for i in range(len(source))]
  except Exception as error:  # of many kinds, often misleading
    reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"{where}: not prepared as array_record in data.directory = "
      f'"{config.directory}" ({reason[:120]})'
    ) from None
  texts = (_text_of(record, config.field, where) for record in records)
  return _some_text(where, list(map(clean, texts)))


def hold_out_end(documents: list[str], fraction: float) -> Documents:
  """Holds out the last part of the text, by characters of the documents in order."""
  left = round(sum(map(len, documents)) * (1 - fraction))
  train, validation = [], []
  for document in documents:
    cut = min(left, len(document))
    left -= cut
    train.append(document[:cut])
    validation.append(document[cut:])
  return Documents(*([d for d in side if d] for side in (train, validation)))
