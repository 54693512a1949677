"""Prepared corpora on disk: what `prepare` writes, and how it is read.

manifest.json            settings, tokenizer, counts, sizes and SHA-256 of all files
tokenizer.json           the tokenizer (tokenizer.model of SentencePiece)
train-00000.array_record shards of the training side; validation-...: held out
train.ends.npy           where each document ends, int64

A record of tokens is the next RECORD ids of a shard, without BOS or EOS, and the bytes
of text that each id stands for; so one preparation serves every length and every cut. A
record of text is a document. array_record checks a hash of each record that is read.
"""

import bisect
import hashlib
import json
import pathlib
import struct
from collections.abc import Callable, Iterator

import grain
import numpy as np

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data.manifest import check_manifest, read_ends
from set_diffusion_jax.data.text import Text, stored_digest
from set_diffusion_jax.data.tokenizer import Tokenizer, load_tokenizer
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import Opened, file_content
from set_diffusion_jax.inputs.records import parse_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"  # of a preparation that is not finished
RECORD = 2048  # tokens
_HEAD = struct.Struct("<IBBxx")  # tokens, bytes of an id, bytes of a size


def encode_record(ids: np.ndarray, sizes: np.ndarray) -> bytes:
  """A record of ids and of the bytes that each stands for, in as few bytes as fit."""
  parts = [array.astype(np.min_scalar_type(array.max())) for array in (ids, sizes)]
  widths = [part.dtype.itemsize for part in parts]
  return _HEAD.pack(len(ids), *widths) + b"".join(
    part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts
  )


def decode_record(record: bytes) -> tuple[np.ndarray, np.ndarray]:
  """The ids of a record and the bytes that each stands for."""
  count, wide, narrow = _HEAD.unpack_from(record)
  ids = np.frombuffer(record, f"<u{wide}", count, _HEAD.size)
  return ids, np.frombuffer(record, f"<u{narrow}", count, _HEAD.size + wide * count)


class Prepared:
  """A directory that `prepare` has written.

  Attributes:
    folder: where it is.
    manifest: what `prepare` wrote down.
    where: its name in messages.
  """

  def __init__(self, folder: pathlib.Path, manifest: dict):
    self.folder, self.manifest = folder, manifest
    self.where = f'data.directory = "{folder}"'

  @classmethod
  def read(cls, folder: pathlib.Path) -> "Prepared":
    """UserError: it is not finished, or a file has not the size it should have."""
    found = cls(folder, {})
    where = f"{found.where}: its {MANIFEST} is damaged"
    try:
      content = file_content(folder / MANIFEST)
    except FileNotFoundError:
      state = f"has no {MANIFEST}; nothing was prepared there"
      if (folder / PLAN).exists():
        state = "is not finished; the same `prepare` command goes on"
      raise UserError(f"{found.where}: {state}") from None
    except OSError as error:
      raise UserError(f"{found.where}: {error.strerror}") from None
    manifest = parse_json(content, where)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
      raise UserError(
        f"{found.where}: has format version {version}, this code reads {FORMAT_VERSION}"
      )
    check_manifest(manifest, where)
    found.manifest = manifest
    found._check_sizes()
    return found

  def _check_sizes(self) -> None:
    for name, entry in self.manifest["files"].items():
      try:
        size = (self.folder / name).stat().st_size
      except OSError as error:
        raise UserError(f"{self.where}: {name}: {error.strerror}") from None
      if size != entry["bytes"]:
        raise UserError(
          f"{self.where}: {name} has {size} bytes, must have {entry['bytes']}; copy or "
          "prepare it again"
        )

  @classmethod
  def open(cls, config: DataConfig) -> "Prepared | None":
    """What data.directory holds if it is the source, checked against the other fields.

    Raises:
      UserError: it was prepared with other settings than those of the configuration.
    """
    if config.source != "prepared":
      return None
    found = cls.read(pathlib.Path(config.directory))
    settings = found.manifest["settings"]
    if settings["prompts"] != (config.cut == "prompt"):
      holds = "prompts and targets" if settings["prompts"] else "no prompts"
      raise UserError(f'data.cut = "{config.cut}": {found.where} holds {holds}')
    for name in ("detokenizer", "prompt_prefix", "target_prefix"):
      given = getattr(config, name)
      if given != settings[name]:
        raise UserError(
          f"data.{name} = {json.dumps(given)}: {found.where} was prepared with "
          f"{json.dumps(settings[name])}"
        )
    if config.streaming and found.tokenized:
      raise UserError(
        "data.streaming = true: data.directory holds tokens; set it false"
      )
    return found

  @property
  def tokenized(self) -> bool:
    """Whether it holds tokens; otherwise text."""
    return self.manifest["settings"]["kind"] == "tokens"

  def tokenizer(self, config: DataConfig) -> Tokenizer:
    """The tokenizer of the tokens; UserError if the configuration names another."""
    entry = self.manifest["settings"]["tokenizer"]
    own = load_tokenizer(str(self.folder / entry["file"]) if entry["file"] else "byte")
    self.check_tokenizer(own)
    if config.tokenizer not in ("byte", entry["given"]):
      self.check_tokenizer(load_tokenizer(config.tokenizer))
    return own

  def check_tokenizer(self, tokenizer: Tokenizer) -> None:
    """UserError unless a tokenizer makes the ids that are stored."""
    entry = self.manifest["settings"]["tokenizer"]
    same = tokenizer_identity(tokenizer) == entry["is"]
    if not same or entry["vocabulary"] > tokenizer.vocabulary.size:
      raise UserError(
        f"data.tokenizer: {self.where} was prepared with another one; prepare the text "
        "again with this one"
      )

  def tokens(self, side: str, eos: int | None) -> "PreparedTokens":
    """The tokens of a side; `eos` is to follow each document."""
    return PreparedTokens(self, side, eos)

  def texts(self, side: str) -> "PreparedTexts":
    """The documents of a side, from text."""
    if self.tokenized:
      raise UserError(f"{self.where}: holds tokens, must hold text (prepare --text)")
    return PreparedTexts(self, side)

  def digest(self, side: str) -> str:
    """SHA-256 of what a side holds: of its ids and ends, or of its documents."""
    if self.tokenized:
      return stored_digest(self.tokens(side, None))
    digest = hashlib.sha256()
    for document in self.texts(side):
      digest.update(hashlib.sha256(document.encode()).digest())
    return digest.hexdigest()

  def check(self, advance: Callable[[int], None] = lambda size: None) -> None:
    """Compares the SHA-256 of all files; UserError for the first that differs.

    Args:
      advance: is told the bytes of each file that was read.
    """
    for name, entry in self.manifest["files"].items():
      if file_digest(self.folder / name) != entry["sha256"]:
        raise UserError(f"{self.where}: {name} is damaged, its SHA-256 is another")
      advance(entry["bytes"])


def tokenizer_identity(tokenizer: Tokenizer) -> dict:
  """Equal for tokenizers that make the same ids of a text."""
  return {k: v for k, v in tokenizer.describe().items() if k in ("name", "sha256")}


def file_digest(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


class _Records:
  """The records of the shards of a side, one after another."""

  def __init__(self, prepared: Prepared, side: str):
    shards = prepared.manifest["sides"][side]["shards"]
    self._where = prepared.where
    # With the number of records in its name no file is opened before it is read.
    self._opened = Opened(prepared.folder)
    paths = [f"{self._opened.path / s['file']}[0:{s['records']}]" for s in shards]
    self._source = grain.sources.ArrayRecordDataSource(paths)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> bytes:
    try:
      return self._source[index]
    except (RuntimeError, ValueError, OSError) as error:
      reason = str(error).strip().splitlines()[0][:120]
      raise UserError(f"{self._where}: a shard is damaged ({reason})") from None


class PreparedTokens(Text):
  """The tokens of one side. Nothing is kept in memory but counts of each shard."""

  def __init__(self, prepared: Prepared, side: str, eos: int | None):
    entry = prepared.manifest["sides"][side]
    self.eos = eos
    self.ends = read_ends(prepared.folder, entry, prepared.where)
    self._ids = prepared.manifest["settings"]["tokenizer"]["vocabulary"]
    self._where = prepared.where
    self._records = _Records(prepared, side)
    self._digest = entry.get("sha256")  # not there yet while it is prepared
    self._size = prepared.manifest["settings"]["record"]
    shards = entry["shards"]
    self._token = np.cumsum([0, *(s["tokens"] for s in shards)]).tolist()
    self._record = np.cumsum([0, *(s["records"] for s in shards)]).tolist()

  def _stored(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    ids, sizes = np.empty((2, end - start), np.int32)
    done = 0
    while done < len(ids):
      place = start + done
      shard = bisect.bisect_right(self._token, place) - 1
      record, skip = divmod(place - self._token[shard], self._size)
      found = self._decoded(self._record[shard] + record)
      run, size = (x[skip : skip + len(ids) - done] for x in found)
      ids[done : done + len(run)], sizes[done : done + len(run)] = run, size
      done += len(run)
    return ids, sizes

  def _decoded(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids and sizes of a record; UserError for what is no record of this corpus."""
    try:
      ids, sizes = decode_record(self._records[number])
    except (struct.error, ValueError, TypeError):
      raise UserError(
        f"{self._where}: record {number} is no record of tokens"
      ) from None
    if not len(ids) or int(ids.max()) >= self._ids:
      raise UserError(
        f"{self._where}: record {number} has an id above {self._ids - 1}, the last one "
        "of the tokenizer"
      )
    return ids, sizes

  @property
  def stored_digest(self) -> str:
    return self._digest


class PreparedTexts:
  """The documents of one side, at random access."""

  def __init__(self, prepared: Prepared, side: str):
    self._records, self._where = _Records(prepared, side), prepared.where
    self.digest = prepared.manifest["sides"][side].get("sha256")

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> str:
    try:
      return self._records[index].decode()
    except UnicodeDecodeError as error:
      raise UserError(
        f"{self._where}: document {index} is not UTF-8 at byte {error.start}"
      ) from None

  def __iter__(self) -> Iterator[str]:
    return (self[index] for index in range(len(self)))
