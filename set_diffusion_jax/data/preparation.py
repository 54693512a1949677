"""`prepare`: a corpus is tokenized once, into a directory of array_record shards.

One process reads documents in order and groups them into shards by their size; others
tokenize and write one shard each. What a shard holds depends on the text and the
settings alone, so that the result is the same however many processes there are and
however often they are interrupted: a shard counts as done when its note is there, which
is written last and says which text it was made from. See `prepared` for the format.
"""

import collections
import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import prepared
from set_diffusion_jax.data.shards import (
  Job,
  ends_of,
  entry_of,
  publish,
  write_ends,
  write_shard,
)
from set_diffusion_jax.data.sources import SIDES, Source
from set_diffusion_jax.data.tokenizer import load_tokenizer
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import file_content
from set_diffusion_jax.inputs.records import parse_json

SHARD = 32 * 2**20  # characters of text
# The fields of the configuration that decide what is stored.
_FIELDS = """source train_path validation_path validation_fraction validation_documents
field prompt_field prompt_prefix target_prefix name directory train_split
validation_split detokenizer""".split()


def prepare(
  config: DataConfig,
  output: pathlib.Path,
  text: bool = False,
  workers: int = 1,
  shard: int = SHARD,
  begin: Callable[[int], Callable[[int], None]] = lambda total: lambda count: None,
) -> dict:
  """Writes the corpus of a configuration to a directory; returns its manifest.

  Goes on where it was interrupted. Both sides are written, as `Source` gives them.

  Args:
    config: says where the text is and which tokenizer is used.
    output: a new directory, or one where the same preparation was interrupted.
    text: keep the text as it is, for data.streaming, instead of tokens.
    workers: processes that tokenize. With more than one, a script that calls this
      needs `if __name__ == "__main__"`.
    shard: characters of text of a shard, about.
    begin: is told the number of documents; what it returns is told how many are done.

  Raises:
    UserError: the text cannot be read, or the directory not be written or is another's.
  """
  try:
    return _prepare(config, output, text, workers, shard, begin)
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    raise UserError(
      f"--output={output}: {reason[:160]}; the same command goes on from here"
    ) from None


def _prepare(config, output, text, workers, shard, begin) -> dict:
  source = Source(config, from_hub=True)
  tokenizer = None if text else load_tokenizer(config.tokenizer)
  file = tokenizer.file if tokenizer else None
  settings = {
    "kind": "text" if text else "tokens",
    **{name: getattr(config, name) for name in _FIELDS},
    "prompts": config.cut == "prompt",
    "shard": shard,
    "record": prepared.RECORD,
  }
  if tokenizer:
    settings["tokenizer"] = {
      "is": prepared.tokenizer_identity(tokenizer),
      "given": config.tokenizer,
      "vocabulary": tokenizer.vocabulary.size,
      "file": file[0] if file else None,
    }
  if (output / prepared.MANIFEST).exists():
    found = prepared.Prepared.read(output).manifest
    _compare(output, found["settings"], settings)
    _tidy(output, found)
    return found
  counts = {side: source.count(side) for side in SIDES}  # reads all: it is sound
  for side, count in counts.items():
    if not count:
      raise UserError(f"data.validation_fraction: leaves no text for {side}")
  advance = begin(sum(counts.values()))
  _claim(output, settings)
  name = None
  if tokenizer:
    name = "byte"
    if file:
      publish(output / file[0], lambda path: path.write_bytes(file[1]))
      name = str(output / file[0])
  notes: dict[str, list[dict]] = {side: [] for side in SIDES}
  jobs = (
    Job(output, f"{side}-{number:05d}", documents, digest, config, name)
    for side in SIDES
    for number, (documents, digest) in enumerate(_groups(source, side, shard))
  )
  for job, note in _run(jobs, workers):
    notes[job.name.split("-")[0]].append(note)
    advance(note["documents"])
  return _finish(output, settings, source.files(), notes)


def _claim(output: pathlib.Path, settings: dict) -> None:
  """Makes a directory that of this preparation, or checks that it is."""
  plan = output / prepared.PLAN
  if plan.exists():
    where = f"--output={output}: {prepared.PLAN}"
    try:
      found = parse_json(file_content(plan), where)
    except OSError as error:
      raise UserError(f"{where}: {error.strerror}") from None
    if not isinstance(found, dict):
      raise UserError(f"{where}: must be a JSON object; give a new directory")
    _compare(output, found, settings)
    return
  output.mkdir(parents=True, exist_ok=True)
  if any(path.name != f"{plan.name}.tmp" for path in output.iterdir()):
    raise UserError(f"--output={output}: holds other files; give a new directory")
  publish(plan, lambda path: path.write_text(json.dumps(settings, indent=2)))


def _compare(output: pathlib.Path, found: dict, wanted: dict) -> None:
  for name in found.keys() | wanted.keys():
    if found.get(name) != wanted.get(name):
      raise UserError(
        f"--output={output}: holds a preparation with {name} = {found.get(name)!r}, "
        f"not {wanted.get(name)!r}; give a new directory"
      )


def _groups(source: Source, side: str, shard: int) -> Iterator[tuple[list[bytes], str]]:
  """The documents of each shard, and their SHA-256."""
  group, digest, size = [], hashlib.sha256(), 0
  each = 2 if source.prompts else 1
  for document in source.documents(side):
    size += len(document)
    group.append(document.encode())
    digest.update(len(group[-1]).to_bytes(8, "little") + group[-1])
    if size >= shard and len(group) % each == 0:
      yield group, digest.hexdigest()
      group, digest, size = [], hashlib.sha256(), 0
  if group:
    yield group, digest.hexdigest()


def _run(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, dict]]:
  """Each job with its note, in order; few are in memory at a time."""
  if workers == 1:
    yield from ((job, write_shard(job)) for job in jobs)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context("spawn"), _follow_parent
  )
  pending: collections.deque = collections.deque()
  try:
    for job in jobs:
      pending.append((job._replace(documents=[]), pool.submit(write_shard, job)))
      if len(pending) > workers:
        job, note = pending.popleft()
        yield job, note.result()
    while pending:
      job, note = pending.popleft()
      yield job, note.result()
  except concurrent.futures.BrokenExecutor:
    raise UserError(
      "--workers: one died, perhaps for want of memory; take fewer"
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
  """In a worker: an interruption, and the end of the parent, are its end as well."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are enough

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _finish(output: pathlib.Path, settings: dict, files, notes) -> dict:
  """Writes what belongs to no single shard, the manifest last; returns it."""
  sides, every = {}, {}
  for side, shards in notes.items():
    names = [next(iter(note["files"])) for note in shards]
    counted = ("documents", "records", "tokens", "text_bytes")
    kept = [{name: n[name] for name in counted if name in n} for n in shards]
    sides[side] = {
      "documents": sum(n["documents"] for n in shards),
      "shards": [{"file": name, **k} for name, k in zip(names, kept, strict=True)],
    }
    every |= {name: n["files"][name] for name, n in zip(names, shards, strict=True)}
  manifest = {
    "format_version": prepared.FORMAT_VERSION,
    "settings": settings,
    "source_files": files,
    "sides": sides,
    "files": every,
  }
  if settings["kind"] == "tokens":
    if name := settings["tokenizer"]["file"]:
      every[name] = entry_of(output / name)
    for side, entry in sides.items():
      entry["ends"] = f"{side}.ends.npy"
      parts = (np.load(ends_of(output, s["file"])) for s in entry["shards"])
      write = functools.partial(write_ends, total=entry["documents"], parts=parts)
      publish(output / entry["ends"], write)
      every[entry["ends"]] = entry_of(output / entry["ends"])
  found = prepared.Prepared(output, manifest)
  for side, entry in sides.items():
    for count in ("tokens", "text_bytes"):
      if count in entry["shards"][0]:
        entry[count] = sum(shard[count] for shard in entry["shards"])
    entry["sha256"] = found.digest(side)
  text = json.dumps(manifest, indent=1) + "\n"
  publish(output / prepared.MANIFEST, lambda path: path.write_text(text))
  _tidy(output, manifest)
  return manifest


def _tidy(output: pathlib.Path, manifest: dict) -> None:
  """Removes what only an unfinished preparation needs."""
  (output / prepared.PLAN).unlink(missing_ok=True)
  for side in SIDES:
    for path in output.glob(f"{side}-[0-9]*"):
      if path.name not in manifest["files"]:
        path.unlink()
