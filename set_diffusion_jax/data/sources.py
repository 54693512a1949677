"""Where text comes from: documents for training and documents held out.

Documents are read one at a time, again from the start whenever they are asked for, so
that a corpus need not fit into memory. With cut=prompt a record is two documents, its
prompt and then its target.
"""

import functools
import hashlib
import itertools
import pydoc_data.topics
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.config.checks import check_text
from set_diffusion_jax.data.detokenize import detokenizer
from set_diffusion_jax.data.files import Files
from set_diffusion_jax.data.prepared import Prepared
from set_diffusion_jax.data.tfds import TfdsTexts
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown
from set_diffusion_jax.storage import hub, hub_datasets

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

  Args:
    config: the configuration.
    from_hub: whether files of the Hugging Face hub may be named.

  Attributes:
    config: the configuration.
    prepared: what data.directory holds for data.source=prepared.
    prompts: whether documents are prompts and targets in turn.
  """

  def __init__(self, config: DataConfig, from_hub: bool = False):
    self.config, self._from_hub = config, from_hub
    check_text(config)
    self.prepared = Prepared.open(config)
    self.prompts = config.cut == "prompt"
    self._opened: dict[str, Files] = {}
    self._commits: dict[hub.Address, hub_datasets.Commit] = {}

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
      yield from self._files("validation").documents()
    elif config.train_path is None:
      raise UserError("data.train_path = null: must name the text to train on")
    elif config.validation_path is not None:
      yield from self._whole()
    else:
      yield from self._part(side)

  def _files(self, side: str) -> Files:
    """The files that a path of the configuration names."""
    if side not in self._opened:
      field = f"{side}_path"
      pattern = getattr(self.config, field)
      fetched = self._fetched(field) if hub_datasets.is_url(pattern) else ()
      self._opened[side] = Files(self.config, f"data.{field}", pattern, fetched)
    return self._opened[side]

  def _fetched(self, field: str) -> list[hub_datasets.Fetched]:
    """The files of the hub that a field names; both sides are of one commit."""
    url = getattr(self.config, field)
    where = f'data.{field} = "{shown(url)}"'
    if not self._from_hub:
      raise UserError(
        f"{where}: is read by `prepare` alone; prepare it, then give "
        "--config.data.source=prepared --config.data.directory=DIR"
      )
    place, _ = hub_datasets.address(url)
    if place not in self._commits:
      self._commits[place] = hub_datasets.Commit(url, place)
    return self._commits[place].fetch(url)

  def _whole(self) -> Iterator[str]:
    return self._files("train").documents()

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
    """The files that documents have been read from, with their sizes in bytes."""
    return [
      fact
      for side in SIDES
      if side in self._opened
      for fact in self._opened[side].facts()
    ]

  def notes(self, side: str) -> list[str]:
    """Lines that say what reading a side has changed in its text."""
    opened = self._opened.get(side) or self._opened.get("train")
    return opened.notes() if opened else []


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
