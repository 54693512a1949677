"""Text to ids and back. Special ids are never produced from text."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The number of ids and the special ones; [MASK] counts as one of `size`."""

  size: int
  bos: int
  eos: int
  pad: int
  mask: int


class ByteTokenizer:
  """UTF-8 bytes as ids 0..255; BOS, EOS, padding and [MASK] follow."""

  name = "byte"
  vocabulary = Vocabulary(size=260, bos=256, eos=257, pad=258, mask=259)

  @property
  def token_bytes(self) -> np.ndarray:
    """How many bytes of text each id stands for: int32 [V], 0 for special ids."""
    return (np.arange(self.vocabulary.size) < 256).astype(np.int32)

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def decode(self, ids: np.ndarray, mask: str = "\N{LOW LINE}") -> str:
    """Text of ids. Special ids vanish, but [MASK] shows as `mask`."""
    ids = np.asarray(ids)
    chunks = np.split(ids, np.flatnonzero(ids == self.vocabulary.mask))
    texts = (
      bytes(chunk[chunk < 256].tolist()).decode(errors="replace") for chunk in chunks
    )
    return mask.join(texts)
