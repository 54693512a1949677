"""The ids of a tokenizer: how many, and which are special."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from set_diffusion_jax.errors import UserError


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
    """Fills in special ids that a tokenizer of `size` entries does not have.

    BOS and EOS stand for each other, EOS for padding; [MASK] (and EOS, if there is
    neither) get new ids at the end.
    """
    if bos is None and eos is None:
      eos, size = size, size + 1
    eos = bos if eos is None else eos
    if mask is None:
      mask, size = size, size + 1
    bos, pad = (eos if x is None else x for x in (bos, pad))
    return cls(size, bos, eos, pad, mask)


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


def utf8(text: str) -> bytes:
  """A text's bytes.

  Raises:
    UserError: it has half of a surrogate pair: that is what bytes that are no UTF-8
      become on a command line, and what JSON can spell out.
  """
  try:
    return text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"text {text[:20]!r}: is no Unicode text, at character {error.start + 1}"
    ) from None
