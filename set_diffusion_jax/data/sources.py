"""Where text comes from: documents for training and documents held out."""

import glob
import hashlib
import pathlib
import pydoc_data.topics
from typing import NamedTuple

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.errors import UserError


class Documents(NamedTuple):
  """Texts; no text is in both."""

  train: list[str]
  validation: list[str]


def read(config: DataConfig) -> Documents:
  """The documents that a configuration names."""
  if config.source == "embedded":
    return embedded(config.validation_fraction)
  train = text_files("data.train_path", config.train_path)
  if config.validation_path is not None:
    return Documents(train, text_files("data.validation_path", config.validation_path))
  return hold_out_end(train, config.validation_fraction)


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


def text_files(field: str, pattern: str) -> list[str]:
  """Each file that a path or a pattern names, as one document, sorted by name."""
  names = sorted(glob.glob(pattern, recursive=True))
  files = [path for path in map(pathlib.Path, names) if path.is_file()]
  if not files:
    raise UserError(f"{field} = {pattern!r}: no such file; give a path or a pattern")
  documents = []
  for path in files:
    try:
      documents.append(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
      raise UserError(
        f"{field} = {pattern!r}: {path} is not UTF-8 at byte {error.start}"
      ) from None
    except OSError as error:
      raise UserError(f"{field} = {pattern!r}: {path}: {error.strerror}") from None
  if not any(document.strip() for document in documents):
    raise UserError(f"{field} = {pattern!r}: holds no text")
  return documents


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
