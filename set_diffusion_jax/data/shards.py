"""One shard of a prepared corpus: what it is made from, and how it is written."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import prepared
from set_diffusion_jax.data.folder import file_digest
from set_diffusion_jax.data.records import encode_record
from set_diffusion_jax.data.sources import finished
from set_diffusion_jax.data.tokenizer import load_tokenizer
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import Opened, file_content
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.storage.disk import fresh_file

_OPTIONS = "group_size:1,uncompressed"  # what random access reads fastest


class Job(NamedTuple):
  """One shard to be written.

  Attributes:
    folder: where to.
    name: of the shard, such as train-00000.
    documents: as they are stored in the source, UTF-8.
    sha256: of the documents.
    config: how they are finished.
    tokenizer: for load_tokenizer; None: text is kept.
  """

  folder: pathlib.Path
  name: str
  documents: list[bytes]
  sha256: str
  config: DataConfig
  tokenizer: str | None


def publish(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
  """Writes a file beside itself and moves it into place: it is never half there."""
  with fresh_file(path, f"{path.name}.tmp") as fresh:
    write(fresh)


def write_shard(job: Job) -> dict:
  """Writes a shard unless it is there; returns its note.

  A note says what the shard was made from, and counts what it holds.
  """
  note = job.folder / f"{job.name}.json"
  if note.exists():
    found = _whole_note(note, job)
    if found is not None:
      return found
    note.unlink()
  shard = job.folder / f"{job.name}.array_record"
  documents = finished(job.config, (text.decode() for text in job.documents))
  counts: dict = {}
  if job.tokenizer is None:
    publish(shard, lambda path: counts.update(_write_texts(path, documents)))
    files = [shard]
  else:
    encoded = load_tokenizer(job.tokenizer).encode_all(documents)
    lengths: list[int] = []
    publish(shard, lambda path: counts.update(_write_tokens(path, encoded, lengths)))
    ends = ends_of(job.folder, shard.name)
    here = np.cumsum(lengths)
    publish(ends, lambda path: write_ends(path, len(lengths), [here]))
    files = [shard, ends]
  found = {
    "text_sha256": job.sha256,
    "documents": len(job.documents),
    **counts,
    "files": {path.name: entry_of(path) for path in files},
  }
  publish(note, lambda path: path.write_text(json.dumps(found)))
  return found


def _whole_note(path: pathlib.Path, job: Job) -> dict | None:
  """The note of a shard that is there as it says; None if anything is wrong with it."""
  try:
    found = parse_json(file_content(path), str(path))
    same = found["text_sha256"] == job.sha256
    return found if same and _is_whole(job.folder, found["files"]) else None
  except (UserError, OSError, KeyError, TypeError, AttributeError):
    return None


def _is_whole(folder: pathlib.Path, files: dict) -> bool:
  paths = {folder / name: entry for name, entry in files.items()}
  return all(p.exists() and entry_of(p) == entry for p, entry in paths.items())


def entry_of(path: pathlib.Path) -> dict:
  """Size and SHA-256 of a file, as the manifest has them."""
  return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
  """Of a new file; closed where all went well."""
  with Opened(path.parent) as folder:
    writer = ArrayRecordWriter(str(folder.path / path.name), _OPTIONS)
    yield writer
    writer.close()


def _write_texts(path: pathlib.Path, documents: Iterable[str]) -> dict:
  """A record for each document; returns counts."""
  records = size = 0
  with _writer(path) as writer:
    for document in documents:
      writer.write(document.encode())
      records += 1
      size += len(document.encode())
  return {"records": records, "text_bytes": size}


def _write_tokens(path: pathlib.Path, encoded, lengths: list[int]) -> dict:
  """Records of equally many tokens, the last one shorter; returns counts.

  Args:
    path: a new file.
    encoded: (ids, bytes of each) of each document.
    lengths: gets the tokens of each document.
  """
  tokens = size = records = 0
  rest: list = []  # of documents, fewer tokens than a record

  def flush(least: int) -> None:
    nonlocal records, rest
    ids, sizes = (np.concatenate(parts) for parts in zip(*rest, strict=True))
    whole = len(ids) // least * least
    for start in range(0, whole, prepared.RECORD):
      part = slice(start, min(start + prepared.RECORD, whole))
      writer.write(encode_record(ids[part], sizes[part]))
      records += 1
    rest = [(ids[whole:], sizes[whole:])]

  waiting = 0
  with _writer(path) as writer:
    for ids, sizes in encoded:
      lengths.append(len(ids))
      tokens += len(ids)
      size += int(sizes.sum())
      rest.append((ids, sizes))
      waiting += len(ids)
      if waiting >= 64 * prepared.RECORD:
        flush(prepared.RECORD)
        waiting = len(rest[0][0])
    if waiting:
      flush(1)
  return {"records": records, "tokens": tokens, "text_bytes": size}


def write_ends(path: pathlib.Path, total: int, parts: Iterable[np.ndarray]) -> None:
  """Where each of `total` documents ends, from where those of each part end."""
  header = {"descr": "<i8", "fortran_order": False, "shape": (total,)}
  with path.open("wb") as file:
    np.lib.format.write_array_header_1_0(file, header)
    start = 0
    for part in parts:
      file.write((part + start).astype("<i8").tobytes())
      start += int(part[-1])


def ends_of(output: pathlib.Path, shard: str) -> pathlib.Path:
  """Where the ends of a shard's documents are until all shards are done."""
  return (output / shard).with_suffix(".ends.npy")
