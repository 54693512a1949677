"""Prepared corpora in buckets: the sequences, and the checks, of those on a disk."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import fsspec
import numpy as np
import pytest

from set_diffusion_jax import cli, data
from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import records
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import folders, places
from set_diffusion_jax.training.train import train
from tests import buckets, fault_proxy, jobs, one_line, tiny
from tests.test_storage_runs import rows
from tests.test_train import assert_identical, config, final

DOCUMENTS = [f"{i}. {tiny.TEXT * (i % 4)}" for i in range(40)]
SHARD = "train-00001.array_record"


def prepared_as(folder, name, bpe, **options):
  """What `prepare` writes of the documents, and how its text is read."""
  path = folder / "text.jsonl"
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
  c = DataConfig(
    source="jsonl",
    train_path=str(path),
    length=16,
    validation_documents=6,
    tokenizer=str(bpe),
  )
  data.prepare(c, folder / name, shard=400, **options)
  return dataclasses.replace(c, source="prepared", directory=str(folder / name))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """(configuration on a disk, the same in a bucket), by "tokens" and "text"."""
  folder = tmp_path_factory.mktemp("corpora")
  bpe = folder / "tokenizer.json"
  bpe.write_text(data.train_bpe([tiny.TEXT], 300))
  found = {}
  for kind in ("tokens", "text"):
    disk = prepared_as(folder, kind, bpe, text=kind == "text")
    if kind == "text":
      disk = dataclasses.replace(disk, streaming=True)
    target = places.path(buckets.fresh())
    folders.upload(folder / kind, target)
    assert places.exists(target / SHARD)
    found[kind] = disk, dataclasses.replace(disk, directory=str(target))
  return found


def copied(disk):
  """A corpus in a bucket once more, to be changed, and where that is."""
  target = places.path(buckets.fresh())
  folders.upload(pathlib.Path(disk.directory), target)
  return dataclasses.replace(disk, directory=str(target)), target


refused = functools.partial(one_line.refused, most=300)


def batches(corpus, count=9):
  iterator = data.training_iterator(corpus.train, 4, 3, 0, 1)
  return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_sequences_are_those_of_the_disk(both, kind):
  disk, bucket = map(data.load, both[kind])
  assert bucket.fingerprint == disk.fingerprint
  assert bucket.tokenizer.describe() == disk.tokenizer.describe()
  assert bucket.tokenizer.name != "byte"
  for ours, theirs in zip(batches(bucket), batches(disk), strict=True):
    for name in theirs:
      np.testing.assert_array_equal(ours[name], theirs[name])
  every = range(len(disk.validation))
  ours, theirs = (corpus.validation.batch(every) for corpus in (bucket, disk))
  for name in theirs[0]:
    np.testing.assert_array_equal(ours[0][name], theirs[0][name])
  np.testing.assert_array_equal(ours[1], theirs[1])


def test_files_are_not_asked_for_one_after_another(both, monkeypatch):
  _, bucket = both["tokens"]
  store, asked = fsspec.filesystem("gcs"), []
  real = store._call

  async def call(method, path, *arguments, **options):
    asked.append(path)
    return await real(method, path, *arguments, **options)

  monkeypatch.setattr(store, "_call", call)
  folder = places.path(bucket.directory)
  data.Prepared.read(folder)
  manifest = json.loads(places.read_bytes(folder / "manifest.json"))
  assert len(manifest["files"]) > 8 > len(asked)


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_records_are_read_at_once(both, monkeypatch, kind):
  """Each of the first reads waits for seven others, for ever if they are one by one."""
  corpus = data.load(both[kind][1])
  meeting, first = threading.Barrier(8, timeout=60), iter(range(8))
  real = records.Records.__getitem__

  def together(self, index):
    if next(first, None) is not None:
      meeting.wait()
    return real(self, index)

  monkeypatch.setattr(records.Records, "__getitem__", together)
  if kind == "tokens":
    corpus.train.batch(range(0, len(corpus.train), 8))  # of different records
  else:
    batches(corpus, 1)
  assert next(first, None) is None


def test_a_record_is_asked_for_once(both, monkeypatch):
  """By all sequences that lie in it, and again after a failure."""
  disk, corpus = (data.load(c).train for c in both["tokens"])
  rows, asked = range(len(disk)), collections.Counter()
  expected, _ = disk.batch(rows)
  real = records.Records.__getitem__

  def counted(self, index):
    asked[index] += 1
    if asked[0] == 1:
      asked[0] += 1
      raise UserError("not now")
    return real(self, index)

  monkeypatch.setattr(records.Records, "__getitem__", counted)
  asked[0] = 0
  refused(lambda: corpus.batch([0]), "not now")
  ours, _ = corpus.batch(rows)
  for name, value in expected.items():
    np.testing.assert_array_equal(ours[name], value)
  del asked[0]
  assert asked and set(asked.values()) == {1} and len(asked) < len(rows)


def test_damage_is_found_as_on_a_disk(both):
  bucket, folder = copied(both["tokens"][0])
  load = lambda: data.load(bucket)
  where = f'data.directory = "{folder}": '
  good = places.read_bytes(folder / SHARD)
  places.write_text(folder / SHARD, good[:-1])
  refused(load, where, f"{SHARD} has {len(good) - 1} bytes, must have {len(good)}")
  folders.remove(folder / SHARD)
  refused(load, f"{where}{SHARD}: No such file or directory")
  changed = bytearray(good)
  changed[100] ^= 1
  places.write_text(folder / SHARD, bytes(changed))
  corpus = load()
  refused(lambda: corpus.train.batch(range(len(corpus.train))), "a shard is damaged")
  refused(lambda: data.Prepared.read(folder).check(), f"{SHARD} is damaged, its SHA")
  places.write_text(folder / SHARD, good)
  data.Prepared.read(folder).check()
  ends = places.read_bytes(folder / "train.ends.npy")
  places.write_text(folder / "train.ends.npy", b"\0" * len(ends))
  refused(load, where, "train.ends.npy: is damaged or not an array")
  tokenizer = places.read_bytes(folder / "tokenizer.json")
  places.write_text(folder / "tokenizer.json", b"{" * len(tokenizer))
  refused(load, where, "tokenizer.json")
  places.write_text(folder / "manifest.json", "{")
  refused(load, f"{where}its manifest.json is damaged")
  folders.remove(folder / "manifest.json")
  refused(load, where, "has no manifest.json; nothing was prepared there")
  places.write_text(folder / "plan.json", "{}")
  refused(load, where, "is not finished")


@pytest.mark.parametrize(
  ("kind", "says"),
  [
    ("bucket", "a shard cannot be read, the store says: Not Found"),
    ("disk", "a shard cannot be read (open() failed: No such file or directory"),
  ],
)
def test_a_shard_that_goes_away_is_not_called_damaged(both, tmp_path, kind, says):
  bucket, folder = copied(both["tokens"][0])
  if kind == "disk":
    folder = shutil.copytree(both["tokens"][0].directory, tmp_path / "copy")
    bucket = dataclasses.replace(bucket, directory=str(folder))
  corpus = data.load(bucket)
  folders.remove(folder / SHARD)
  every = lambda: corpus.train.batch(range(len(corpus.train)))
  refused(every, says)


@pytest.fixture
def refusing():
  """The address of a server that answers every request with 403."""
  with buckets.answering(403, errors=[{"reason": "forbidden"}]) as address:
    yield address


@pytest.mark.parametrize("fault", fault_proxy.FAULTS)
def test_a_passing_fault_of_any_file_changes_nothing(both, fault):
  disk, bucket = both["tokens"]
  kinds = ["manifest.json", "prefix=", "ends.npy", "tokenizer.json"]
  kinds += ["train-00000.array_record.*alt=media", "train-00001.array_record"]
  once = fault_proxy.Once(fault, [("GET", kind) for kind in kinds])
  with buckets.judged(once):
    ours = batches(data.load(bucket))
  assert not once.left
  for one, other in zip(ours, batches(data.load(disk)), strict=True):
    np.testing.assert_array_equal(one["tokens"], other["tokens"])


CODE = """
import sys
if "no gcsfs" in sys.argv:
  sys.modules["gcsfs"] = None
from set_diffusion_jax import data
from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.errors import UserError
try:
  data.load(DataConfig(source="prepared", directory=sys.argv[1], length=16))
except UserError as error:
  print(error)
"""


def test_credentials_of_each_client_are_asked_for_at_once(both, refusing):
  """array_record has its own, which gcsfs knows nothing of."""
  directory = both["tokens"][1].directory
  for name, says, *words in (
    ("STORAGE_EMULATOR_HOST", "these credentials may not do this (403)"),
    ("CLOUD_STORAGE_EMULATOR_ENDPOINT", "cannot be read, the store says: no"),
    ("STORAGE_EMULATOR_HOST", "pip install 'set_diffusion_jax[gcs]'", "no gcsfs"),
  ):
    done = subprocess.run(
      [sys.executable, "-c", CODE, directory, *words],
      cwd=jobs.ROOT,
      env={**os.environ, name: refusing},
      capture_output=True,
      text=True,
      timeout=jobs.TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and directory in done.stdout
    assert says in done.stdout


def test_commands(both, tmp_path, capsys):
  disk, bucket = both["tokens"]
  said = []
  for folder in (disk.directory, bucket.directory):
    assert cli.main(["prepare", f"--check={folder}"]) == 0
    said.append(capsys.readouterr().out.replace(folder, "DIR"))
    fields = {"data": dataclasses.asdict(dataclasses.replace(disk, directory=folder))}
    (tmp_path / "config.py").write_text(
      "from set_diffusion_jax.config import default_config\n"
      "def get_config():\n  c = default_config()\n"
      f"  c.update({fields!r})\n  return c\n"
    )
    figures = tmp_path / "figures.json"
    shown = ["inspect", "--data", f"--config={tmp_path}/config.py"]
    assert cli.main([*shown, f"--output={figures}"]) == 0, capsys.readouterr().err
    found = json.loads(figures.read_text())
    del found["slots_per_second"]
    said.append(found)
    capsys.readouterr()
  assert said[:2] == said[2:] and "all are whole" in said[0]
  assert cli.main(["prepare", "--config=quickstart", "--output=gs://runs/new"]) == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1
  assert "--output=gs://runs/new: must be a directory on a disk" in line
  assert "gcloud storage rsync -r DIR gs://runs/new" in line
  assert cli.main(["prepare", "--check=gs://nobody/x"]) == 2
  assert "there is no bucket 'nobody'" in capsys.readouterr().err


def test_text_in_a_bucket_is_prepared(both, tmp_path):
  found = []
  for kind, corpus in zip(("disk", "bucket"), both["text"], strict=True):
    source = dataclasses.replace(corpus, streaming=False)
    data.prepare(source, tmp_path / kind, shard=500)
    files = {path.name: path.read_bytes() for path in (tmp_path / kind).iterdir()}
    manifest = json.loads(files.pop("manifest.json"))
    found.append((files, manifest["sides"]))
  assert found[0] == found[1]


def test_losses_are_those_of_the_disk_wherever_it_goes_on(both, tmp_path, capsys):
  def run(name, corpus, steps):
    c = config(tmp_path, train__steps=steps)
    train(dataclasses.replace(c, data=corpus), tmp_path / name)

  disk, bucket = both["tokens"]
  run("disk", disk, 6)
  run("bucket", bucket, 6)
  run("moved", disk, 3)
  run("moved", bucket, 6)
  c = dataclasses.replace(config(tmp_path), data=disk)
  expected = final(c, tmp_path / "disk")
  for name in ("bucket", "moved"):
    assert rows(tmp_path / name) == rows(tmp_path / "disk")
    assert_identical(final(c, tmp_path / name), expected)
  found = []
  for name in ("disk", "bucket"):
    out = tmp_path / f"{name}.json"
    words = [f"--checkpoint={tmp_path / name}", f"--output={out}"]
    assert cli.main(["evaluate", *words]) == 0, capsys.readouterr().err
    found.append(json.loads(out.read_text()))
  same = ("perplexity", "perplexity_standard_error", "bound", "tokens")
  assert [found[0][key] for key in same] == [found[1][key] for key in same]
