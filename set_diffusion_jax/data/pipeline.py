"""Sequences of one length, and the iterators that hand them out in batches."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import sources
from set_diffusion_jax.data.tokenizer import ByteTokenizer, Vocabulary
from set_diffusion_jax.errors import UserError

Examples = dict[str, np.ndarray]  # tokens int32, valid bool and context bool, [B, L]


class Blocks:
  """A text wrapped into rows of L tokens: a random-access source for grain.

  Documents are joined with EOS after each; every row starts with BOS if the vocabulary
  is to have one there; the last row is padded. Each token is in exactly one row.
  """

  def __init__(self, ids: np.ndarray, length: int, vocabulary: Vocabulary, bos: bool):
    self._bos = int(bos)
    width = length - self._bos
    rows = -(-len(ids) // width)
    self.tokens = np.full((rows, length), vocabulary.pad, np.int32)
    self.tokens[:, : self._bos] = vocabulary.bos
    padded = np.full(rows * width, vocabulary.pad, np.int32)
    padded[: len(ids)] = ids
    self.tokens[:, self._bos :] = padded.reshape(rows, width)
    self.lengths = np.full(rows, length)
    if rows:
      self.lengths[-1] -= rows * width - len(ids)

  def __len__(self) -> int:
    return len(self.tokens)

  def __getitem__(self, row: int) -> Examples:
    place = np.arange(self.tokens.shape[1])
    return {
      "tokens": self.tokens[row],
      "valid": place < self.lengths[row],
      "context": place < self._bos,
    }

  def __repr__(self) -> str:  # grain prints it
    return f"Blocks({self.tokens.shape})"


class Corpus(NamedTuple):
  """Everything that training and evaluation ask of data."""

  tokenizer: ByteTokenizer
  train: Blocks
  validation: Blocks
  fingerprint: dict  # equal fingerprints mean equal training and validation sequences


def load(config: DataConfig) -> Corpus:
  """Reads, tokenizes and wraps a corpus; UserError where it cannot be used."""
  documents = sources.read(config)
  tokenizer = ByteTokenizer()
  eos = np.array([tokenizer.vocabulary.eos], np.int32)
  sides = {}
  for name, texts in documents._asdict().items():
    pieces = [part for text in texts for part in (tokenizer.encode(text), eos)]
    ids = np.concatenate(pieces) if pieces else eos[:0]
    wanted = config.length - int(config.bos)
    if len(ids) < wanted:
      raise UserError(
        f"data.length = {config.length}: must be at most {len(ids) + int(config.bos)}, "
        f"the {name} text has only {len(ids)} tokens"
      )
    sides[name] = Blocks(ids, config.length, tokenizer.vocabulary, config.bos)
  digest = hashlib.sha256()
  for blocks in sides.values():
    digest.update(blocks.tokens.tobytes())
    digest.update(blocks.lengths.tobytes())
  fingerprint = {
    "source": config.source,
    "tokenizer": tokenizer.name,
    "train_sequences": len(sides["train"]),
    "validation_sequences": len(sides["validation"]),
    "sha256": digest.hexdigest(),
  }
  return Corpus(tokenizer, sides["train"], sides["validation"], fingerprint)


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
  blocks: Blocks, batch_size: int, sequences: int
) -> Iterator[tuple[Examples, np.ndarray]]:
  """The first rows once, in order, as (examples, row numbers) of one shape.

  The last batch is filled up with rows whose `valid` is False throughout: they have
  nothing to count.
  """
  for start in range(0, sequences, batch_size):
    rows = np.arange(start, start + batch_size)
    examples = [blocks[min(row, sequences - 1)] for row in rows]
    batch = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    batch["valid"] &= (rows < sequences)[:, None]
    yield batch, rows.astype(np.int32)
