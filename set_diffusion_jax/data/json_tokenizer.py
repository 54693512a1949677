"""A `tokenizer.json` as a tokenizer: ids are those of the file, specials no words."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers

from set_diffusion_jax.data.libraries import one_line, quietly
from set_diffusion_jax.data.vocabulary import (
  Runs,
  Vocabulary,
  batches,
  between,
  bytes_between,
)
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.text import utf8
from set_diffusion_jax.inputs.tokenizer_json import read_tokenizer_json

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
  `Vocabulary` says. A special string inside a text is text. Settings of the file for
  cutting and padding texts are not used.

  Args:
    text: the file.
    vocabulary: special ids and size of the weights that it is used with; None: its own.
    where: names it in messages.

  Raises:
    UserError: it cannot be used exactly: see `read_tokenizer_json`; an id beyond
      `vocabulary`; or BOS, EOS, padding or [MASK] is the id of a word.
  """

  name = "json"

  def __init__(
    self,
    text: str | bytes,
    vocabulary: Vocabulary | None = None,
    where: str = "tokenizer.json",
  ):
    self._file = file = read_tokenizer_json(text, where)
    self._where, self.text = where, file.text
    if not file.tokens:
      raise UserError(f"{where}: not a tokenizer.json (it has no tokens)")
    largest = max(file.tokens)
    self.vocabulary = vocabulary or self._find_vocabulary(largest + 1)
    if largest >= self.vocabulary.size:
      raise UserError(
        f"{where}: has {largest + 1} ids, the weights {self.vocabulary.size}"
      )
    with one_line(f"{where}: not a tokenizer.json"), quietly():
      self._load()
      words = self._special_words()
      hidden = {i for i in words if i in file.added and file.added[i].special}
      hidden -= {file.unknown}
      if hidden:
        self._load(hidden)
        words = self._special_words(hidden)
      if words:
        number, word = min(words.items())
        raise UserError(
          f"{where}: {self.vocabulary.special()[number]} is id {number}, which is that "
          f"of the text {word[:40]!r}; a special id must be no word's"
        )
      self._shown = self._find_shown()

  def _load(self, hidden: Iterable[int] = ()) -> None:
    """Builds the library's tokenizer, with the ids of the file."""
    file, hidden = self._file, set(hidden)

    def wrong() -> dict[int, str]:
      names = {i: file.name(i, hidden) for i in file.added}
      return {i: name for i, name in names.items() if made.token_to_id(name) != i}

    made = _build(file.rewritten(set(), hidden) if hidden else file.text)
    if found := wrong():
      made = _build(file.rewritten(set(found), hidden))
    for number, token in wrong().items():
      raise UserError(
        f"{self._where}: the added token {token[:40]!r} has id {number}, but the "
        f"tokenizers library gives it {made.token_to_id(token)}"
      )
    self._tokenizer = made

  def _find_vocabulary(self, size: int) -> Vocabulary:
    added = self._file.added.items()
    special = {token.content: number for number, token in added if token.special}

    def find(kind: str) -> int | None:
      return next((special[name] for name in _SPECIAL[kind] if name in special), None)

    found = map(find, ("bos", "eos", "pad", "mask"))
    return Vocabulary.completed(size, *found)

  def _special_words(self, hidden: Iterable[int] = ()) -> dict[int, str]:
    """The special ids that a text can have, each with such a text.

    Args:
      hidden: ids that were given a token that no text has.
    """
    found, file = {}, self._file
    for number, kinds in self.vocabulary.special().items():
      token = file.tokens.get(number)
      if token is None:
        continue
      if number == file.unknown:
        if kinds != "PAD":  # as Llama's: padding is known by its place
          found[number] = token
        continue
      decoded = token
      if number not in hidden:
        decoded = self._tokenizer.decode([number], skip_special_tokens=False)
      makes = (t for t in (token, decoded) if self._makes(t, number))
      part = "\N{REPLACEMENT CHARACTER}" in decoded and number not in file.added
      word = next(makes, token if part else None)
      if word is not None:
        found[number] = word
    return found

  def _find_shown(self) -> np.ndarray:
    """Which ids stand for text, bool [size]: not the special ones that no text has."""
    shown = np.zeros(self.vocabulary.size, bool)
    shown[list(self._file.tokens)] = True
    for number, token in self._file.added.items():
      shown[number] = not token.special or self._makes(token.content, number)
    v = self.vocabulary
    shown[[i for i in (v.bos, v.eos, v.mask) if i in self._file.tokens]] = False
    return shown

  @functools.cached_property
  def unused(self) -> Runs:
    """Runs of ids without a token: no text has them, and none is made of them."""
    return self.vocabulary.without(self._file.tokens)

  def token(self, number: int) -> str | None:
    """The token of an id; None where there is none."""
    return self._file.tokens.get(number)

  def _makes(self, text: str, number: int) -> bool:
    """Whether an id is among those of a text; not if the text has none."""
    try:
      return number in self._encode(text).ids
    except Exception:  # the library raises plain Exceptions
      return False

  def _encode(self, text: str):
    (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return found

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32; UserError where it has none."""
    utf8(text)
    with one_line(f"text {text[:20]!r}: data.tokenizer cannot encode it"):
      return np.asarray(self._encode(text).ids, np.int32)

  def encode_all(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, bytes of text that each id stands for), int32, of each text.

    A token stands for the bytes from its own start to the start of the next one, so
    that the bytes of a text's tokens add up to those of the text, whatever the
    tokenizer drops or rewrites.
    """
    for batch in batches(texts):
      with one_line(f"text {batch[0][:20]!r} ...: data.tokenizer cannot encode it"):
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
    ids, size = np.asarray(ids), self.vocabulary.size
    ids = ids[(ids >= 0) & (ids < size)]
    with one_line("data.tokenizer: cannot decode"):
      return mask.join(
        self._tokenizer.decode(
          chunk[self._shown[chunk]].tolist(), skip_special_tokens=False
        )
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


def _build(text: str) -> tokenizers.Tokenizer:
  made = tokenizers.Tokenizer.from_str(text)
  made.encode_special_tokens = True
  made.no_padding()
  made.no_truncation()
  return made
