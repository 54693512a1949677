"""Special ids of a `config.json`, and the rows of the embedding that have a token."""

import pathlib

from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.fields import Fields
from set_diffusion_jax.inputs.records import parse_json

NAMES = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")


def tokens_of(text: str, where: str) -> int | None:
  """1 + the largest id of a `tokenizer.json`; None: it does not say its ids."""
  values = parse_json(text, where)
  model = values.get("model") if isinstance(values, dict) else None
  vocabulary = model.get("vocab") if isinstance(model, dict) else None
  if isinstance(vocabulary, dict):
    ids = list(vocabulary.values())
  elif isinstance(vocabulary, list):
    ids = list(range(len(vocabulary)))
  else:
    return None
  added = values.get("added_tokens")
  for token in added if isinstance(added, list) else ():
    ids.append(token.get("id") if isinstance(token, dict) else None)
  return 1 + max((i for i in ids if type(i) is int), default=-1)


def check_tokens(path: pathlib.Path, tokens: int | None, rows: int) -> None:
  """UserError if a token has no row; `path` is that of the configuration."""
  if tokens is not None and tokens > rows:
    raise UserError(
      f"{path.parent}: tokenizer.json has the id {tokens - 1}, the embedding {rows} "
      f"rows; must have no id above {rows - 1}"
    )


def published_ids(
  fields: Fields, rows: int, padded: bool, tokens: int | None, notes: list[str]
) -> tuple[Vocabulary, int]:
  """Ids of a published file, and how many rows stand for a token.

  Args:
    fields: the file's. Those of `tokenization_config` count where it has none itself.
    rows: of the embedding.
    padded: whether `pad_vocab_size_multiple` says the number of rows; otherwise there
      may be any number of rows beyond the vocabulary, as of a pretrained Qwen3.
    tokens: 1 + the largest id of the tokenizer, if there is one.
    notes: lines are added for what is taken without being said.

  Raises:
    UserError: an id without a row, or a number of rows that does not follow.
  """
  inner = Fields(fields.path, {}, "tokenization_config.")
  if fields.get("tokenization_config") is not None:
    inner = fields.group("tokenization_config")
  said = _said(fields, inner)
  used = said.positive("vocab_size", int)
  multiple = max(1, said("pad_vocab_size_multiple", int, 1))
  if rows < used or (padded and rows != -(-used // multiple) * multiple):
    said.wrong("vocab_size", f"{rows}, the rows of the embedding")
  check_tokens(fields.path, tokens, rows)
  ids = {"mask": _id(said, "mask", rows, None, notes)}
  ids["pad"] = _id(said, "pad", rows, ids["mask"], notes)
  ids["bos"] = _id(said, "bos", rows, ids["pad"], notes)
  ids["eos"] = _id(said, "eos", rows, ids["pad"], notes)
  _check_mask(said, ids)
  inner.only({name: (value,) for name, value in said.values.items()})
  if tokens is not None:
    used = min(used, max(tokens, *(1 + i for i in ids.values())))
  _say_padding(rows, used, notes)
  return Vocabulary(size=rows, **ids), used


def _said(fields: Fields, inner: Fields) -> Fields:
  """The file's own values; where it has none, those of its `tokenization_config`."""
  values = {}
  for name in ("vocab_size", "pad_vocab_size_multiple", *NAMES):
    own, other = fields.get(name), inner.get(name)
    if own is not None or other is not None or name in fields.values:
      values[name] = other if own is None else own
  return Fields(fields.path, values)


def plain_ids(
  fields: Fields, rows: int, tokens: int | None, notes: list[str]
) -> tuple[Vocabulary, int]:
  """Ids of a plain Qwen3, and how many rows stand for a token.

  It has no [MASK]: a row without a token is taken for it, the last one.

  Raises:
    UserError: an id without a row, or no row that could be [MASK].
  """
  check_tokens(fields.path, tokens, rows)
  eos = _id(fields, "eos", rows, None, notes)
  ids = {kind: _id(fields, kind, rows, eos, notes) for kind in ("bos", "pad")}
  used = rows if tokens is None else max(tokens, *(1 + i for i in (eos, *ids.values())))
  if fields.get("mask_token_id") is None and tokens is not None and used == rows:
    fields.wrong("mask_token_id", "a special token's id, as every row has a token")
  ids["mask"] = _id(fields, "mask", rows, rows - 1, notes)
  _check_mask(fields, {**ids, "eos": eos})
  _say_padding(rows, used, notes)
  return Vocabulary(size=rows, eos=eos, **ids), used


def _check_mask(fields: Fields, ids: dict[str, int]) -> None:
  """UserError where [MASK], which is never generated, would begin or end texts."""
  for kind in ("bos", "eos"):
    if ids[kind] == ids["mask"]:
      fields.wrong("mask_token_id", f"another id than {kind}_token_id {ids[kind]}")


def _id(
  fields: Fields, kind: str, rows: int, default: int | None, notes: list[str]
) -> int:
  """An id that has a row; of several that end a text, the first."""
  name = f"{kind}_token_id"
  value = fields.get(name)
  if value is None and default is not None:
    notes.append(f"{name}: not said; id {default} is taken")
    return default
  several = value if kind == "eos" and type(value) is list else [value]
  if not several or any(type(i) is not int or not 0 <= i < rows for i in several):
    fields.wrong(name, f"an id below {rows}")
  if len(several) > 1:
    notes.append(f"{name}: {len(several)} ids; only the first, {value[0]}, ends a text")
  return several[0]


def _say_padding(rows: int, used: int, notes: list[str]) -> None:
  if rows > used:
    notes.append(f"{rows - used} rows of the embedding, from id {used}, are padding")
