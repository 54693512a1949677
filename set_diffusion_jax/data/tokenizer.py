"""Text to ids and back. Special ids are never produced from text."""

import base64
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers

from set_diffusion_jax.data.pieces import STORED, PieceTokenizer
from set_diffusion_jax.data.vocabulary import (
  Vocabulary,
  batches,
  between,
  bytes_between,
  utf8,
)
from set_diffusion_jax.errors import UserError


class ByteTokenizer:
  """UTF-8 bytes as ids 0..255; BOS, EOS, padding and [MASK] follow."""

  name = "byte"
  vocabulary = Vocabulary(size=260, bos=256, eos=257, pad=258, mask=259)
  file = None

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


# Names under which published tokenizers keep their special entries.
_SPECIAL = {
  "mask": ("[MASK]", "<mask>", "<|mask|>", "<|MASK|>"),
  "pad": ("[PAD]", "<pad>", "<|pad|>"),
  "bos": ("[CLS]", "<s>", "<bos>", "<|bos|>"),
  "eos": ("[SEP]", "</s>", "<eos>", "<|eos|>", "<|endoftext|>"),
}


class JsonTokenizer:
  """A `tokenizer.json` of the tokenizers library, such as GPT-2's, BERT's or Qwen3's.

  Special ids are those of its special entries with a known name, completed as
  `Vocabulary` says. A special string inside a text is text.
  """

  name = "json"

  def __init__(self, text: str, vocabulary: Vocabulary | None = None):
    self.text = text
    self._tokenizer = tokenizers.Tokenizer.from_str(text)
    self._tokenizer.encode_special_tokens = True
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self.vocabulary = vocabulary or self._find_vocabulary()

  def _find_vocabulary(self) -> Vocabulary:
    special = {
      token.content: number
      for number, token in self._tokenizer.get_added_tokens_decoder().items()
      if token.special
    }

    def find(kind: str) -> int | None:
      return next((special[name] for name in _SPECIAL[kind] if name in special), None)

    found = map(find, ("bos", "eos", "pad", "mask"))
    return Vocabulary.completed(self._tokenizer.get_vocab_size(), *found)

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    utf8(text)
    (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return np.asarray(found.ids, np.int32)

  def encode_all(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, bytes of text that each id stands for), int32, of each text.

    A token stands for the bytes from its own start to the start of the next one, so
    that the bytes of a text's tokens add up to those of the text, whatever the
    tokenizer drops or rewrites.
    """
    for batch in batches(texts):
      found = self._tokenizer.encode_batch(batch, add_special_tokens=False)
      for text, encoding in zip(batch, found, strict=True):
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        width = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
        byte = np.concatenate([[0], np.cumsum(width)])
        starts = byte[[start for start, _ in encoding.offsets]]
        sizes = bytes_between(starts, int(byte[-1]))
        yield np.asarray(encoding.ids, np.int32), sizes

  def decode(self, ids: np.ndarray, mask: str = "\N{LOW LINE}") -> str:
    """Text of ids. Special ids vanish, but [MASK] shows as `mask`."""
    size = self._tokenizer.get_vocab_size()
    return mask.join(
      self._tokenizer.decode(chunk[chunk < size].tolist())
      for chunk in between(ids, self.vocabulary.mask)
    )

  @property
  def file(self) -> tuple[str, bytes]:
    """Name and content of the file that it is."""
    return "tokenizer.json", self.text.encode()

  def describe(self) -> dict:
    """What a checkpoint stores; see `restore_tokenizer`."""
    return {
      "name": self.name,
      **dataclasses.asdict(self.vocabulary),
      "sha256": hashlib.sha256(self.text.encode()).hexdigest(),
      "files": {"tokenizer.json": self.text},
    }


class IdTokenizer:
  """Ids without a text: for weights that came without their tokenizer."""

  name = "ids"
  file = None

  def __init__(self, vocabulary: Vocabulary):
    self.vocabulary = vocabulary

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
    return {"name": self.name, **dataclasses.asdict(self.vocabulary)}


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
    content = path.read_bytes()
  except OSError as error:
    raise UserError(
      f'{where}: {error.strerror}; give "byte", a tokenizer.json or a *.model'
    ) from None
  if path.suffix == ".model":
    return _piece_tokenizer(content, None, where)
  return _json_tokenizer(content.decode(errors="replace"), None, where)


def _piece_tokenizer(model: bytes, vocabulary, where: str) -> PieceTokenizer:
  try:
    return PieceTokenizer(model, vocabulary)
  except ValueError:
    raise UserError(f"{where}: not a SentencePiece model") from None


def _json_tokenizer(text: str, vocabulary, where: str) -> JsonTokenizer:
  try:
    return JsonTokenizer(text, vocabulary)
  except Exception as error:  # the library raises plain Exceptions
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(f"{where}: not a tokenizer.json ({reason})") from None


def restore_tokenizer(description: dict) -> Tokenizer:
  """The tokenizer of a checkpoint's `describe()`; UserError if it is damaged."""
  try:
    names = [field.name for field in dataclasses.fields(Vocabulary)]
    vocabulary = Vocabulary(**{name: int(description[name]) for name in names})
    name = description["name"]
    files = description.get("files", {})
    text = files["tokenizer.json"] if name == JsonTokenizer.name else None
    model = b""
    if name == PieceTokenizer.name:
      model = base64.b64decode(files[STORED], validate=True)
  except (KeyError, TypeError, ValueError):
    raise UserError("checkpoint: its tokenizer is damaged") from None
  if name == ByteTokenizer.name and vocabulary == ByteTokenizer.vocabulary:
    return ByteTokenizer()
  if name == JsonTokenizer.name:
    return _json_tokenizer(text, vocabulary, "checkpoint: its tokenizer")
  if name == PieceTokenizer.name:
    return _piece_tokenizer(model, vocabulary, "checkpoint: its tokenizer")
  if name == IdTokenizer.name:
    return IdTokenizer(vocabulary)
  raise UserError(f"checkpoint: its tokenizer {name!r} is not known here")


def with_vocabulary(tokenizer: Tokenizer, vocabulary: Vocabulary) -> Tokenizer:
  """A tokenizer for weights that have special ids and a size of their own.

  Raises:
    UserError: it has other ids than the weights.
  """
  if isinstance(tokenizer, JsonTokenizer):
    found = tokenizer.vocabulary
    if found.size - (found.mask == found.size - 1) > vocabulary.size:
      raise UserError(
        f"data.tokenizer: has {found.size} ids, the weights {vocabulary.size}"
      )
    return JsonTokenizer(tokenizer.text, vocabulary)
  if tokenizer.vocabulary != vocabulary:
    raise UserError(f"data.tokenizer: has {tokenizer.vocabulary}, weights {vocabulary}")
  return tokenizer


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
