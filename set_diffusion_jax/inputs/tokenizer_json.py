"""A `tokenizer.json` from outside: which ids it gives, read without its library."""

import base64
import binascii
import json
from typing import NamedTuple

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.inputs.vocabularies import check_charsmap, check_id

_KINDS = {dict: "an object", list: "a list", str: "a text"}


class AddedToken(NamedTuple):
  """A token besides those of the model: a text that is cut out before it."""

  content: str
  special: bool


class TokenizerFile(NamedTuple):
  """What a `tokenizer.json` says.

  Attributes:
    text: the file.
    value: its JSON value.
    tokens: id -> token, of the model and of what is added to it.
    added: id -> added token.
    unknown: id of the token for what has no other; None: there is none.
  """

  text: str
  value: dict
  tokens: dict[int, str]
  added: dict[int, AddedToken]
  unknown: int | None

  def name(self, number: int, hidden: set[int]) -> str:
    """The token of an id; of hidden ones between characters that no text has."""
    token = self.tokens[number]
    return f"\ufdd0{token}\ufdd1" if number in hidden else token

  def rewritten(self, moved: set[int], hidden: set[int]) -> str:
    """The file with other entries for some added tokens.

    Args:
      moved: ids of added tokens that the model's entries are to have as well: the
        library numbers added tokens on its own, but takes an id that it finds there.
      hidden: ids of special tokens whose text is to be one that no text contains.
    """
    name = lambda i: self.name(i, hidden)
    model = dict(self.value["model"])
    if isinstance(model["vocab"], dict):
      ids = {*model["vocab"].values(), *moved}
      model["vocab"] = {name(i): i for i in sorted(ids)}
    else:
      entries = enumerate(model["vocab"])
      model["vocab"] = [[name(i), *entry[1:]] for i, entry in entries]
    added = [
      {**entry, "content": name(entry["id"])}
      for entry in self.value.get("added_tokens") or []
      if entry["id"] in self.added
    ]
    return json.dumps({**self.value, "model": model, "added_tokens": added})


def read_tokenizer_json(text: str | bytes, where: str) -> TokenizerFile:
  """Reads and checks the ids of a `tokenizer.json`.

  Raises:
    UserError: it is no JSON of this form, an id is none (see `check_id`), two tokens
      have one id or one token has two, or a text would have no fixed ids.
  """
  value = parse_json(text, where)
  if isinstance(text, bytes):
    text = text.decode("utf-8-sig")
  value = _typed(value, dict, "it", where)
  model = _typed(value.get("model"), dict, "model", where)
  tokens = _model_tokens(model, where)
  added = _added_tokens(value.get("added_tokens") or [], tokens, where)
  if model.get("dropout"):
    raise UserError(
      f"{where}: model.dropout = {model['dropout']!r}: ids would be drawn; must be null"
    )
  _check_normalizers(value.get("normalizer"), where)
  tokens |= {i: token.content for i, token in added.items()}
  return TokenizerFile(
    text.removeprefix("\ufeff"), value, tokens, added, _unknown(model)
  )


def _typed(value: object, kind: type, name: str, where: str):
  if not isinstance(value, kind):
    raise UserError(f"{where}: not a tokenizer.json ({name} must be {_KINDS[kind]})")
  return value


def _model_tokens(model: dict, where: str) -> dict[int, str]:
  vocab = model.get("vocab")
  if isinstance(vocab, list):  # a Unigram model: [token, score] by id
    if vocab:
      check_id(len(vocab) - 1, "the last entry of model.vocab", where)
    entries = [_typed(entry, list, "an entry of model.vocab", where) for entry in vocab]
    token = lambda entry: _typed(entry[0] if entry else None, str, "a token", where)
    return {i: token(entry) for i, entry in enumerate(entries)}
  tokens: dict[int, str] = {}
  for token, number in _typed(vocab, dict, "model.vocab", where).items():
    check_id(number, f"the token {token[:40]!r}", where)
    if tokens.setdefault(number, token) != token:
      _two(tokens[number], token, number, where)
  return tokens


def _added_tokens(
  entries: object, tokens: dict[int, str], where: str
) -> dict[int, AddedToken]:
  ids = {token: number for number, token in tokens.items()}
  added: dict[int, AddedToken] = {}
  for entry in _typed(entries, list, "added_tokens", where):
    _typed(entry, dict, "an added token", where)
    content = _typed(entry.get("content"), str, "an added token's content", where)
    number = check_id(entry.get("id"), f"the added token {content[:40]!r}", where)
    if not content:  # the library leaves it out
      continue
    if tokens.get(number, content) != content:
      _two(tokens[number], content, number, where)
    found = AddedToken(content, entry.get("special") is True)
    if added.setdefault(number, found).content != content:
      _two(added[number].content, content, number, where)
    if ids.setdefault(content, number) != number:
      raise UserError(
        f"{where}: the token {content[:40]!r} has two ids, {ids[content]} and {number}"
      )
  return added


def _two(first: str, second: str, number: int, where: str):
  pair = f"{first[:40]!r} and {second[:40]!r}"
  raise UserError(f"{where}: the tokens {pair} both have id {number}")


def _unknown(model: dict) -> int | None:
  vocab, unknown = model["vocab"], model.get("unk_id")
  if isinstance(vocab, dict):
    token = model.get("unk_token")
    unknown = vocab.get(token) if isinstance(token, str) else None
  return unknown if type(unknown) is int else None


def _check_normalizers(value: object, where: str) -> None:
  """UserError for a damaged compiled normaliser, at any place."""
  if not isinstance(value, dict):
    return
  for inner in value.get("normalizers") or []:
    _check_normalizers(inner, where)
  compiled = value.get("precompiled_charsmap")
  if isinstance(compiled, str):
    try:
      blob = base64.b64decode(compiled, validate=True)
    except (binascii.Error, ValueError):
      blob = b""
    check_charsmap(blob, where)
