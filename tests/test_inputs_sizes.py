"""What a file says about its own size is compared with what it holds."""

import functools
import io
import json
import pickle
import resource
import struct
import time
import warnings
import zipfile

import numpy as np
import pytest

from set_diffusion_jax.convert import convert
from set_diffusion_jax.convert.pickled import Archive
from set_diffusion_jax.convert.program import Skipped
from set_diffusion_jax.convert.tensors import read_safetensors
from set_diffusion_jax.convert.training import read_pickled
from set_diffusion_jax.errors import UserError
from tests.convert_files import Call, Name, Strided, torch_bytes
from tests.golden import Golden
from tests.test_convert import reference


def safetensors(path, header, data=b""):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)
  return path


def refused(read, path, message):
  """That it is refused in a line, in little time and memory."""
  before, start = (
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    time.process_time(),
  )
  with pytest.raises(UserError) as error:
    read(path)
  text = str(error.value)
  assert message in text and text.isprintable() and len(text) < 600
  assert time.process_time() - start < 5
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def entry(**changes):
  return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


HUGE = 10**18
HEADERS = {
  "the key 'a' is there twice": b'{"a": 1, "a": 2}',
  "is nested deeper than": b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
  "nested deeper than 64": b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
  "has about": b"[" + b"1," * 2**21 + b"1]",
  "must be a JSON object": b"[1]",
  "is not UTF-8": b'{"\xff": 1}',
  "is not JSON": b'{"a": NaN}',
  "entry of a is damaged": {"a": 7},
  "entry of a is damaged, fields": {"a": entry(more=1)},
  "entry of a is damaged, offsets": {"a": entry(data_offsets=[0, -8])},
  "entry of a is damaged, three": {"a": entry(data_offsets=[0, 8, 8])},
  "entry of a is damaged, true": {"a": entry(data_offsets=[False, 8])},
  "entry of a is damaged, float": {"a": entry(data_offsets=[0.0, 8.0])},
  "its shape must be a list": {"a": entry(shape=[True, 2])},
  "its shape must be a list, text": {"a": entry(shape="2")},
  "its shape must be a list, float": {"a": entry(shape=[2.0])},
  "its shape must be a list, axes": {"a": entry(shape=[1] * 17 + [2])},
  "its shape must be a list, large": {"a": entry(shape=[10**30])},
  "has too many elements": {"a": entry(shape=[HUGE, HUGE])},
  "needs 4000000000000000000": {"a": entry(shape=[HUGE])},
  "is truncated, a ends at": {
    "a": entry(shape=[HUGE], data_offsets=[0, 4 * HUGE]),
  },
  "has dtype 'f32'": {"a": entry(dtype="f32")},
  "has dtype 'a list'": {"a": entry(dtype=["F32"])},
  "__metadata__ of the header": {"__metadata__": {"a": 1}, "a": entry()},
  "__metadata__ of the header, list": {"__metadata__": ["a"], "a": entry()},
}


@pytest.mark.parametrize("message", HEADERS)
def test_headers(tmp_path, message):
  path = safetensors(tmp_path / "x.safetensors", HEADERS[message], bytes(8))
  refused(read_safetensors, path, message.split(",")[0])


def test_headers_that_are_right(tmp_path):
  header = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry(shape=[0, 5])}
  header["b"]["data_offsets"] = [8, 8]
  path = safetensors(tmp_path / "x.safetensors", header, bytes(8))
  assert {n: t.shape for n, t in read_safetensors(path).items()} == {
    "a": (2,),
    "b": (0, 5),
  }
  text = json.dumps({"__metadata__": None, "a": entry()}).encode() + b" " * 7
  assert read_safetensors(safetensors(path, text, bytes(8)))["a"].shape == (2,)


@pytest.mark.parametrize("length", [0, 1, 2**63 - 1, 2**64 - 1, 10**9])
def test_lengths_of_headers(tmp_path, length):
  path = tmp_path / "x.safetensors"
  path.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(100))
  refused(read_safetensors, path, "is truncated or no safetensors file")


BASE = np.zeros(4, np.float32)
VIEWS = {
  "1000000000000 elements lies in a storage of 4": Strided(BASE, 0, (10**12,), (0,)),
  "16 elements lies in a storage of 4": Strided(BASE, 0, (4, 4), (1, 0)),
  "6 elements lies in a storage of 4": Strided(BASE, 0, (3, 2), (1, 1)),
  "reaches out of its storage": Strided(BASE, 1, (4,), (1,)),
  "too many elements": Strided(BASE, 0, (2**40, 2**40), (0, 0)),
  "its shape must be a list": Strided(BASE, 0, (1,) * 17, (1,) * 17),
  "description is damaged": Strided(BASE, 0, (1,), (2**70,)),
}


@pytest.mark.parametrize("message", VIEWS)
def test_views_are_no_larger_than_their_storage(tmp_path, message):
  path = tmp_path / "x.pt"
  path.write_bytes(torch_bytes({"w": VIEWS[message]}))
  refused(lambda path: Archive(path).load(), path, message)


def test_tensors_that_share_a_storage(tmp_path):
  """A file of one layer for a model of two: it would grow by being written."""
  folder = reference("setdlm_dit", tmp_path / "source")
  (folder / "model.safetensors").unlink()
  tensors = dict(Golden("setdlm_dit").tensors)
  for name in tensors:
    tensors[name] = tensors[name.replace("blocks.1.", "blocks.0.")]
  (folder / "pytorch_model.bin").write_bytes(torch_bytes(tensors))
  refused(lambda path: convert(path, tmp_path / "out"), folder, "bytes in all")
  assert not (tmp_path / "out").exists()


def test_a_negated_view_is_refused(tmp_path):
  """PyTorch stores its values with the other sign, and says so beside them."""
  torch = pytest.importorskip("torch")
  view = torch.complex(torch.ones(2), torch.ones(2)).conj().imag
  torch.save({"x": view}, tmp_path / "x.bin")
  with pytest.raises(UserError, match="a negated view is refused"):
    Archive(tmp_path / "x.bin").load()


def program(path, content):
  path.write_bytes(torch_bytes({}, edit=lambda _: content))
  return path


def nested(levels):
  """A tuple of two of the one before, as a key."""
  return b"\x80\x02})" + b"2\x86" * levels + b"K\x01s."


REFUSED_PROGRAMS = {
  "tuples in tuples": nested(40),
  "a set of them": b"\x80\x04\x8f(" + b")" + b"2\x86" * 40 + b"\x90" + b".",
  "an OrderedDict of pairs": (
    b"\x80\x02ccollections\nOrderedDict\n]()"
    + b"2\x86" * 40 + b"K\x01\x86e\x85R."
  ),
  "many dictionaries": b"\x80\x02](" + b"}" * 1_000_000 + b"e.",
  "many copies": (
    b"\x80\x02](" + b"K\x01" * 1000 + b"eq\x000("
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 60_000 + b"l."
  ),
  "a memo": b"\x80\x02}r" + b"\xff" * 4 + b".",
  "bytes that are not there": b"\x80\x04B" + b"\xff" * 4 + b"abc.",
  "more bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.",
  "a long number": b"\x80\x02\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000 + b".",
  "digits": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
  "a long key": b"\x80\x02}X" + struct.pack("<I", 20_000) + b"k" * 20_000 + b"K\x01s.",
  "a list as a key": b"\x80\x02}]K\x01s.",
  "an old operation": b"\x80\x02(cos\nsystem\no.",
  "an instance": b"(S'echo'\nios\nsystem\n.",
  "an extension": b"\x80\x02\x82\x01.",
  "a buffer": b"\x80\x05\x97.",
  "nothing on the stack": b"\x80\x020.",
  "no end": b"\x80\x02}",
  "odd items": b"\x80\x02}(K\x01u.",
  "a persistent id of tuples": b"\x80\x02)" + b"2\x86" * 40 + b"Q.",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_PROGRAMS)
def test_programs(tmp_path, name):
  path = program(tmp_path / "x.pt", REFUSED_PROGRAMS[name])
  if name == "a set of them":
    assert type(Archive(path).load()) is Skipped  # which compares nothing
    return
  read = lambda path: Archive(path).load()
  asks = name in ("a persistent id of tuples", "an old operation")
  refused(read, path, "refused" if asks else "the pickle is damaged")


VALUES = [
  *({"a": [1, -5, 2**40, 2.5, None, True]}, {"k": ("x", (1, 2, 3, 4))}, "é"),
  *({(1, "a"): {2: []}}, {"deep": [[[[{}]]]]}, 2**100),
]


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_numpy_are_skipped(tmp_path, protocol):
  value = {"array": np.arange(3), "number": np.float64(2)}
  path = program(tmp_path / "x.pt", pickle.dumps(value, protocol))
  assert {type(v) for v in Archive(path).load().values()} == {Skipped}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_programs_that_are_right(tmp_path, protocol):
  """As pickle itself reads them; sets hold no weights."""
  for value in VALUES:
    path = program(tmp_path / "x.pt", pickle.dumps(value, protocol))
    found = Archive(path).load()
    assert found == value
  shared = [1]
  path = program(tmp_path / "x.pt", pickle.dumps([shared, shared, {1, 2}], protocol))
  a, b, c = Archive(path).load()
  assert a is b and type(c) is Skipped
  deep = []
  for _ in range(100_000):
    deep = [deep]
  content = b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b"."
  assert len(Archive(program(path, content)).load()) == 1


def archive(members):
  """A zip file of members (name, content, compression)."""
  out = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as file:
    warnings.simplefilter("ignore")  # of two members of one name
    for name, content, compression in members:
      file.writestr(zipfile.ZipInfo(name), content, compression)
  return out.getvalue()


EMPTY = pickle.dumps({}, 2)
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@functools.cache
def archives():
  whole = archive([("a/data.pkl", EMPTY, STORED), ("a/data/0", b"x", STORED)])
  end = whole.rindex(b"PK\5\6")
  change = lambda at, new: whole[:at] + new + whole[at + len(new) :]
  first = whole.index(b"PK\1\2")
  sizes = struct.pack("<II", 10**6, 10**6)  # in both headers
  large = whole[:18] + sizes + change(first + 20, sizes)[26:]
  return {
    "is compressed": archive([("a/data.pkl", bytes(10**7), DEFLATED)]),
    "is above": archive([("a/data.pkl", bytes(65 * 2**20), STORED)]),
    "a/data.pkl is twice": archive([("a/data.pkl", EMPTY, STORED)] * 2),
    "it has 2 data.pkl": archive([(f"{n}/data.pkl", EMPTY, STORED) for n in "ab"]),
    "its directory has 4000000000 bytes": change(
      end + 12, struct.pack("<I", 4_000_000_000)
    ),
    "differs between": change(18, struct.pack("<I", 1)),
    "differs between, name": change(30, b"b"),
    "differs between, method": change(8, struct.pack("<H", 8)),
    "is damaged": change(first + 20, struct.pack("<I", 10**9)),
    "starts outside of the file": change(end + 16, b"\xff" * 4),
    "is truncated inside": large,
    "encrypted": change(first + 8, struct.pack("<H", 1)),
    "is damaged (Bad CRC": change(whole.index(EMPTY), b"\x80\x03"),
    "no data.pkl": archive([("a/../../data.txt", EMPTY, STORED)]),
    "byteorder must be little": archive(
      [("a/data.pkl", EMPTY, STORED), ("a/byteorder", b"big", STORED)]
    ),
  }


@pytest.mark.parametrize("message", list(archives()))
def test_archives(tmp_path, message):
  path = tmp_path / "x.pt"
  path.write_bytes(archives()[message])
  refused(lambda path: Archive(path).load(), path, message.split(",")[0])


def test_an_archive_outside_of_which_nothing_is_written(tmp_path):
  """Names of members are looked up, and never become paths."""
  path = tmp_path / "in" / "x.pt"
  path.parent.mkdir()
  names = ("../../x", "/tmp/x", "a/data/../../x", "a\\b", "con")
  members = [("a/data.pkl", EMPTY, STORED), *((n, b"x", STORED) for n in names)]
  path.write_bytes(archive(members))
  assert Archive(path).load() == {}
  assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def shadow(**changes):
  """A Lightning checkpoint of one parameter, in which something is changed."""
  value = {"state_dict": {"w": BASE}, "ema": {"shadow_params": [BASE]}}
  return value | changes


TRAINED = {
  "w must be a tensor, is Skipped": shadow(
    state_dict={"w": Call(Name("numpy", "ndarray"))}
  ),
  "w must be a tensor, is list": shadow(state_dict={"w": [1]}),
  "w must be a tensor, is int": shadow(state_dict={"w": 7}),
  "tensor 'a int'": shadow(state_dict={7: BASE}),
  r"tensor 'a\n'": shadow(state_dict={"a\n": BASE}),
  "has no tensors, the model": shadow(ema={"shadow_params": BASE}),
  "its average a NoneType": shadow(ema={"shadow_params": [None]}),
  "must hold a dict, holds a list": [1],
  "holds no state dict": {"state": {"model": [1]}},
  "m must be a tensor, is str": {
    "state": {
      "model": {"m": BASE},
      "algorithms": [("EMA", {"ema_model": {"named_parameters_dict": {"m": "x"}}})],
    }
  },
  "must be numbers": shadow(sampling_eps_min=BASE, sampling_eps_max=1.0),
  "must be numbers, large": shadow(sampling_eps_min=0.5, sampling_eps_max=2**100),
}


@pytest.mark.parametrize("message", TRAINED)
def test_training_checkpoints(tmp_path, message):
  path = tmp_path / "x.ckpt"
  path.write_bytes(torch_bytes(TRAINED[message]))
  wanted = message if "is " in message or "average" in message else None
  read = lambda path: read_pickled(path, None)
  refused(read, path, wanted or message.split(", large")[0])


@pytest.mark.parametrize(
  "algorithms", [7, "EMA", [7], [("EMA", 7)], {"EMA": [1]}, None]
)
def test_algorithms_that_keep_no_average(tmp_path, algorithms):
  path = tmp_path / "x.pt"
  state = {"model": {"m": BASE}, "algorithms": algorithms}
  path.write_bytes(torch_bytes({"state": state}))
  assert read_pickled(path, None).kind is None
