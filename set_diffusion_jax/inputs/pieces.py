"""A SentencePiece model from outside: checked before its library reads it.

The file is a protocol buffer: fields of a number, a wire type and a value, where texts
and inner messages stand with their length before them.
"""

import math
import struct
from collections.abc import Iterator

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.vocabularies import MOST_IDS, check_charsmap

# Numbers of fields, from sentencepiece_model.proto.
_PIECES, _NORMALIZER, _DENORMALIZER = 1, 3, 5  # of the model
_TEXT, _SCORE, _TYPE = 1, 2, 3  # of a piece
_CHARSMAP = 2  # of a normaliser
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_UNKNOWN, _TYPES = 2, range(1, 7)


def check_pieces(model: bytes, where: str) -> None:
  """Checks the form of a `tokenizer.model`.

  Raises:
    UserError: it is cut off or no such file, a piece is empty, no UTF-8, there twice,
      or of an unknown type, it has not just one piece for what is unknown, or more
      pieces than MOST_IDS.
  """
  seen: dict[bytes, int] = {}
  unknown = 0
  for number, wire, value in _fields(model, where):
    if number == _PIECES and wire == _BYTES:
      text, type_ = _piece(value, f"{where}: piece {len(seen)}")
      if text in seen:
        shown = text.decode()[:40]
        raise UserError(f"{where}: pieces {seen[text]} and {len(seen)} are {shown!r}")
      seen[text] = len(seen)
      unknown += type_ == _UNKNOWN
      if len(seen) > MOST_IDS:
        raise UserError(f"{where}: must have at most {MOST_IDS} pieces")
    elif number in (_NORMALIZER, _DENORMALIZER) and wire == _BYTES:
      for inner, kind, blob in _fields(value, where):
        if inner == _CHARSMAP and kind == _BYTES and blob:
          check_charsmap(blob, where)
  if not seen:
    raise UserError(f"{where}: not a SentencePiece model (it has no pieces)")
  if unknown != 1:
    raise UserError(f"{where}: has {unknown} pieces for unknown text, must have one")


def _piece(value: bytes, where: str) -> tuple[bytes, int]:
  """The text and type of a piece."""
  text, type_ = b"", 1
  for number, wire, found in _fields(value, where):
    if number == _TEXT and wire == _BYTES:
      text = found
    elif number == _TYPE and wire == _VARINT:
      type_ = found
    elif number == _SCORE and wire == _FIXED32:
      (score,) = struct.unpack("<f", found)
      if not math.isfinite(score):
        raise UserError(f"{where}: its score must be finite, is {score}")
  try:
    right = bool(text.decode()) and b"\0" not in text
  except UnicodeDecodeError:
    right = False
  if not right:
    raise UserError(f"{where}: must be a text in UTF-8, is {text[:20]!r}")
  if type_ not in _TYPES:
    raise UserError(f"{where}: its type must be from 1 to 6, is {type_}")
  return text, type_


def _fields(data: bytes, where: str) -> Iterator[tuple[int, int, object]]:
  """(number, wire type, value) of each field of a message."""
  at, view = 0, memoryview(data)
  while at < len(data):
    key, at = _varint(data, at, where)
    number, wire = key >> 3, key & 7
    if wire == _VARINT:
      value, at = _varint(data, at, where)
      yield number, wire, value
      continue
    if wire == _BYTES:
      size, at = _varint(data, at, where)
    elif wire in (_FIXED32, _FIXED64):
      size = 4 if wire == _FIXED32 else 8
    else:
      raise UserError(f"{where}: not a SentencePiece model (wire type {wire})")
    if at + size > len(data):
      raise UserError(
        f"{where}: not a SentencePiece model (a field of {size} bytes, "
        f"{len(data) - at} are left)"
      )
    yield number, wire, bytes(view[at : at + size])
    at += size


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
  """A whole number of 7 bits a byte, and where the next field begins."""
  value = 0
  for shift in range(0, 70, 7):
    if at >= len(data):
      raise UserError(f"{where}: not a SentencePiece model (it is cut off)")
    byte = data[at]
    at += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, at
  raise UserError(f"{where}: not a SentencePiece model (a number of over 64 bits)")
