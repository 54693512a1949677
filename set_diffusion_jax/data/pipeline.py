"""Sequences of one length, and the iterators that hand them out in batches."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import sources
from set_diffusion_jax.data.tokenizer import Tokenizer, Vocabulary, load_tokenizer
from set_diffusion_jax.errors import UserError

Examples = dict[str, np.ndarray]  # tokens int32, valid bool and context bool, [B, L]


class Blocks:
  """Sequences of L slots cut from a run of token ids: a random-access source for grain.

  Sequence i is BOS, if there is to be one, then ids[start[i] : end[i]], then EOS, if
  sequences are to end with it, then padding. BOS and the first `given[i]` ids are
  context: seen, but not counted.

  Attributes:
    ids: int32 [n], the tokens of all documents.
    bytes: int32 [n], how many bytes of text each id stands for.
    start, end, given: int64 [sequences].
  """

  def __init__(self, text: "Tokens", start, end, given, frame: "Frame"):
    self.ids, self.bytes = text.ids, text.bytes
    self.start, self.end, self.given, self._frame = start, end, given, frame

  @classmethod
  def wrapped(
    cls, text: "Tokens", frame: "Frame", stride: int | None = None
  ) -> "Blocks":
    """Documents joined and cut; the last sequence is shorter.

    Each token is counted in exactly one sequence. With a stride, sequences advance by
    so many tokens, and what the one before has counted is context.
    """
    width, total = frame.width, len(text.ids)
    stride = stride or width
    count = 1 + max(0, -(-(total - width) // stride)) if total else 0
    start = np.arange(count) * stride
    given = np.where(np.arange(count) > 0, width - stride, 0)
    return cls(text, start, np.minimum(start + width, total), given, frame)

  @classmethod
  def sentences(cls, text: "Tokens", frame: "Frame") -> "Blocks":
    """Each document is a sequence of its own; what is longer than L is cut off."""
    edges = np.concatenate([[0], np.cumsum(text.lengths)])
    start, end = edges[:-1][text.lengths > 0], edges[1:][text.lengths > 0]
    end = np.minimum(end, start + frame.width)
    return cls(text, start, end, np.zeros_like(start), frame)

  def __len__(self) -> int:
    return len(self.start)

  def __getitem__(self, row: int) -> Examples:
    frame = self._frame
    run = self.ids[self.start[row] : self.end[row]]
    tokens = np.full(frame.length, frame.vocabulary.pad, np.int32)
    tokens[: frame.bos] = frame.vocabulary.bos
    last = frame.bos + len(run)
    tokens[frame.bos : last] = run
    tokens[last : last + frame.eos] = frame.vocabulary.eos
    place = np.arange(frame.length)
    return {
      "tokens": tokens,
      "valid": place < last + frame.eos,
      "context": place < frame.bos + self.given[row],
    }

  def bytes_of(self, row: int) -> np.ndarray:
    """Bytes of text of each slot: int32 [L], 0 for special tokens and padding."""
    sizes = np.zeros(self._frame.length, np.int32)
    run = self.bytes[self.start[row] : self.end[row]]
    sizes[self._frame.bos : self._frame.bos + len(run)] = run
    return sizes

  @property
  def digest(self) -> str:
    """SHA-256 of all that sequences are made of."""
    digest = hashlib.sha256(repr(self._frame).encode())
    for array in (self.ids, self.start, self.end, self.given):
      digest.update(np.ascontiguousarray(array.astype("<i8")))
    return digest.hexdigest()

  def __repr__(self) -> str:  # grain prints it
    return f"Blocks({len(self)} x {self._frame.length})"


class Frame(NamedTuple):
  """What stands around the text of each sequence.

  Attributes:
    length: L, in slots.
    vocabulary: has the special ids.
    bos: whether a sequence starts with BOS.
    eos: whether a sequence ends with EOS.
  """

  length: int
  vocabulary: Vocabulary
  bos: bool
  eos: bool = False

  @property
  def width(self) -> int:
    """Tokens of text that fit."""
    return self.length - int(self.bos) - int(self.eos)


class Tokens(NamedTuple):
  """The documents of one side as ids, one after another.

  Attributes:
    ids: int32 [n].
    bytes: int32 [n], bytes of text that each id stands for; 0 for EOS.
    lengths: int64 [documents].
  """

  ids: np.ndarray
  bytes: np.ndarray
  lengths: np.ndarray

  @classmethod
  def of(cls, texts: list[str], tokenizer: Tokenizer, eos: bool) -> "Tokens":
    """Tokenizes documents; each ends with EOS if asked for."""
    end = np.array([tokenizer.vocabulary.eos] * eos, np.int32)
    none = np.zeros(0, np.int32)
    ids, sizes, lengths = [none], [none], []
    for document, size in tokenizer.encode_all(texts):
      ids += [document, end]
      sizes += [size, np.zeros_like(end)]
      lengths.append(len(document) + len(end))
    return cls(np.concatenate(ids), np.concatenate(sizes), np.array(lengths, np.int64))


class Corpus(NamedTuple):
  """Everything that training asks of data."""

  tokenizer: Tokenizer
  train: Blocks
  validation: Blocks
  fingerprint: dict  # equal fingerprints mean equal training and validation sequences


def load(config: DataConfig) -> Corpus:
  """Reads, tokenizes and cuts a corpus; UserError where it cannot be used."""
  tokenizer = load_tokenizer(config.tokenizer)
  documents = sources.read(config)
  train = _cut(config, "training", documents.train, tokenizer)
  validation = _cut(config, "held-out", documents.validation, tokenizer)
  fingerprint = {
    "source": config.source,
    "tokenizer": {k: v for k, v in tokenizer.describe().items() if k != "files"},
    "train_sequences": len(train),
    "train_sha256": train.digest,
    "validation_sequences": len(validation),
    "validation_sha256": validation.digest,
  }
  return Corpus(tokenizer, train, validation, fingerprint)


def load_validation(
  config: DataConfig, tokenizer: Tokenizer, stride: int | None = None
) -> Blocks:
  """The held-out sequences alone, with the tokenizer of a checkpoint.

  Args:
    config: says where the text is and how it is cut.
    tokenizer: what the model was trained with.
    stride: see `Blocks.wrapped`.
  """
  documents = sources.read_validation(config)
  return _cut(config, "held-out", documents, tokenizer, stride)


def _cut(
  config: DataConfig, side: str, documents: list[str], tokenizer, stride=None
) -> Blocks:
  text = Tokens.of(documents, tokenizer, config.eos == "documents")
  ends = config.eos == "sequences"
  frame = Frame(config.length, tokenizer.vocabulary, config.bos, ends)
  if config.cut == "sentence":
    return Blocks.sentences(text, frame)
  if len(text.ids) < frame.width:
    longest = len(text.ids) + config.length - frame.width
    raise UserError(
      f"data.length = {config.length}: must be at most {longest}, the {side} text has "
      f"only {len(text.ids)} tokens"
    )
  return Blocks.wrapped(text, frame, stride)


def training_iterator(
  blocks: Blocks, batch_size: int, seed: int, process: int, processes: int
) -> grain.DatasetIterator:
  """An endless, checkpointable iterator over this process's part of each global batch.

  Each epoch is a new permutation. Step s holds the same examples however many
  processes share them, and process i of n holds rows i B/n up to (i + 1) B/n, so the
  iterator's state is no more than the step.

  Args:
    blocks: the rows.
    batch_size: B, global, a multiple of `processes`.
    seed: of the permutations.
    process: index of this process.
    processes: how many there are.
  """
  dataset = grain.MapDataset.source(blocks).seed(seed).shuffle().repeat()
  dataset = dataset.batch(batch_size // processes, drop_remainder=True)
  return iter(dataset[process::processes].to_iter_dataset())


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
    examples = [blocks[row] for row in filled]
    batch = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    batch["valid"] &= (np.arange(batch_size) < len(wanted))[:, None]
    yield batch, np.stack([blocks.bytes_of(r) for r in filled]), filled.astype(np.int32)
