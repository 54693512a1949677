"""The ids of a corpus, in memory or on disk, as one run of documents."""

import abc
import bisect
import copy
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from set_diffusion_jax.data.tokenizer import Tokenizer

_PIECE = 2**20  # tokens that are hashed at a time


class Text(abc.ABC):
  """A run of documents as ids; with `eos`, EOS follows each document.

  A place in the run counts these EOS, which are not stored. Subclasses hold the ids of
  the documents alone.

  Attributes:
    ends: int64 [documents], where each document ends without any EOS.
    eos: the id that ends a document; None: there is none.
  """

  ends: np.ndarray
  eos: int | None

  @abc.abstractmethod
  def _stored(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, bytes of text that each stands for) between two places without EOS."""

  def read_each(self, act: Callable, items: Iterable) -> Iterator:
    """What `act`, which reads, returns for each item, in order.

    Many are read at once where reading is waiting for a network.
    """
    return map(act, items)

  @property
  def documents(self) -> int:
    return len(self.ends)

  @property
  def tokens(self) -> int:
    """How many there are, EOS included."""
    return self.edge(self.documents)

  def edge(self, document: int) -> int:
    """Where a document starts; for the number of documents, where the last one ends."""
    stored = int(self.ends[document - 1]) if document else 0
    return stored + (0 if self.eos is None else document)

  @functools.cached_property
  def nonempty(self) -> Sequence[int]:
    """The documents that have a token."""
    if self.eos is not None:
      return range(self.documents)
    return np.flatnonzero(np.diff(self.ends, prepend=0))

  def read(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens from one place to another.

    Returns:
      int32 [n] ids; int32 [n] bytes of text that each stands for, 0 for EOS.
    """
    if self.eos is None:
      return self._stored(start, end)
    total = end - start
    first = self._ended(start, 0, self.documents)
    last = self._ended(end, first, min(self.documents, first + total))
    start, end = start - first, end - last
    stored = self._stored(start, end)
    if first == last:
      return stored
    kept = np.ones(total, bool)
    kept[self.ends[first:last] - start + np.arange(last - first)] = False
    ids, sizes = np.full(total, self.eos, np.int32), np.zeros(total, np.int32)
    ids[kept], sizes[kept] = stored
    return ids, sizes

  def _ended(self, place: int, low: int, high: int) -> int:
    """The documents whose EOS is before a place; between `low` and `high`."""
    ends = self.ends
    return bisect.bisect_left(
      range(len(ends)), place, low, high, key=lambda d: ends[d] + d
    )

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of all ids and of where documents end."""
    digest = hashlib.sha256(repr(self.eos).encode())
    digest.update(self.stored_digest.encode())
    return digest.hexdigest()

  @functools.cached_property
  def stored_digest(self) -> str:
    """See the function `stored_digest`."""
    return stored_digest(self)


def stored_digest(text: Text) -> str:
  """SHA-256 of the stored ids, uint32, and of where documents end, int64."""
  digest = hashlib.sha256()
  text = copy.copy(text)
  text.eos = None
  for start in range(0, text.tokens, _PIECE):
    ids, _ = text.read(start, min(start + _PIECE, text.tokens))
    digest.update(ids.astype("<u4"))
  for start in range(0, text.documents, _PIECE):
    digest.update(np.ascontiguousarray(text.ends[start : start + _PIECE], "<i8"))
  return digest.hexdigest()


class Tokens(Text):
  """In memory.

  Attributes:
    ids: int32 [n], of all documents, without EOS.
    bytes: int32 [n], bytes of text that each stands for.
  """

  def __init__(self, ids, bytes, ends, eos: int | None = None):
    self.ids, self.bytes, self.ends, self.eos = ids, bytes, ends, eos

  @classmethod
  def of(cls, texts: Iterable[str], tokenizer: Tokenizer, eos: bool) -> "Tokens":
    """Tokenizes documents; each ends with EOS if asked for."""
    none = np.zeros(0, np.int32)
    ids, sizes = [none], [none]
    for document, size in tokenizer.encode_all(texts):
      ids.append(document)
      sizes.append(size)
    ends = np.cumsum([len(document) for document in ids[1:]], dtype=np.int64)
    end = tokenizer.vocabulary.eos if eos else None
    return cls(np.concatenate(ids), np.concatenate(sizes), ends, end)

  def _stored(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    return self.ids[start:end], self.bytes[start:end]
