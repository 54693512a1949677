"""Text to ids and back. Special ids are never produced from text."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers

from set_diffusion_jax.errors import UserError


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
  file = None

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def encode_all(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, bytes of text that each id stands for), int32, of each text."""
    for text in texts:
      ids = self.encode(text)
      yield ids, np.ones_like(ids)

  def decode(self, ids: np.ndarray, mask: str = "\N{LOW LINE}") -> str:
    """Text of ids. Special ids vanish, but [MASK] shows as `mask`."""
    return mask.join(
      bytes(chunk[chunk < 256].tolist()).decode(errors="replace")
      for chunk in _between(ids, self.vocabulary.mask)
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

  Special ids are those of its special entries with a known name. What is missing is
  filled in: BOS and EOS stand for each other, EOS for padding, and [MASK] (and EOS, if
  there is neither) get new ids at the end. A special string inside a text is text.
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

    size = self._tokenizer.get_vocab_size()
    bos, eos, pad, mask = map(find, ("bos", "eos", "pad", "mask"))
    if bos is None and eos is None:
      eos, size = size, size + 1
    eos = bos if eos is None else eos
    if mask is None:
      mask, size = size, size + 1
    return Vocabulary(
      size, eos if bos is None else bos, eos, eos if pad is None else pad, mask
    )

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return np.asarray(found.ids, np.int32)

  def encode_all(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, bytes of text that each id stands for), int32, of each text.

    A token stands for the bytes from its own start to the start of the next one, so
    that the bytes of a text's tokens add up to those of the text, whatever the
    tokenizer drops or rewrites.
    """
    for batch in _batches(texts):
      found = self._tokenizer.encode_batch(batch, add_special_tokens=False)
      for text, encoding in zip(batch, found, strict=True):
        starts = [start for start, _ in encoding.offsets]
        yield np.asarray(encoding.ids, np.int32), _bytes_of(text, starts)

  def decode(self, ids: np.ndarray, mask: str = "\N{LOW LINE}") -> str:
    """Text of ids. Special ids vanish, but [MASK] shows as `mask`."""
    size = self._tokenizer.get_vocab_size()
    return mask.join(
      self._tokenizer.decode(chunk[chunk < size].tolist())
      for chunk in _between(ids, self.vocabulary.mask)
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


Tokenizer = ByteTokenizer | JsonTokenizer | IdTokenizer


def cpus() -> int:
  """CPUs that this process may use: tokenizing is what they are needed for."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _batches(texts: Iterable[str], characters: int = 2**20) -> Iterator[list[str]]:
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


def _bytes_of(text: str, starts: list[int]) -> np.ndarray:
  """Bytes of a text from the start of each token, in characters, to the next one."""
  points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
  width = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
  byte = np.concatenate([[0], np.cumsum(width)])
  edges = np.maximum.accumulate(np.append(byte[starts], byte[-1]))
  edges[:1] = 0
  return np.diff(edges).astype(np.int32)


def _between(ids: np.ndarray, special: int) -> Iterator[np.ndarray]:
  """The runs of ids before, between and after those that are `special`."""
  ids = np.asarray(ids)
  for chunk in np.split(ids, np.flatnonzero(ids == special)):
    yield chunk[chunk != special]


@functools.lru_cache(maxsize=4)
def load_tokenizer(name: str) -> Tokenizer:
  """The tokenizer that `data.tokenizer` names: "byte", or a tokenizer.json's path."""
  if name == ByteTokenizer.name:
    return ByteTokenizer()
  path = pathlib.Path(name)
  path = path / "tokenizer.json" if path.is_dir() else path
  try:
    text = path.read_text(encoding="utf-8")
  except OSError as error:
    raise UserError(
      f'data.tokenizer = "{name}": {error.strerror}; give "byte" or a tokenizer.json'
    ) from None
  except UnicodeDecodeError:
    text = ""
  return _json_tokenizer(text, None, f'data.tokenizer = "{name}"')


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
  except (KeyError, TypeError, ValueError):
    raise UserError("checkpoint: its tokenizer is damaged") from None
  if name == ByteTokenizer.name and vocabulary == ByteTokenizer.vocabulary:
    return ByteTokenizer()
  if name == JsonTokenizer.name:
    return _json_tokenizer(text, vocabulary, "checkpoint: its tokenizer")
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
