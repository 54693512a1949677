"""What cannot be converted ends in one line, and leaves nothing behind."""

import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorstore as ts

from set_diffusion_jax.convert import convert, describe
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.weights import read_weights
from tests.convert_files import cast, safetensors_bytes
from tests.golden import Golden
from tests.test_convert import published, reference, train_state

NAME = "setdlm_dit"


def refused(source, folder, **options):
  """The message of a conversion that must fail and leave nothing behind."""
  folder.mkdir(exist_ok=True)
  before = sorted(os.listdir(folder))
  with pytest.raises(UserError) as error:
    convert(source, folder / "destination", **options)
  assert sorted(os.listdir(folder)) == before, "something was left behind"
  message = str(error.value)
  assert "\n" not in message and len(message) < 500
  return message


def model(tmp_path, tensors=None, **changes):
  folder = reference(NAME, tmp_path / "source", **changes)
  if tensors is not None:
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
  return folder


def tensors(**changes):
  """The reference's, some replaced, added or (None) removed by their last names."""
  found = dict(Golden(NAME).tensors)
  for name, value in changes.items():
    full = "backbone." + name.replace("__", ".")
    found[full] = value
    if value is None:
      del found[full]
  return found


def nan(dtype="float32"):
  value = np.array(Golden(NAME).tensors["backbone.blocks.1.attn_out.weight"])
  value[3, 4] = np.nan
  return value.astype(dtype)


CONTENTS = {
  r"blocks.0.norm1.weight is missing": {"blocks__0__norm1__weight": None},
  r"vocab_embed.embedding is missing": {"vocab_embed__embedding": None},
  r"blocks.0.extra.weight: is no parameter": {
    "blocks__0__extra__weight": np.zeros(2, np.float32)
  },
  r"blocks.0.attn_qkv.weight is \[32, 96\], must be \[96, 32\]": {
    "blocks__0__attn_qkv__weight": np.zeros((32, 96), np.float32)
  },
  r"blocks.1.attn_out.weight holds nan; must be finite": {
    "blocks__1__attn_out__weight": nan()
  },
  r"head_dim|inv_freq is \[4\] \[1, 0.5": {
    "rotary_emb__inv_freq": np.array([1, 0.5, 0.25, 0.125], np.float32)
  },
  r"norm1.weight has dtype int64; must be one of float32": {
    "blocks__0__norm1__weight": np.zeros(32, np.int64)
  },
  r"blocks.1.norm1.weight is float16, must be float32 as layer 0": {
    "blocks__1__norm1__weight": np.zeros(32, np.float16)
  },
}


@pytest.mark.parametrize("message", CONTENTS)
def test_tensors(tmp_path, message):
  source = model(tmp_path, tensors(**CONTENTS[message]))
  assert re.search(message, refused(source, tmp_path / "out"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_nan_of_narrow_dtypes(tmp_path, dtype):
  found = {name: cast(value, dtype) for name, value in tensors().items()}
  found["backbone.blocks.1.attn_out.weight"] = cast(nan(), dtype)
  assert "holds nan" in refused(model(tmp_path, found), tmp_path / "out")


def test_value_beyond_the_wanted_dtype(tmp_path):
  large = np.full(32, 1e6, np.float32)
  source = model(tmp_path, tensors(blocks__0__norm1__weight=large))
  message = refused(source, tmp_path / "out", dtype="float16")
  assert "norm1.weight holds 1000000.0; is beyond float16" in message
  convert(source, tmp_path / "wide", dtype="bfloat16", verify=True)


def damaged_files():
  whole = safetensors_bytes(tensors())
  name = "backbone.blocks.0.norm1.weight"
  entry = {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}
  change = lambda **changes: safetensors_bytes(tensors(), **{name: entry | changes})
  return {
    "is truncated, backbone": whole[:-1],
    "is truncated or no": whole[:100],
    "truncated or no safetensors": b"",
    "header: is not JSON": struct.pack("<Q", 4) + b"{{{{" + bytes(8),
    "must be a JSON object": struct.pack("<Q", 2) + b"[]",
    "4 bytes after its last tensor": whole + bytes(4),
    "has dtype 'F8_E4M3'": change(dtype="F8_E4M3"),
    r"= 128 bytes; float32 \[33\] needs 132": change(shape=[33]),
    "starts at byte": change(),
    "entry of .* is damaged": change(shape=[-1]),
  }


@pytest.mark.parametrize("message", list(damaged_files()))
def test_damaged_files(tmp_path, message):
  source = model(tmp_path)
  (source / "model.safetensors").write_bytes(damaged_files()[message])
  found = refused(source, tmp_path / "out")
  assert re.search(message, found) and "model.safetensors" in found


SETTINGS = {
  "architectures = .*Unknown.*; must be one of AR": {"architectures": ["Unknown"]},
  "length is missing|length = None": {"length": None},
  "vocab_size = 60; must be 64": {"vocab_size": 60},
  "mask_token_id = 64; must be an id below 64": {"mask_token_id": 64},
  "noise_config.desired_block_size is missing": {"noise_config": {"k": None}},
  "noise_config.max_block_size is missing": {"noise_config": {"desired_block_size": 4}},
  "noise_config.k = 0; must be above 0": {
    "noise_config": {"desired_block_size": 4, "k": 0}
  },
  "noise_config.length = 16; must be 32": {"noise_config": {"length": 16}},
  r"noise_config._target_ = .*Linear.*; must be StaggeredNoise": {
    "noise_config": {"_target_": "x.LinearNoise"}
  },
  "backbone_config.n_heads = '4'; must be an integer": {
    "backbone_config": {"n_heads": "4"}
  },
  "backbone_config.causal_attention = True; must be false": {
    "backbone_config": {"causal_attention": True}
  },
  "model.width = 32: must be a multiple": {"backbone_config": {"n_heads": 5}},
}
NOISE = {"_target_": "x.StaggeredNoise", "length": 32, "block_size": 32}


@pytest.mark.parametrize("message", SETTINGS)
def test_settings(tmp_path, message):
  values = published(NAME)
  for name, change in SETTINGS[message].items():
    if name == "noise_config":
      values[name] = NOISE | change
    elif isinstance(change, dict):
      values[name] = values[name] | change
    else:
      values[name] = change
  source = model(tmp_path)
  (source / "config.json").write_text(json.dumps(values))
  assert re.search(message, refused(source, tmp_path / "out"))


def test_paths(tmp_path):
  source, out = model(tmp_path), tmp_path / "out"
  assert "no such file" in refused(tmp_path / "nothing", out)
  (tmp_path / "empty").mkdir()
  assert "is no work directory and holds no" in refused(tmp_path / "empty", out)
  assert "must be a directory, or a file ending" in refused(source / "config.json", out)
  assert "--dtype=int8: must be one of" in refused(source, out, dtype="int8")
  assert "--weights=best: must be" in refused(source, out, weights="best")
  assert "leave --weights out" in refused(source, out, weights="ema")
  assert "--shard-size=0" in refused(source, out, shard_size=0)
  (source / "config.json").write_text("{")
  assert "is not JSON" in refused(source, out)
  (source / "config.json").unlink()
  assert "has no config.json" in refused(source, out)


def test_destination_in_use(tmp_path):
  source, out = model(tmp_path), tmp_path / "out"
  (out / "destination").mkdir(parents=True)
  convert(source, out / "destination")  # an empty one is taken
  assert "exists already" in refused(source, out)
  open_source(out / "destination")


def index_of(folder, weight_map):
  (folder / "model.safetensors").rename(folder / "a.safetensors")
  index = {"metadata": {}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder


def test_indexes(tmp_path):
  names = dict.fromkeys(tensors(), "a.safetensors")
  first = sorted(names)[0]
  cases = {
    "must be a file in the same directory": names | {first: "../a.safetensors"},
    "No such file": names | {first: "b.safetensors"},
    "is only in a.safetensors": {k: v for k, v in names.items() if k != first},
    "is only in the index": names | {"backbone.more": "a.safetensors"},
    "weight_map must name": [],
  }
  for number, (message, weight_map) in enumerate(cases.items()):
    folder = reference(NAME, tmp_path / f"source{number}")
    assert message in refused(index_of(folder, weight_map), tmp_path / f"out{number}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("trained") / "run"
  train_state(folder)
  return folder


def test_damaged_work_directories(tmp_path, trained):
  def copy(number):
    return shutil.copytree(trained, tmp_path / f"run{number}")

  run = copy(0)
  (run / "checkpoints" / "3" / "meta" / "metadata").write_text("{}")
  assert "format version None" in refused(run, tmp_path / "out")
  run = copy(1)
  (run / "checkpoints" / "3" / "state" / "_METADATA").unlink()
  assert "No such file" in refused(run, tmp_path / "out")
  run = copy(2)
  for path in (run / "checkpoints" / "3" / "state").rglob("d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert re.search("cannot be read|is damaged", refused(run, tmp_path / "out"))
  run = copy(3)
  shutil.rmtree(run / "checkpoints" / "3")
  assert "has no checkpoint yet" in refused(run, tmp_path / "out")
  run = copy(4)
  meta = run / "checkpoints" / "3" / "meta" / "metadata"
  values = json.loads(meta.read_text())
  values["config"]["model"]["layers"] = 3
  meta.write_text(json.dumps(values))
  assert re.search(r"blocks/\S+ is \[2, .*must be \[3,", refused(run, tmp_path / "out"))
  values["config"]["model"]["adaln"] = True
  meta.write_text(json.dumps(values))
  assert "blocks/adaln/bias is missing" in refused(run, tmp_path / "out")


@pytest.mark.parametrize("kind", ["saved", "converted"])
def test_a_value_that_has_changed(tmp_path, trained, kind):
  """Bytes that can be decoded, to another number than was written."""
  run = tmp_path / "run"
  if kind == "saved":
    step, name = shutil.copytree(trained, run) / "checkpoints" / "3", "ema.head.kernel"
  else:
    convert(model(tmp_path), run)
    step, name = run / "checkpoints" / "0", "params.head.kernel"
  convert(run, tmp_path / "whole")
  store = {"driver": "ocdbt", "base": f"file://{step}/state/", "path": f"{name}/"}
  array = ts.open({"driver": "zarr", "kvstore": store}).result()
  array[5, 3].write(array[5, 3].read().result() + 1).result()
  changed = "head/kernel.* is not what was saved"
  assert re.search(changed, refused(run, tmp_path / "out"))
  if kind == "converted":
    with pytest.raises(UserError, match=changed):
      read_weights(run)


def test_weights_that_are_not_there(tmp_path):
  convert(model(tmp_path), tmp_path / "orbax")
  assert "has no ema weights" in refused(
    tmp_path / "orbax", tmp_path / "out", weights="ema"
  )


@pytest.mark.parametrize("call", [1, 5])
def test_full_disk_writing_safetensors(tmp_path, monkeypatch, trained, call):
  write, calls = os.pwrite, []

  def full(*arguments):
    calls.append(1)
    if len(calls) == call:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(*arguments)

  monkeypatch.setattr(os, "pwrite", full)
  message = refused(trained, tmp_path / "out")
  assert "No space left on device; nothing was written" in message
  assert str(tmp_path / "out" / "destination") in message


_LIMITED = """
import resource, signal, sys
from set_diffusion_jax.convert import convert
from set_diffusion_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
  convert(sys.argv[1], sys.argv[2])
except UserError as error:
  print("refused:", error)
"""


@pytest.mark.parametrize("direction", ["orbax", "pytorch"])
def test_failing_writes(tmp_path, trained, direction):
  """Files that the system refuses to let grow, whatever library writes them."""
  source = model(tmp_path) if direction == "orbax" else trained
  out = tmp_path / "out"
  out.mkdir()
  result = subprocess.run(
    [sys.executable, "-c", _LIMITED, str(source), str(out / "destination"), "2000"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.startswith("refused: " + str(out / "destination"))
  assert "nothing was written" in result.stdout and result.stdout.count("\n") == 1
  assert os.listdir(out) == []


def test_interrupt_leaves_nothing(tmp_path, monkeypatch):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("set_diffusion_jax.convert.orbax_writer.Writer.finish", interrupt)
  (tmp_path / "out").mkdir()
  with pytest.raises(KeyboardInterrupt):
    convert(model(tmp_path), tmp_path / "out" / "destination")
  assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("direction", ["orbax", "pytorch"])
def test_verify_finds_a_changed_bit(tmp_path, monkeypatch, trained, direction):
  """A writer that flips one sign."""
  from set_diffusion_jax.convert import orbax_writer, torch_directory

  writer = (
    orbax_writer.Writer if direction == "orbax" else torch_directory.SafetensorsWriter
  )
  write = writer.write

  def lossy(self, name, place, values):
    values = np.array(values)
    if "attn_out" in str(name):
      values.reshape(-1)[0] *= -1
    return write(self, name, place, values)

  monkeypatch.setattr(writer, "write", lossy)
  source = model(tmp_path) if direction == "orbax" else trained
  message = refused(source, tmp_path / "out", verify=True)
  assert "--verify: blocks/" in message and "differs in the result" in message


def test_describe_refuses_as_convert_does(tmp_path):
  source = model(tmp_path, tensors(blocks__0__norm1__weight=None))
  with pytest.raises(UserError, match=r"norm1\.weight is missing"):
    describe(source)


@pytest.mark.slow
def test_memory_stays_below_a_few_tensors(tmp_path):
  """0.7 GB of weights, stacked on one side and apart on the other."""
  from benchmarks import convert as benchmark

  model, ids = benchmark.config(width=1024, layers=12), benchmark.vocabulary(16_384)
  total = benchmark.write_published(tmp_path / "first", model, ids)
  assert total > 0.7e9
  largest = 12 * 1024 * 4096 * 4
  there = benchmark.child(tmp_path / "first", tmp_path / "orbax", True)
  back = benchmark.child(tmp_path / "orbax", tmp_path / "back", True)
  benchmark.trained(tmp_path / "run", tmp_path / "orbax")
  run = benchmark.child(tmp_path / "run", tmp_path / "out", True)
  for figures in (there, back, run):
    assert figures["peak_bytes"] < largest + 300e6
