"""The manifest of a prepared corpus: checked before anything of it is believed."""

import pathlib
from collections.abc import Callable

import numpy as np

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.arrays import read_array

_KINDS = ("text", "tokens")
_SIDES = ("train", "validation")
_PIECE = 2**20  # documents whose ends are checked at a time


class _Wrong(Exception):
  """What is wrong, and with which entry."""


def check_manifest(manifest: dict, where: str) -> None:
  """UserError unless a manifest has all that is read of it, as it can be.

  Each file that it names must be one of the directory itself.

  Args:
    manifest: of this code's format version.
    where: names it in messages.
  """
  try:
    _check(manifest)
  except _Wrong as wrong:
    raise UserError(f"{where}: {wrong}; prepare the text again") from None


def _check(manifest: dict) -> None:
  settings = _entry(manifest, "settings", _table)
  tokens = _entry(settings, "kind", lambda v: v in _KINDS) == "tokens"
  _entry(settings, "prompts", lambda v: isinstance(v, bool))
  for name in ("source", "detokenizer", "prompt_prefix", "target_prefix"):
    _entry(settings, name, _text)
  _entry(settings, "record", lambda v: _whole(v) and v)
  files = _entry(manifest, "files", _table)
  for name, entry in files.items():
    if not _bare(name):
      raise _Wrong(f"files: {name[:80]!r} is no name of a file of the directory")
    _entry(entry, "bytes", _whole)
    _entry(entry, "sha256", _text)

  def known(name: object) -> bool:
    return isinstance(name, str) and name in files

  if tokens:
    tokenizer = _entry(settings, "tokenizer", _table)
    _entry(tokenizer, "is", _table)
    _entry(tokenizer, "given", _text)
    _entry(tokenizer, "vocabulary", _whole)
    _entry(tokenizer, "file", lambda v: v is None or known(v))
  sides = _entry(manifest, "sides", _table)
  for side in _SIDES:
    _check_side(_entry(sides, side, _table), tokens, known)
  for source in _entry(manifest, "source_files", lambda v: isinstance(v, list)):
    _entry(source, "file", _text)


def _check_side(side: dict, tokens: bool, known: Callable[[object], bool]) -> None:
  counts = ["documents", "text_bytes", *(["tokens"] if tokens else [])]
  shards = _entry(side, "shards", lambda v: isinstance(v, list) and v)
  for shard in shards:
    _entry(shard, "file", known)
    for name in (*counts, "records"):
      _entry(shard, name, _whole)
  for name in counts:
    total = sum(shard[name] for shard in shards)
    _entry(side, name, lambda v, total=total: _whole(v) and v == total)
  _entry(side, "sha256", _text)
  if tokens:
    _entry(side, "ends", known)


def _entry(table: object, name: str, holds: Callable[[object], object]):
  """An entry of a table; _Wrong unless it is there and is as it should be."""
  if not isinstance(table, dict) or name not in table:
    raise _Wrong(f"{name} is missing")
  if not holds(table[name]):
    raise _Wrong(f"{name} cannot be {str(table[name])[:80]!r}")
  return table[name]


def _whole(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _text(value: object) -> bool:
  return isinstance(value, str)


def _table(value: object) -> bool:
  return isinstance(value, dict)


def _bare(name: str) -> bool:
  return pathlib.PurePath(name).name == name and "\0" not in name


def read_ends(
  folder: pathlib.Path, entry: dict, where: str, content: bytes | None = None
) -> np.ndarray:
  """Where each document of a side ends, int64, on disk until it is used.

  Args:
    folder: of the prepared corpus.
    entry: of the side, in its manifest.
    where: names the folder in messages.
    content: of the file, where that has been read from a bucket.

  Raises:
    UserError: it cannot be so.
  """
  where = f"{where}: {entry['ends']}"
  source = folder / entry["ends"] if content is None else content
  ends = read_array(source, where)
  if ends.dtype != np.dtype("<i8") or ends.shape != (entry["documents"],):
    right = f"must be int64 [{entry['documents']}]"
    raise UserError(f"{where}: is {ends.dtype} {list(ends.shape)}, {right}")
  last = 0
  for start in range(0, len(ends), _PIECE):
    piece = ends[start : start + _PIECE]
    if (np.diff(piece, prepend=last) < 0).any():
      raise UserError(f"{where}: a document ends before it starts")
    last = int(piece[-1])
  tokens = sum(shard["tokens"] for shard in entry["shards"])
  if last != tokens:
    raise UserError(f"{where}: ends at {last}, must end at {tokens}")
  return np.asarray(ends)
