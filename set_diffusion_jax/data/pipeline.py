"""A corpus as a configuration names it, and iterators over its batches."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data.blocks import Blocks, Examples, Frame
from set_diffusion_jax.data.sources import Source, finished
from set_diffusion_jax.data.stream import Stream
from set_diffusion_jax.data.text import Text, Tokens
from set_diffusion_jax.data.tfds import TfdsTexts
from set_diffusion_jax.data.tokenizer import Tokenizer, cpus, load_tokenizer
from set_diffusion_jax.errors import UserError

# Facts of a fingerprint that follow from the others; runs of before do not have them.
FIGURES = ("train_cut_off", "validation_cut_off")


class Corpus(NamedTuple):
  """Everything that training asks of data."""

  tokenizer: Tokenizer
  train: Blocks | Stream
  validation: Blocks
  fingerprint: dict  # equal fingerprints mean equal training and validation sequences

  @property
  def notes(self) -> tuple[str, ...]:
    """Lines about what reading has changed in the text, and what the cut drops."""
    return tuple(dict.fromkeys([*self.train.notes, *self.validation.notes]))


def load(config: DataConfig, processes: int = 1) -> Corpus:
  """Opens a corpus and cuts it; UserError where it cannot be used.

  Args:
    config: says where it is and how it is cut.
    processes: that share it.
  """
  source = Source(config)
  if source.prepared and source.prepared.tokenized:
    tokenizer = source.prepared.tokenizer(config)
  else:
    tokenizer = load_tokenizer(config.tokenizer)
  if config.streaming:
    train, facts = _stream(source, tokenizer, processes)
  else:
    train = _blocks(source, "train", tokenizer)
    facts = {"train_sequences": len(train), **_facts("train", train)}
  validation = _blocks(source, "validation", tokenizer)
  fingerprint = {
    "source": config.source,
    "tokenizer": {k: v for k, v in tokenizer.describe().items() if k != "files"},
    **facts,
    "train_sha256": train.digest,
    "validation_sequences": len(validation),
    "validation_sha256": validation.digest,
    **_facts("validation", validation),
  }
  return Corpus(tokenizer, train, validation, fingerprint)


def load_validation(
  config: DataConfig, tokenizer: Tokenizer, stride: int | None = None
) -> Blocks:
  """The held-out sequences alone, with the tokenizer of a checkpoint.

  Args:
    config: says where the text is and how it is cut.
    tokenizer: what the model was trained with.
    stride: see `Windows`.
  """
  return _blocks(Source(config), "validation", tokenizer, stride)


_SIDES = {"train": "training", "validation": "held-out"}


def _blocks(source: Source, side: str, tokenizer: Tokenizer, stride=None) -> Blocks:
  """The sequences of a side, with what there is to say about them."""
  text = _text(source, side, tokenizer)
  blocks = _cut(source.config, _SIDES[side], text, tokenizer, stride)
  notes = source.notes(side)
  if blocks.dropped and blocks.dropped.tokens:
    notes.append(
      f"{_SIDES[side]} text: {blocks.dropped} are cut off, being beyond "
      f"data.length = {source.config.length}"
    )
  blocks.notes = tuple(notes)
  return blocks


def _facts(side: str, blocks: Blocks) -> dict:
  """What a cut drops, for the fingerprint; see `FIGURES`."""
  dropped = blocks.dropped
  return {f"{side}_cut_off": dataclasses.asdict(dropped)} if dropped else {}


def _text(source: Source, side: str, tokenizer: Tokenizer) -> Text:
  """The tokens of a side: those that were prepared, or in memory."""
  config = source.config
  if source.prepared and source.prepared.tokenized:
    source.prepared.check_tokenizer(tokenizer)
    eos = tokenizer.vocabulary.eos if config.ends_documents else None
    return source.prepared.tokens(side, eos)
  documents = finished(config, source.documents(side))
  return Tokens.of(documents, tokenizer, config.ends_documents)


def _stream(source: Source, tokenizer: Tokenizer, processes: int):
  """The training side of a corpus that is tokenized on the way, and its facts."""
  config = source.config
  if source.prepared:
    documents = source.prepared.texts("train")
    remote = documents.remote
  else:
    documents, remote = TfdsTexts(config, "train"), False
  facts = {"train_documents": len(documents), "processes": processes}
  frame = _frame(config, tokenizer)
  return Stream(documents, config, tokenizer, frame, remote), facts


def _frame(config: DataConfig, tokenizer: Tokenizer) -> Frame:
  return Frame(config.length, tokenizer.vocabulary, config.bos, config.ends_sequences)


def _cut(
  config: DataConfig, side: str, text: Text, tokenizer: Tokenizer, stride=None
) -> Blocks:
  frame = _frame(config, tokenizer)
  if config.cut == "sentence":
    return Blocks.sentences(text, frame)
  if config.cut == "prompt":
    return Blocks.prompts(text, frame)
  if text.tokens < frame.width:
    longest = text.tokens + config.length - frame.width
    raise UserError(
      f"data.length = {config.length}: must be at most {longest}, the {side} text has "
      f"only {text.tokens} tokens"
    )
  return Blocks.wrapped(text, frame, stride)


def training_iterator(
  train: Blocks | Stream, batch_size: int, seed: int, process: int, processes: int
) -> grain.DatasetIterator:
  """An endless, checkpointable iterator over this process's part of each global batch.

  Each epoch is a new permutation. With blocks, step s holds the same examples however
  many processes share them, and process i of n holds rows i B/n up to (i + 1) B/n, so
  the iterator's state is no more than the step. See `Stream.iterator` for a stream.

  Args:
    train: the sequences.
    batch_size: B, global, a multiple of `processes`.
    seed: of the permutations.
    process: index of this process.
    processes: how many there are.
  """
  if isinstance(train, Stream):
    return train.iterator(batch_size, seed, process, processes)
  rows = grain.MapDataset.range(len(train)).seed(seed).shuffle().repeat()
  rows = rows.batch(batch_size // processes, drop_remainder=True)[process::processes]
  options = grain.ReadOptions(num_threads=cpus(), prefetch_buffer_size=4 * cpus())
  return iter(rows.map(lambda rows: train.batch(rows)[0]).to_iter_dataset(options))


def evaluation_batches(
  blocks: Blocks, rows: np.ndarray, batch_size: int
) -> Iterator[tuple[Examples, np.ndarray, np.ndarray]]:
  """Rows once, in order, as (examples, bytes of each slot, row numbers) of one shape.

  The last batch is filled up with rows whose `valid` is False throughout: they have
  nothing to count.

  Args:
    blocks: the sequences.
    rows: int [n], which of them.
    batch_size: rows of a batch.
  """
  for first in range(0, len(rows), batch_size):
    wanted = rows[first : first + batch_size]
    filled = np.pad(wanted, (0, batch_size - len(wanted)), mode="edge")
    batch, sizes = blocks.batch(filled)
    batch["valid"] &= (np.arange(batch_size) < len(wanted))[:, None]
    yield batch, sizes, filled.astype(np.int32)
