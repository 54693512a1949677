"""The ids of a tokenizer: how many, and which are special."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.vocabularies import MOST_IDS, check_id

# Runs of ids, each the first one and the one after the last.
Runs = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The number of ids and the special ones; [MASK] counts as one of `size`."""

  size: int
  bos: int
  eos: int
  pad: int
  mask: int

  @classmethod
  def completed(
    cls,
    size: int,
    bos: int | None,
    eos: int | None,
    pad: int | None,
    mask: int | None,
  ) -> "Vocabulary":
    """Fills in special ids that a tokenizer does not have.

    `size` is its largest id + 1, however many of the ids below have a token. BOS and
    EOS stand for each other, EOS for padding; [MASK] (and EOS, if there is neither) get
    new ids at the end.
    """
    if bos is None and eos is None:
      eos, size = size, size + 1
    eos = bos if eos is None else eos
    if mask is None:
      mask, size = size, size + 1
    bos, pad = (eos if x is None else x for x in (bos, pad))
    return cls(size, bos, eos, pad, mask)

  @classmethod
  def read(cls, stored: Mapping, where: str) -> "Vocabulary":
    """That of a checkpoint; UserError unless all are whole numbers and ids below size.

    `where` names it in messages.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    values = {name: stored[name] for name in names}
    size = values["size"]
    if type(size) is not int or not 0 < size <= MOST_IDS:
      raise UserError(f"{where}: size = {size!r}; must be from 1 to {MOST_IDS}")
    for name in names[1:]:
      if check_id(values[name], name, where) >= size:
        raise UserError(f"{where}: {name} has id {values[name]}; must be below {size}")
    return cls(**values)

  def special(self) -> dict[int, str]:
    """The special ids, each with what it is: {1: "BOS", 2: "EOS = PAD", 3: "MASK"}."""
    found: dict[int, str] = {}
    for name in ("bos", "eos", "pad", "mask"):
      number, kind = getattr(self, name), name.upper()
      found[number] = f"{found[number]} = {kind}" if number in found else kind
    return found

  def without(self, tokens: Iterable[int]) -> Runs:
    """Runs of ids that are neither special nor among those of tokens."""
    has = np.zeros(self.size, bool)
    has[[*tokens, *self.special()]] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[True], has, [True]])))
    return tuple(map(tuple, edges.reshape(-1, 2).tolist()))


def count(runs: Runs) -> int:
  """How many ids are in runs of them."""
  return sum(after - first for first, after in runs)


def among(runs: Runs, size: int) -> np.ndarray:
  """Which of the ids below `size` are in runs of them: bool [size]."""
  found = np.zeros(size, bool)
  for first, after in runs:
    found[first:after] = True
  return found


def batches(texts: Iterable[str], characters: int = 2**20) -> Iterator[list[str]]:
  """Texts in lists of about so many characters."""
  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= characters:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def bytes_between(starts: np.ndarray, total: int) -> np.ndarray:
  """Bytes that each token stands for: from its own start to that of the next one.

  Args:
    starts: int [n], where tokens start in a text, in bytes.
    total: bytes of the text, which those of its tokens add up to.
  """
  edges = np.maximum.accumulate(np.append(starts, total))
  edges[:1] = 0
  return np.diff(edges).astype(np.int32)


def between(ids: np.ndarray, special: int) -> Iterator[np.ndarray]:
  """The runs of ids before, between and after those that are `special`."""
  ids = np.asarray(ids)
  for chunk in np.split(ids, np.flatnonzero(ids == special)):
    yield chunk[chunk != special]
