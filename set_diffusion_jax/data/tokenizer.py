"""Text to ids and back. Special ids are never produced from text."""

import base64
import binascii
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tokenizers

from set_diffusion_jax.data.json_tokenizer import JsonTokenizer
from set_diffusion_jax.data.pieces import STORED, PieceTokenizer
from set_diffusion_jax.data.vocabulary import Runs, Vocabulary, between, count
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import paths
from set_diffusion_jax.inputs.text import check_pointer, utf8


class ByteTokenizer:
  """UTF-8 bytes as ids 0..255; BOS, EOS, padding and [MASK] follow."""

  name = "byte"
  vocabulary = Vocabulary(size=260, bos=256, eos=257, pad=258, mask=259)
  file = None
  unused: Runs = ()

  def token(self, number: int) -> str | None:
    """The token of an id; None where there is none."""
    return chr(number) if number < 128 else None

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

  def encode_all(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, bytes of text that each id stands for), int32, of each text."""
    for text in texts:
      ids = self.encode(text)
      yield ids, np.ones_like(ids)

  def decode(self, ids: np.ndarray, mask: str = "\N{LOW LINE}") -> str:
    """Text of ids. Special ids vanish, but [MASK] shows as `mask`."""
    return mask.join(
      bytes(chunk[chunk < 256].tolist()).decode(errors="replace")
      for chunk in between(ids, self.vocabulary.mask)
    )

  def describe(self) -> dict:
    """What a checkpoint stores; see `restore_tokenizer`."""
    return {"name": self.name, **dataclasses.asdict(self.vocabulary)}


class IdTokenizer:
  """Ids without a text: for weights that came without their tokenizer."""

  name = "ids"
  file = None

  def __init__(self, vocabulary: Vocabulary, used_ids: int | None = None):
    self.vocabulary = vocabulary
    self._used = min(used_ids or vocabulary.size, vocabulary.size)

  @property
  def unused(self) -> Runs:
    """Runs of ids without a token: rows that only pad the matrix."""
    return self.vocabulary.without(range(self._used))

  def token(self, number: int) -> str | None:
    """None: ids have no text here."""
    return None

  def encode(self, text: str) -> np.ndarray:
    """UserError, except for the empty text."""
    if text:
      raise UserError("data.tokenizer: the checkpoint has none; give a tokenizer.json")
    return np.zeros(0, np.int32)

  def encode_all(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """UserError for any text."""
    for text in texts:
      yield self.encode(text), self.encode(text)

  def decode(self, ids: np.ndarray, mask: str = "\N{LOW LINE}") -> str:
    """The ids as numbers."""
    special = self.vocabulary.mask
    return " ".join(mask if i == special else str(i) for i in np.asarray(ids).tolist())

  def describe(self) -> dict:
    """What a checkpoint stores; see `restore_tokenizer`."""
    described = {"name": self.name, **dataclasses.asdict(self.vocabulary)}
    padded = self._used < self.vocabulary.size
    return {**described, "used_ids": self._used} if padded else described


Tokenizer = ByteTokenizer | JsonTokenizer | PieceTokenizer | IdTokenizer


def cpus() -> int:
  """CPUs that this process may use: tokenizing is what they are needed for."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@functools.lru_cache(maxsize=4)
def load_tokenizer(name: str) -> Tokenizer:
  """The tokenizer that `data.tokenizer` names.

  "byte", a tokenizer.json, a SentencePiece model (`*.model`), or a directory that has
  one of them.
  """
  if name == ByteTokenizer.name:
    return ByteTokenizer()
  path, where = pathlib.Path(name), f'data.tokenizer = "{name}"'
  if path.is_dir():
    pieces = path / "tokenizer.model"
    whole = path / "tokenizer.json"
    path = pieces if pieces.exists() and not whole.exists() else whole
  try:
    content = paths.content(path)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or "is no name of a file"
    raise UserError(
      f'{where}: {reason}; give "byte", a tokenizer.json or a *.model'
    ) from None
  return tokenizer_of(content, str(path), where)


def tokenizer_of(content: bytes, name: str, where: str) -> Tokenizer:
  """The tokenizer in a file; UserError if it holds none.

  Args:
    content: all of the file.
    name: its path; `*.model` is one of SentencePiece, any other a tokenizer.json.
    where: names it in messages.
  """
  check_pointer(content, where)
  if pathlib.PurePath(name).suffix == ".model":
    return PieceTokenizer(content, None, where)
  return JsonTokenizer(content, None, where)


def restore_tokenizer(description: Mapping) -> Tokenizer:
  """The tokenizer of a checkpoint's `describe()`; UserError if it is damaged."""
  where = "checkpoint: its tokenizer"
  try:
    vocabulary = Vocabulary.read(description, where)
    name = description["name"]
    used = description.get("used_ids")
    files = description.get("files") or {}
    text = files["tokenizer.json"] if name == JsonTokenizer.name else None
    model = b""
    if name == PieceTokenizer.name:
      model = base64.b64decode(files[STORED], validate=True)
  except (KeyError, TypeError, AttributeError, ValueError, binascii.Error):
    raise UserError(f"{where} is damaged") from None
  if name == ByteTokenizer.name and vocabulary == ByteTokenizer.vocabulary:
    return ByteTokenizer()
  if name == JsonTokenizer.name:
    if not isinstance(text, str):
      raise UserError(f"{where} is damaged")
    return JsonTokenizer(text, vocabulary, where)
  if name == PieceTokenizer.name:
    return PieceTokenizer(model, vocabulary, where)
  if name == IdTokenizer.name:
    return IdTokenizer(vocabulary, used if type(used) is int and used > 0 else None)
  raise UserError(f"{where} {name!r} is not known here")


def with_vocabulary(tokenizer: Tokenizer, vocabulary: Vocabulary) -> Tokenizer:
  """A tokenizer for weights that have special ids and a size of their own.

  Raises:
    UserError: it has other ids than the weights.
  """
  if isinstance(tokenizer, JsonTokenizer):
    return JsonTokenizer(tokenizer.text, vocabulary, "data.tokenizer")
  if isinstance(tokenizer, PieceTokenizer):
    return PieceTokenizer(tokenizer.model, vocabulary, "data.tokenizer")
  if tokenizer.vocabulary != vocabulary:
    raise UserError(f"data.tokenizer: has {tokenizer.vocabulary}, weights {vocabulary}")
  return tokenizer


# Case, an accent, spaces, a typographic apostrophe, a line end, other scripts.
_PROBE = "It’s  the Café,\n\t№ 7: 日本 😀"


def facts(tokenizer: Tokenizer) -> list[str]:
  """What a tokenizer is, in a few lines: kind, ids, special ids, and what it loses."""
  v, rows = tokenizer.vocabulary, count(tokenizer.unused)
  special = [
    f"{kinds} {number} {token[:40]!r}" if token is not None else f"{kinds} {number}"
    for number, kinds in v.special().items()
    for token in [tokenizer.token(number)]
  ]
  without = f", {rows:,} of them without a token" if rows else ""
  lines = [f"{tokenizer.name}, {v.size:,} ids{without}; {', '.join(special)}"]
  return [*lines, *filter(None, [lost_text(tokenizer)])]


def lost_text(tokenizer: Tokenizer) -> str | None:
  """A line about a tokenizer whose ids do not give a text back; None if they do."""
  if isinstance(tokenizer, IdTokenizer):
    return None
  try:
    found = tokenizer.decode(tokenizer.encode(_PROBE))
  except UserError as error:
    return f"the tokenizer does not take every text: {error}"
  if found == _PROBE:
    return None
  back = repr(found[:200])
  return f"the tokenizer does not keep every text: {_PROBE!r} comes back as {back}"


def train_bpe(texts: Iterable[str], size: int) -> str:
  """The tokenizer.json of a byte-level BPE of `size` entries, special ones included.

  Padding, BOS, EOS and [MASK] are ids 0 to 3. The same texts give the same result.

  Args:
    texts: documents.
    size: entries, at least 4 and the 256 bytes.
  """
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=["<pad>", "<bos>", "<eos>", "<mask>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer.to_str()
