"""SentencePiece models as tokenizers. Needs the extra `sentencepiece`."""

import base64
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from set_diffusion_jax.data.vocabulary import (
  Vocabulary,
  batches,
  between,
  bytes_between,
  utf8,
)
from set_diffusion_jax.errors import UserError

STORED = "tokenizer.model.base64"  # its name among a checkpoint's files


class PieceTokenizer:
  """A `tokenizer.model`.

  Special ids are its own BOS, EOS and padding, completed as `Vocabulary` says; [MASK]
  is always a new id at the end, so that no text can produce it.

  Raises:
    UserError: the package is not installed.
    ValueError: it is no model.
  """

  name = "sentencepiece"

  def __init__(self, model: bytes, vocabulary: Vocabulary | None = None):
    try:
      import sentencepiece
    except ImportError:
      raise UserError(
        "data.tokenizer: a SentencePiece model needs pip install sentencepiece"
      ) from None
    self.model = model
    try:
      self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(str(error)) from None
    self.vocabulary = vocabulary or self._find_vocabulary()

  def _find_vocabulary(self) -> Vocabulary:
    pieces = self._pieces
    own = (pieces.bos_id(), pieces.eos_id(), pieces.pad_id())
    special = (None if number < 0 else number for number in own)
    return Vocabulary.completed(pieces.get_piece_size(), *special, mask=None)

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    utf8(text)
    return np.asarray(self._pieces.encode(text), np.int32)

  def encode_all(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, bytes of text that each id stands for), int32, of each text."""
    for batch in batches(texts):
      found = self._pieces.encode(
        batch, return_type="offset_mapping", return_bytes=True
      )
      for text, one in zip(batch, found, strict=True):
        starts = np.array([start for start, _ in one["offsets"]], np.int64)
        sizes = bytes_between(starts, len(text.encode()))
        yield np.asarray(one["ids"], np.int32), sizes

  def decode(self, ids: np.ndarray, mask: str = "\N{LOW LINE}") -> str:
    """Text of ids. Special ids vanish, but [MASK] shows as `mask`."""
    size = self._pieces.get_piece_size()
    return mask.join(
      self._pieces.decode(chunk[chunk < size].tolist())
      for chunk in between(ids, self.vocabulary.mask)
    )

  @property
  def file(self) -> tuple[str, bytes]:
    """Name and content of the file that it is."""
    return "tokenizer.model", self.model

  def describe(self) -> dict:
    """What a checkpoint stores; see `restore_tokenizer`."""
    return {
      "name": self.name,
      **dataclasses.asdict(self.vocabulary),
      "sha256": hashlib.sha256(self.model).hexdigest(),
      "files": {STORED: base64.b64encode(self.model).decode()},
    }
