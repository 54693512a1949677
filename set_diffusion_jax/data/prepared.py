"""Prepared corpora: what `prepare` writes to a disk, and how it is read.

manifest.json            settings, tokenizer, counts, sizes and SHA-256 of all files
tokenizer.json           the tokenizer (tokenizer.model of SentencePiece)
train-00000.array_record shards of the training side; validation-...: held out
train.ends.npy           where each document ends, int64

A record of tokens is the next RECORD ids of a shard, without BOS or EOS, and the bytes
of text that each id stands for; so one preparation serves every length and every cut. A
record of text is a document. array_record checks a hash of each record that is read.
A directory that was copied to a bucket is read there.
"""

import bisect
import concurrent.futures
import hashlib
import json
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data.folder import Folder
from set_diffusion_jax.data.manifest import check_manifest, read_ends
from set_diffusion_jax.data.records import REQUESTS, Records, Shared, decode_record
from set_diffusion_jax.data.text import Text, stored_digest
from set_diffusion_jax.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.storage import places

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"  # of a preparation that is not finished
RECORD = 2048  # tokens


class Prepared:
  """A directory that `prepare` has written.

  Attributes:
    folder: where it is, on a disk or in a bucket.
    manifest: what `prepare` wrote down.
    where: its name in messages.
  """

  def __init__(self, folder: pathlib.Path, manifest: dict):
    self.folder, self.manifest = folder, manifest
    self.where = f'data.directory = "{folder}"'
    self._files = Folder(folder, self.where)

  @classmethod
  def read(cls, folder: pathlib.Path) -> "Prepared":
    """UserError: it is not finished, or a file has not the size it should have.

    A bucket that cannot be read is told here, too.
    """
    found = cls(folder, {})
    where = f"{found.where}: its {MANIFEST} is damaged"
    found._files.reach()
    try:
      content = found._files.content(MANIFEST)
    except FileNotFoundError:
      state = f"has no {MANIFEST}; nothing was prepared there"
      if found._files.has(PLAN):
        state = "is not finished; the same `prepare` command goes on"
      raise UserError(f"{found.where}: {state}") from None
    except OSError as error:
      raise UserError(f"{found.where}: {error.strerror or error}") from None
    manifest = parse_json(content, where)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
      raise UserError(
        f"{found.where}: has format version {version}, this code reads {FORMAT_VERSION}"
      )
    check_manifest(manifest, where)
    found.manifest = manifest
    found._files.check_sizes(manifest["files"])
    return found

  @classmethod
  def open(cls, config: DataConfig) -> "Prepared | None":
    """What data.directory holds if it is the source, checked against the other fields.

    Raises:
      UserError: it was prepared with other settings than those of the configuration.
    """
    if config.source != "prepared":
      return None
    named = places.path if places.is_remote(config.directory) else pathlib.Path
    found = cls.read(named(config.directory))
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
    file = entry["file"]
    if file and self._files.remote:
      content = self._files.content(file)
      own = tokenizer_of(content, file, f"{self.where}: {file}")
    else:
      own = load_tokenizer(str(self.folder / file) if file else "byte")
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
      if self._files.digest(name) != entry["sha256"]:
        raise UserError(f"{self.where}: {name} is damaged, its SHA-256 is another")
      advance(entry["bytes"])

  def ends(self, side: str) -> np.ndarray:
    """Where each document of a side of tokens ends: int64 [documents].

    Of a directory on a disk it stays there until it is used.
    """
    entry = self.manifest["sides"][side]
    content = self._files.content(entry["ends"]) if self._files.remote else None
    return read_ends(self.folder, entry, self.where, content)

  def records(self, side: str) -> Records:
    """The records of a side."""
    shards = self.manifest["sides"][side]["shards"]
    return Records(self.folder, shards, self.where)


def tokenizer_identity(tokenizer: Tokenizer) -> dict:
  """Equal for tokenizers that make the same ids of a text."""
  return {k: v for k, v in tokenizer.describe().items() if k in ("name", "sha256")}


class PreparedTokens(Text):
  """The tokens of one side. Nothing is kept in memory but counts of each shard."""

  def __init__(self, prepared: Prepared, side: str, eos: int | None):
    entry = prepared.manifest["sides"][side]
    self.eos = eos
    self.ends = prepared.ends(side)
    self._ids = prepared.manifest["settings"]["tokenizer"]["vocabulary"]
    self._where = prepared.where
    records = prepared.records(side)
    self._records: Records | Shared = records
    self._pool = None
    if records.remote:
      self._records = Shared(records)
      self._pool = concurrent.futures.ThreadPoolExecutor(REQUESTS, "records")
    self._digest = entry.get("sha256")  # not there yet while it is prepared
    self._size = prepared.manifest["settings"]["record"]
    shards = entry["shards"]
    self._token = np.cumsum([0, *(s["tokens"] for s in shards)]).tolist()
    self._record = np.cumsum([0, *(s["records"] for s in shards)]).tolist()

  def read_each(self, act: Callable, items: Iterable) -> Iterator:
    return (map if self._pool is None else self._pool.map)(act, items)

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
    self._records, self._where = prepared.records(side), prepared.where
    self.digest = prepared.manifest["sides"][side].get("sha256")

  @property
  def remote(self) -> bool:
    """Whether each document is a request to a bucket."""
    return self._records.remote

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
