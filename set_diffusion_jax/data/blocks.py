"""Sequences of one length, cut from a run of documents."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from set_diffusion_jax.data.text import Text
from set_diffusion_jax.data.vocabulary import Vocabulary

_PIECE = 2**20  # documents that are counted at a time, an even number
Examples = dict[str, np.ndarray]  # tokens int32, valid bool and context bool, [B, L]


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

  def fill(self, runs: Sequence[np.ndarray], given: Sequence[int]) -> Examples:
    """Examples [B, L] of B runs of ids: BOS, the run, EOS, then padding.

    BOS and the first `given[i]` ids of run i are context: seen, but not counted.
    """
    shape = (len(runs), self.length)
    tokens = np.full(shape, self.vocabulary.pad, np.int32)
    tokens[:, : self.bos] = self.vocabulary.bos
    last = np.zeros(len(runs), np.int64)
    for row, run in enumerate(runs):
      last[row] = end = self.bos + len(run)
      tokens[row, self.bos : end] = run
      tokens[row, end : end + self.eos] = self.vocabulary.eos
    place = np.arange(self.length)
    context = self.bos + np.asarray(given, np.int64)
    return {
      "tokens": tokens,
      "valid": place < (last + self.eos)[:, None],
      "context": place < context[:, None],
    }


class Span(NamedTuple):
  """What one sequence holds: places of a text, from start to end, and so on.

  Attributes:
    ranges: of the text, one after another.
    given: how many of the first tokens are context.
  """

  ranges: tuple[tuple[int, int], ...]
  given: int


@dataclasses.dataclass(frozen=True)
class Dropped:
  """The text that no sequence holds, because it is beyond the length of one.

  Attributes:
    tokens: that are in no sequence, EOS of documents included.
    of_tokens: of the whole text.
    documents: that are cut off; a prompt and a target are two.
    of_documents: of the whole text.
  """

  tokens: int
  of_tokens: int
  documents: int
  of_documents: int

  @classmethod
  def of(cls, text: Text, most: Sequence[int]) -> "Dropped":
    """What is left out of documents of which so many tokens are kept, in turn."""
    tokens = documents = 0
    for start in range(0, text.documents, _PIECE):
      before = text.ends[start - 1] if start else 0
      lengths = np.diff(text.ends[start : start + _PIECE], prepend=before)
      lengths = lengths + (text.eos is not None)
      over = np.maximum(lengths - np.resize(most, len(lengths)), 0)
      tokens, documents = tokens + int(over.sum()), documents + int((over > 0).sum())
    return cls(tokens, text.tokens, documents, text.documents)

  def __str__(self) -> str:
    shares = (
      f"{part:,} of {whole:,} {name} ({part / max(whole, 1):.1%})"
      for part, whole, name in (
        (self.tokens, self.of_tokens, "tokens"),
        (self.documents, self.of_documents, "documents"),
      )
    )
    return ", in ".join(shares)


class Cut(Protocol):
  """Which span of a text each sequence is."""

  def __len__(self) -> int: ...
  def __getitem__(self, row: int) -> Span: ...
  @property
  def name(self) -> str:
    """Equal for equal cuts of the same text."""

  def dropped(self) -> Dropped | None:
    """What is in no sequence; None where a cut drops nothing by its nature."""


@dataclasses.dataclass(frozen=True)
class Windows:
  """Documents joined and cut; the last window is shorter.

  Each token is counted in exactly one window. Windows advance by `stride` tokens, and
  what the one before has counted is context.
  """

  tokens: int
  width: int
  stride: int

  @property
  def name(self) -> str:
    return f"windows of {self.width}, {self.stride} apart"

  def dropped(self) -> None:
    return None

  def __len__(self) -> int:
    if not self.tokens:
      return 0
    return 1 + max(0, -(-(self.tokens - self.width) // self.stride))

  def __getitem__(self, row: int) -> Span:
    start = row * self.stride
    end = min(start + self.width, self.tokens)
    return Span(((start, end),), self.width - self.stride if row else 0)


class Sentences:
  """Each document that has a token, cut off where it is longer than a sequence."""

  def __init__(self, text: Text, width: int):
    self._text, self._width, self.name = text, width, f"documents up to {width}"

  def dropped(self) -> Dropped:
    return Dropped.of(self._text, [self._width])

  def __len__(self) -> int:
    return len(self._text.nonempty)

  def __getitem__(self, row: int) -> Span:
    document = int(self._text.nonempty[row])
    start, end = self._text.edge(document), self._text.edge(document + 1)
    return Span(((start, min(end, start + self._width)),), 0)


class Prompts:
  """Each pair of documents: a prompt, which is context, and a target.

  The first L // 2 tokens of either are kept, BOS counting among those of the prompt.
  """

  def __init__(self, text: Text, frame: Frame):
    half = frame.length // 2
    self._text, self._most = text, (half - frame.bos, half)
    self.name = f"pairs up to {half} and {half}"

  def dropped(self) -> Dropped:
    return Dropped.of(self._text, self._most)

  def __len__(self) -> int:
    return self._text.documents // 2

  def __getitem__(self, row: int) -> Span:
    start, middle, end = (self._text.edge(2 * row + part) for part in range(3))
    prompt = (start, min(middle, start + self._most[0]))
    target = (middle, min(end, middle + self._most[1]))
    return Span((prompt, target), prompt[1] - prompt[0])


class Blocks:
  """Sequences of L slots cut from a text; see `Frame.fill` for what is in them.

  Attributes:
    text: what they are cut from.
    notes: lines about what reading has changed in the text and what the cut drops.
  """

  def __init__(self, text: Text, cut: Cut, frame: Frame):
    self.text, self._cut, self._frame = text, cut, frame
    self.notes: tuple[str, ...] = ()

  @functools.cached_property
  def dropped(self) -> Dropped | None:
    """The text that no sequence holds; None where every token is in one."""
    return self._cut.dropped()

  @classmethod
  def wrapped(cls, text: Text, frame: Frame, stride: int | None = None) -> "Blocks":
    """Documents joined and cut, see `Windows`; without a stride they do not overlap."""
    width = frame.width
    return cls(text, Windows(text.tokens, width, stride or width), frame)

  @classmethod
  def sentences(cls, text: Text, frame: Frame) -> "Blocks":
    """A document a sequence, see `Sentences`."""
    return cls(text, Sentences(text, frame.width), frame)

  @classmethod
  def prompts(cls, text: Text, frame: Frame) -> "Blocks":
    """A pair of documents a sequence, see `Prompts`."""
    return cls(text, Prompts(text, frame), frame)

  def __len__(self) -> int:
    return len(self._cut)

  def __getitem__(self, row: int) -> Examples:
    """One sequence, [L] each."""
    if not 0 <= row < len(self):
      raise IndexError(row)
    return {name: value[0] for name, value in self.batch([row])[0].items()}

  def batch(self, rows: Sequence[int]) -> tuple[Examples, np.ndarray]:
    """Some sequences, and the bytes of text of each slot.

    Returns:
      Examples [B, L]; int32 [B, L], 0 for special tokens and padding.
    """
    runs, given = [], []
    sizes = np.zeros((len(rows), self._frame.length), np.int32)
    bos = int(self._frame.bos)
    spans = [self._cut[int(row)] for row in rows]
    found = self.text.read_each(self._read, spans)
    for number, (span, (run, size)) in enumerate(zip(spans, found, strict=True)):
      runs.append(run)
      given.append(span.given)
      sizes[number, bos : bos + len(size)] = size
    return self._frame.fill(runs, given), sizes

  def _read(self, span: Span) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a span, see `Text.read`."""
    parts = [self.text.read(start, end) for start, end in span.ranges]
    run, size = map(np.concatenate, zip(*parts, strict=True))
    return run, size

  def bytes_of(self, row: int) -> np.ndarray:
    """Bytes of text of each slot: int32 [L], 0 for special tokens and padding."""
    return self.batch([row])[1][0]

  @property
  def digest(self) -> str:
    """SHA-256 of all that sequences are made of."""
    parts = repr((tuple(self._frame), self._cut.name, self.text.digest))
    return hashlib.sha256(parts.encode()).hexdigest()

  def __repr__(self) -> str:  # grain prints it
    return f"Blocks({len(self)} x {self._frame.length})"
