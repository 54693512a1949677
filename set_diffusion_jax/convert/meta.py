"""What a step of a work directory says about itself, checked field by field."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from set_diffusion_jax.config import WEIGHTS, Config
from set_diffusion_jax.convert import layout
from set_diffusion_jax.convert.generation import GENERATION
from set_diffusion_jax.convert.tensors import WEIGHT_DTYPES
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.data.pieces import STORED
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import named_texts, shown

# Text files that travel with a checkpoint, both ways: no other name is written.
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "chat_template.jinja",
)
_FILES = (*TOKENIZER_FILES, GENERATION, STORED)
_NOTES, _FIGURES = 10_000, 1000  # lines, entries
_IDS, _LARGEST = 2**31 - 1, 2**53  # of tokens, and of any number of a setting


class Meta(NamedTuple):
  """A checkpoint's account of itself, of the right types.

  Attributes:
    config: with the range of noise levels that training ended with.
    vocabulary: ids; `size` counts the rows of the embedding.
    used_ids: rows that stand for a token.
    tokenizer: its kind, as `data.restore_tokenizer` knows it.
    files: text files by name.
    weights: "ema" or "raw", where the source of a conversion said so.
    notes: what the source of a conversion did not say.
    buffers: published arrays that are no parameters, by canonical name.
    published: a published `config.json`, if there was one.
    qwen3: the plain Qwen3 configuration that came with it.
    evaluation: figures of these weights.
    weights_from: where the weights come from.
    versions: of what computed them.
  """

  config: Config
  vocabulary: Vocabulary
  used_ids: int
  tokenizer: str
  files: dict[str, str]
  weights: str | None
  notes: list[str]
  buffers: dict[str, np.ndarray]
  published: dict | None
  qwen3: dict | None
  evaluation: dict | None
  weights_from: dict[str, object]
  versions: dict[str, str]


def read_meta(meta: Mapping, where: str) -> Meta:
  """The checked account of a step's `meta`.

  Args:
    meta: its JSON object.
    where: names the step in messages.

  Raises:
    UserError: a field is missing or of another type, file names are none that a
      checkpoint has, or an id is beyond the vocabulary.
  """
  tokenizer = _object(meta, "tokenizer", where)
  if not tokenizer or not _object(meta, "config", where):
    raise UserError(f"{where}: its meta names no configuration or tokenizer")
  values = _as_trained(meta, where)
  for group in (values, *(v for v in values.values() if isinstance(v, dict))):
    for name, value in group.items():
      if type(value) is int and abs(value) > _LARGEST:
        _wrong(where, f"config: {shown(name)}", value, f"at most {_LARGEST}")
  try:
    config = Config.from_dict(values)
  except (UserError, ArithmeticError, TypeError, ValueError) as error:
    raise UserError(f"{where}: config: {shown(str(error), 400)}") from None
  vocabulary = _vocabulary(tokenizer, where)
  used = tokenizer.get("used_ids", vocabulary.size)
  if type(used) is not int or not 0 < used <= vocabulary.size:
    _wrong(where, "tokenizer.used_ids", used, f"a number from 1 to {vocabulary.size}")
  name = tokenizer.get("name")
  if not isinstance(name, str):
    _wrong(where, "tokenizer.name", name, "a text")
  files = named_texts(tokenizer.get("files"), f"{where}: tokenizer.files", _FILES)
  more = named_texts(meta.get("files"), f"{where}: files", _FILES)
  if files.keys() & more.keys():
    twice = min(files.keys() & more.keys())
    raise UserError(f"{where}: files: {twice} is there twice; must be once")
  source = _object(meta, "source", where)
  kind = source.get("weights")
  if kind is not None and kind not in WEIGHTS:
    _wrong(where, "source.weights", kind, f"one of {', '.join(WEIGHTS)}")
  return Meta(
    config=config,
    vocabulary=vocabulary,
    used_ids=used,
    tokenizer=name,
    files={**files, **more},
    weights=kind,
    notes=_notes(source.get("notes"), where),
    buffers=_buffers(_object(meta, "buffers", where), config, where),
    published=_object(meta, "published", where) or None,
    qwen3=_object(meta, "qwen3", where) or None,
    evaluation=figures(meta.get("evaluation"), f"{where}: evaluation"),
    weights_from=_shown_values(_object(meta, "weights_from", where)),
    versions=_versions(_object(meta, "versions", where), where),
  )


def _wrong(where: str, name: str, value: object, right: str):
  """Raises: the field's name, its value, what would be right."""
  found = str(value)[:40] if type(value) in (int, float) else shown(value, 40)
  raise UserError(f"{where}: {name} = {found}; must be {right}")


def _object(group: Mapping, name: str, where: str) -> dict:
  """A JSON object in a group; an empty one where there is none."""
  value = group.get(name)
  if value is None:
    return {}
  if not isinstance(value, dict):
    _wrong(where, name, value, "an object")
  return value


def _as_trained(meta: Mapping, where: str) -> dict:
  """The configuration with the range of noise levels that training ended with."""
  config, schedule = meta["config"], _object(meta, "schedule", where)
  mask = _object(schedule, "mask", where)
  if not mask:
    return config
  levels = {name: mask.get(name) for name in ("t_min", "t_max")}
  return {**config, "corruption": {**_object(config, "corruption", where), **levels}}


def _vocabulary(tokenizer: Mapping, where: str) -> Vocabulary:
  ids = {name: tokenizer.get(name) for name in Vocabulary.__dataclass_fields__}
  size = ids["size"]
  for name, value in ids.items():
    below = _IDS if name == "size" else size
    if type(value) is not int or not 0 <= value < below or not size:
      _wrong(where, f"tokenizer.{name}", value, f"a number below {below}")
  if ids["mask"] in (ids["bos"], ids["eos"]):
    _wrong(where, "tokenizer.mask", ids["mask"], "another id than those of bos and eos")
  return Vocabulary(**ids)


def _notes(notes: object, where: str) -> list[str]:
  """Lines for the user, each in one line."""
  if notes is None:
    return []
  if not isinstance(notes, list) or len(notes) > _NOTES:
    _wrong(where, "source.notes", notes, f"a list of at most {_NOTES} texts")
  for note in notes:
    if not isinstance(note, str):
      _wrong(where, "source.notes", note, "a list of texts")
  return [shown(note, 1000) for note in notes]


def _buffers(stored: Mapping, config: Config, where: str) -> dict[str, np.ndarray]:
  """The rotary frequencies of a published DiT, the only array that is stored so."""
  found = {}
  for name, entry in stored.items():
    if name != layout.FREQUENCIES or config.model.backbone != "dit":
      raise UserError(f"{where}: buffers: {shown(name)} is none of this model")
    shape = [config.model.head_width // 2]
    kinds = ", ".join(WEIGHT_DTYPES)
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(dtype, str) or dtype not in WEIGHT_DTYPES:
      _wrong(where, f"buffers.{name}.dtype", dtype, f"one of {kinds}")
    digits, size = entry.get("bytes"), shape[0] * WEIGHT_DTYPES[dtype].itemsize
    if entry.get("shape") != shape:
      _wrong(where, f"buffers.{name}.shape", entry.get("shape"), str(shape))
    if not isinstance(digits, str) or len(digits) != 2 * size:
      _wrong(where, f"buffers.{name}.bytes", digits, f"{size} bytes in hexadecimal")
    try:
      raw = bytes.fromhex(digits)
    except ValueError:
      _wrong(where, f"buffers.{name}.bytes", digits, f"{size} bytes in hexadecimal")
    values = np.frombuffer(raw, WEIGHT_DTYPES[dtype])
    layout.check_frequencies(values, config.model, where)
    found[name] = values
  return found


def figures(stored: object, where: str) -> dict | None:
  """Figures of an evaluation: finite numbers and short texts, by name.

  Raises:
    UserError: something else, or nested more than twice.
  """
  if stored is None:
    return None
  if not isinstance(stored, dict) or len(stored) > _FIGURES:
    raise UserError(f"{where} is {shown(stored)}; must be numbers by name")
  return {shown(name): _figure(value, where, 2) for name, value in stored.items()}


def _figure(value: object, where: str, depth: int):
  if value is None or isinstance(value, bool | int):
    return value
  if isinstance(value, float) and math.isfinite(value):
    return value
  if isinstance(value, str):
    return shown(value, 1000)
  if isinstance(value, dict) and len(value) <= _FIGURES and depth:
    return {shown(n): _figure(v, where, depth - 1) for n, v in value.items()}
  raise UserError(f"{where} has {shown(str(value), 40)}; must be numbers by name")


def _shown_values(group: Mapping) -> dict[str, object]:
  """Texts of a group, each in one line; what is no text is left as it is."""
  return {
    shown(name): shown(value, 1000) if isinstance(value, str) else value
    for name, value in group.items()
  }


def _versions(versions: Mapping, where: str) -> dict[str, str]:
  for name, version in versions.items():
    if not isinstance(version, str):
      _wrong(where, f"versions.{shown(name)}", version, "a text")
  return {shown(name): shown(version) for name, version in versions.items()}
