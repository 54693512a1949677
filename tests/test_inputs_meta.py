"""What a step says about itself, and about the sizes of its arrays, is checked."""

import json
import os
import resource
import shutil

import pytest
import tensorstore as ts

from set_diffusion_jax.cli import main
from set_diffusion_jax.convert import convert, describe
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.weights import read_weights
from tests.test_convert import reference

NAME = "setdlm_dit"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  """A work directory as `convert` writes it."""
  folder = tmp_path_factory.mktemp("meta")
  convert(reference(NAME, folder / "published"), folder / "run")
  return folder / "run"


def meta_of(run):
  return run / "checkpoints" / "0" / "meta" / "metadata"


def refused(run, out, message, load=True):
  """That every way to read it ends in one line, with nothing written."""
  before = sorted(out.parent.iterdir())
  for read in (lambda run: convert(run, out), describe, read_weights)[: 2 + load]:
    with pytest.raises(UserError) as error:
      read(run)
    text = str(error.value)
    assert message in text and text.isprintable() and len(text) < 700
  assert sorted(out.parent.iterdir()) == before


def nested(levels):
  value = 1
  for _ in range(levels):
    value = [value]
  return value


LONG = 10**400
# A field by its dotted name, what it is changed to, and what is said of it.
CHANGES = [
  ("config", [], "config = a list; must be an object"),
  ("config", {}, "its meta names no configuration or tokenizer"),
  ("config.model", 7, "config: model = 7: must be a group of fields"),
  ("config.model.layers", "2", "model.layers"),
  ("config.model.layers", 10**9, "must be [1000000000,"),
  ("config.model.dropout", LONG, "config:"),
  ("config.model.width", LONG, "config:"),
  ("config.model.width", 4 * 10**8, "must be ["),
  ("config.model.width", 4 * 10**9, "must be below 2**31"),
  ("config.unheard", 1, "unheard is not a field"),
  ("config.method.name", [], "config:"),
  ("tokenizer", "byte", "tokenizer = byte; must be an object"),
  ("tokenizer", None, "its meta names no configuration or tokenizer"),
  ("tokenizer.name", 7, "tokenizer.name = 7; must be a text"),
  ("tokenizer.size", 64.0, "tokenizer.size = 64.0; must be"),
  ("tokenizer.size", True, "tokenizer.size"),
  ("tokenizer.size", 0, "tokenizer."),
  ("tokenizer.size", 2**40, "tokenizer.size"),
  ("tokenizer.mask", 64, "tokenizer.mask = 64; must be a number below 64"),
  ("tokenizer.mask", 61, "tokenizer.mask = 61; must be another id than those of bos"),
  ("tokenizer.pad", -1, "tokenizer.pad = -1"),
  ("tokenizer.bos", None, "tokenizer.bos = a NoneType"),
  ("tokenizer.used_ids", 65, "tokenizer.used_ids = 65; must be a number from 1 to 64"),
  ("tokenizer.used_ids", "64", "tokenizer.used_ids = 64"),
  ("schedule", [], "schedule = a list"),
  ("schedule", {"mask": 1}, "mask = 1; must be an object"),
  ("schedule", {"mask": {"t_min": 0.5}}, "config: corruption.t_max"),
  ("schedule", {"mask": {"t_min": "a", "t_max": 1}}, "corruption.t_min"),
  ("source", 7, "source = 7"),
  ("source.weights", ["ema"], "source.weights = a list; must be one of ema, raw"),
  ("source.notes", "text", "source.notes = text; must be a list"),
  ("source.notes", [{}], "source.notes = a dict; must be a list of texts"),
  ("published", [1], "published = a list; must be an object"),
  ("qwen3", "x", "qwen3 = x; must be an object"),
  ("evaluation", [1], "evaluation is a list; must be numbers by name"),
  ("evaluation", {"nats": [1]}, "evaluation has [1]; must be numbers by name"),
  ("evaluation", {"a": {"b": {"c": {}}}}, "must be numbers by name"),
  ("weights_from", [1], "weights_from = a list; must be an object"),
  ("versions", "1.0", "versions = 1.0; must be an object"),
  ("versions", {"jax": 1}, "versions.jax = 1; must be a text"),
  ("format_version", True, "format version True"),
  ("format_version", "3", "this code reads 3"),
  ("format_version", LONG, "this code reads 3"),
  ("deep", nested(100), "nested deeper than 64 levels"),
  ("buffers", [], "buffers = a list"),
  ("buffers.other", {}, "buffers: other is none of this model"),
  ("buffers.rotary_emb~inv_freq", 7, "inv_freq.dtype = a NoneType"),
  ("buffers.rotary_emb~inv_freq.dtype", "int8", "dtype = int8; must be one of"),
  ("buffers.rotary_emb~inv_freq.shape", [10**12], "shape = a list; must be [4]"),
  ("buffers.rotary_emb~inv_freq.bytes", "00", "must be 16 bytes in hexadecimal"),
  ("buffers.rotary_emb~inv_freq.bytes", "0g" * 16, "must be 16 bytes in hexadecimal"),
  ("buffers.rotary_emb~inv_freq.bytes", "00" * 16, "inv_freq is [4] [0, 0, 0]"),
]


@pytest.mark.parametrize(
  "field, value, message",
  CHANGES,
  ids=[f"{f}-{n}" for n, (f, *_) in enumerate(CHANGES)],
)
def test_fields(tmp_path, converted, field, value, message):
  run = shutil.copytree(converted, tmp_path / "run")
  meta = group = json.loads(meta_of(run).read_text())
  *groups, name = field.split(".")
  for key in groups:
    group = group[key.replace("~", ".")]
  group[name.replace("~", ".")] = value
  meta_of(run).write_text(json.dumps(meta))
  refused(run, tmp_path / "out", message)


@pytest.mark.parametrize(
  "text, message",
  [
    ("[1", "is not JSON"),
    ("[]", "must hold a JSON object"),
    ('{"temperature": 1, "temperature": 2}', "temperature"),
    ('{"do_sample": true, "temperature": NaN}', "NaN"),
    ('{"num_beams": 4}', "num_beams = 4"),
    ('{"a": 1}', "a = 1"),
  ],
)
def test_generation_configurations(tmp_path, converted, text, message):
  """What travels in a step has to be readable where it is written."""
  run = shutil.copytree(converted, tmp_path / "run")
  meta = json.loads(meta_of(run).read_text())
  meta["files"]["generation_config.json"] = text
  meta_of(run).write_text(json.dumps(meta))
  with pytest.raises(UserError, match=f"run: generation_config.json: .*{message}"):
    convert(run, tmp_path / "out")
  assert not (tmp_path / "out").exists()


CONTENTS = {
  "is there twice": b'{"format_version": 3, "format_version": 3}',
  "is not UTF-8": b'{"format_version": "\xff"}',
  "must": b"[3]",
  "is not JSON": b'{"format_version": 3',
  "is not JSON, empty": b"",
  "nested deeper": b"[" * 100_000,
}


@pytest.mark.parametrize("message", CONTENTS)
def test_contents(tmp_path, converted, message):
  run = shutil.copytree(converted, tmp_path / "run")
  meta_of(run).write_bytes(CONTENTS[message])
  refused(run, tmp_path / "out", message.split(",")[0])


def test_texts_that_are_only_shown_are_in_one_line(tmp_path, converted, capsys):
  run = shutil.copytree(converted, tmp_path / "run")
  meta = json.loads(meta_of(run).read_text())
  meta["source"]["notes"] = ["red \x1b[31m\nnote"]
  meta["versions"] = {"jax\n": "\x1b[2J"}
  meta["weights_from"] = {"from": "a\n# title"}
  meta["evaluation"] = {"nats|\n": 1.5, "bound": "NELBO\n"}
  meta_of(run).write_text(json.dumps(meta))
  assert main(["inspect", str(run)]) == 0
  found = capsys.readouterr().out
  assert "\x1b" not in found and r"note: red \x1b[31m\nnote" in found
  convert(run, tmp_path / "out")
  card = (tmp_path / "out" / "README.md").read_text()
  assert "\x1b" not in card and "\n# title" not in card and r"NELBO\n" in card


ROWS = [b"[1]", b'{"step": 0}', b"", b'{"step": NaN}', b"\xff", b"[" * 5000]


def test_rows_of_metrics(tmp_path, converted):
  run = shutil.copytree(converted, tmp_path / "run")
  last = b'{"step": 0, "validation/nats": 2.5}\n{"step": 0, "validat'
  (run / "metrics.jsonl").write_bytes(b"\n".join([*ROWS, last]))
  assert open_source(run).evaluation == {"nats": 2.5}
  (run / "metrics.jsonl").write_text('{"step": 0, "validation/nats": [1]}\n')
  refused(run, tmp_path / "out", "metrics.jsonl has [1]; must be numbers", load=False)
  (run / "metrics.jsonl").unlink()
  os.mkfifo(run / "metrics.jsonl")
  refused(run, tmp_path / "out", "metrics.jsonl: must be a file", load=False)


CONFIGS = {
  "is there twice": b'{"config": {}, "config": {}}',
  "is damaged": b"[]",
  "is damaged, data": b'{"config": {}, "data": 7}',
  "is not JSON": b"{",
  "is not UTF-8": b"\xff\xfe",
  "nested deeper": b"[" * 100_000,
}


@pytest.mark.parametrize("message", CONFIGS)
def test_the_configuration_of_a_work_directory(tmp_path, converted, message):
  run = shutil.copytree(converted, tmp_path / "run")
  (run / "config.json").write_bytes(CONFIGS[message])
  with pytest.raises(UserError, match=message.split(",")[0]):
    read_weights(run)


def rewritten(run, name, shape, chunks):
  """A work directory in which the description of an array is another one."""
  state = run / "checkpoints" / "0" / "state"
  spec = {
    "driver": "zarr",
    "kvstore": {
      "driver": "ocdbt",
      "base": f"file://{state}/",
      "path": f"params.{name}/",
    },
    "metadata": {"shape": shape, "chunks": chunks, "compressor": None},
    "dtype": "float32",
    "create": True,
    "delete_existing": True,
  }
  ts.open(spec).result()


def test_arrays_that_claim_another_size(tmp_path, converted):
  shape = [64, 32]
  cases = [
    ([2**40, 2**20], [64, 32], f"must be {shape}"),
    ([64, 32, 1], [64, 32, 1], f"must be {shape}"),
    (shape, [2**20, 2**20], "is stored in parts of [1048576, 1048576]"),
  ]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for number, (claimed, chunks, message) in enumerate(cases):
    run = shutil.copytree(converted, tmp_path / f"run{number}")
    rewritten(run, "embedding", claimed, chunks)
    refused(run, tmp_path / "out", message)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 256 * 1024


def test_a_model_that_its_files_cannot_hold(tmp_path, converted):
  """A configuration and descriptions of arrays that agree, without any values."""
  run = shutil.copytree(converted, tmp_path / "run")
  meta = json.loads(meta_of(run).read_text())
  size = 4_000_000
  meta["tokenizer"].update(size=size, used_ids=size)
  meta_of(run).write_text(json.dumps(meta))
  rewritten(run, "embedding", [size, 32], [1, 32])
  refused(run, tmp_path / "out", "must be [32, 4000000]")
  rewritten(run, "head.kernel", [32, size], [32, 1])
  rewritten(run, "head.bias", [size], [1])
  refused(run, tmp_path / "out", "describes parameters of 1040")


@pytest.mark.parametrize("key", ["../../x", "/tmp/x", "a/b", 7.5, None, [1]])
def test_names_of_arrays(tmp_path, converted, key):
  run = shutil.copytree(converted, tmp_path / "run")
  file = run / "checkpoints" / "0" / "state" / "_METADATA"
  tree = json.loads(file.read_text())
  entry = next(iter(tree["tree_metadata"].values()))
  entry["key_metadata"][1]["key"] = key
  file.write_text(json.dumps(tree))
  refused(run, tmp_path / "out", "is no name of a parameter")
  tree["use_ocdbt"] = False
  file.write_text(json.dumps(tree))
  refused(run, tmp_path / "out", "is no name of a parameter")
