"""SentencePiece models as tokenizers. Needs the extra `sentencepiece`."""

import base64
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from set_diffusion_jax.data.libraries import one_line, quietly
from set_diffusion_jax.data.vocabulary import (
  Runs,
  Vocabulary,
  batches,
  between,
  bytes_between,
)
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.pieces import check_pieces
from set_diffusion_jax.inputs.text import utf8

FILE = "tokenizer.model"
STORED = f"{FILE}.base64"  # its name among a checkpoint's files


class PieceTokenizer:
  """A `tokenizer.model`.

  Special ids are its own BOS, EOS and padding, completed as `Vocabulary` says; [MASK]
  is always a new id at the end, so that no text can produce it.

  Args:
    model: the file.
    vocabulary: special ids and size of the weights that it is used with; None: its own.
    where: names it in messages.

  Raises:
    UserError: the package is not installed, it is no model (see `check_pieces`), has
      an id beyond `vocabulary`, or a special id is that of a piece of text.
  """

  name = "sentencepiece"

  def __init__(
    self,
    model: bytes,
    vocabulary: Vocabulary | None = None,
    where: str = "tokenizer.model",
  ):
    try:
      import sentencepiece
    except ImportError:
      raise UserError(
        "data.tokenizer: a SentencePiece model needs pip install sentencepiece"
      ) from None
    self.model = model
    check_pieces(model, where)
    with one_line(f"{where}: not a SentencePiece model"), quietly():
      self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocabulary = vocabulary or self._find_vocabulary()
    size = self._pieces.get_piece_size()
    if size > self.vocabulary.size:
      raise UserError(f"{where}: has {size} ids, the weights {self.vocabulary.size}")
    for number, kinds in self.vocabulary.special().items():
      if number < size and not self._is_special(number, kinds):
        raise UserError(
          f"{where}: {kinds} is id {number}, which is the piece "
          f"{self._pieces.id_to_piece(number)[:40]!r}; a special id must be no word's"
        )

  def _is_special(self, number: int, kinds: str) -> bool:
    """Whether no text has an id; padding may be what unknown text has, as Llama's."""
    pieces = self._pieces
    never = pieces.is_control(number) or pieces.is_unused(number)
    return never or (kinds == "PAD" and pieces.is_unknown(number))

  def _find_vocabulary(self) -> Vocabulary:
    pieces = self._pieces
    own = (pieces.bos_id(), pieces.eos_id(), pieces.pad_id())
    special = (None if number < 0 else number for number in own)
    return Vocabulary.completed(pieces.get_piece_size(), *special, mask=None)

  @property
  def unused(self) -> Runs:
    """Runs of ids without a piece: no text has them, and none is made of them."""
    return self.vocabulary.without(range(self._pieces.get_piece_size()))

  def token(self, number: int) -> str | None:
    """The piece of an id; None where there is none."""
    within = number < self._pieces.get_piece_size()
    return self._pieces.id_to_piece(number) if within else None

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
    return FILE, self.model

  def describe(self) -> dict:
    """What a checkpoint stores; see `restore_tokenizer`."""
    return {
      "name": self.name,
      **dataclasses.asdict(self.vocabulary),
      "sha256": hashlib.sha256(self.model).hexdigest(),
      "files": {STORED: base64.b64encode(self.model).decode()},
    }
