"""Mutations of the containers of weights: safetensors, zip archives, pickles."""

import io
import json
import pickletools
import random
import struct
import warnings
import zipfile

from tests.fuzz import mutate
from tests.fuzz.watch import CANARY

_HUGE = [2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**64, -1, 0, 1]


def safetensors(rng: random.Random, data: bytes) -> tuple[bytes, str]:
  """A header that says something else; lengths are those of the new header."""
  size = struct.unpack("<Q", data[:8])[0]
  header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
  name = rng.choice(list(header))
  entry, act = dict(header[name]), rng.randrange(9)
  if act < 4:
    change = mutate.change_json(rng, header, ["__metadata__", name, "model.x"])
    header, what = change.value, change.what
  elif act == 4:
    entry["dtype"] = rng.choice("F64 F16 BF16 I64 I32 U8 BOOL F8_E4M3 U16 x".split())
    header[name], what = entry, f"{name} is {entry['dtype']}"
  elif act == 5:
    shape = list(entry["shape"])
    shape = rng.choice(
      [
        *(shape[::-1], [*shape, 1], [0, *shape], [rng.choice(_HUGE), *shape[1:]]),
        *([2**32, 2**32], [0, 2**62], [], [1] * 400, [shape]),
      ]
    )
    header[name], what = {**entry, "shape": shape}, f"{name} is {shape!r:.60}"
  elif act == 6:
    offsets = list(entry["data_offsets"])
    offsets[rng.randrange(2)] = rng.choice([*_HUGE, offsets[0] + 4, offsets[1] - 4])
    header[name], what = {**entry, "data_offsets": offsets}, f"{name} is at {offsets}"
  elif act == 7:
    body = rng.choice([b"", body[:-4], body + bytes(4), body[4:], body * 2])
    what = f"the body has {len(body)} bytes"
  else:
    values = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x80\x7f", b"\x01\x00\x00\x00"])
    place = rng.randrange(len(body) // 4) * 4
    body = body[:place] + values + body[place + 4 :]
    what = f"a value at {place} is {values.hex()}"
  text = mutate.dumps(header).encode("utf-8", "surrogatepass")
  length = len(text)
  if rng.random() < 0.1:
    length = rng.choice([n % 2**64 for n in _HUGE] + [length - 1, length + 1])
    what += f"; the length says {length}"
  return struct.pack("<Q", length) + text + body, what


def _call(module: str, name: str, argument: str) -> bytes:
  """A program that calls a function with a text."""
  return f"c{module}\n{name}\n(S'{argument}'\ntR".encode()


def _stack_call(module: str, name: str, argument: str) -> bytes:
  """The same with the operations of protocol 4."""
  texts = [struct.pack("<BB", 0x8C, len(t)) + t.encode() for t in (module, name)]
  return b"".join(texts) + b"\x93" + b"(S'" + argument.encode() + b"'\ntR"


_TOUCH = f"touch {CANARY}"
_PYTHON = f"open('{CANARY}', 'w')"
_FUNCTIONS = [
  *(("posix", "system", _TOUCH), ("os", "system", _TOUCH), ("nt", "system", _TOUCH)),
  *(("builtins", "eval", _PYTHON), ("builtins", "exec", _PYTHON)),
  *(("__builtin__", "eval", _PYTHON), ("builtins", "__import__", CANARY)),
  *(("subprocess", "Popen", _TOUCH), ("subprocess", "getoutput", _TOUCH)),
  *((CANARY, "fire", ""), ("importlib", "import_module", CANARY)),
  *(("webbrowser", "open", "http://127.0.0.1"), ("builtins", "open", CANARY)),
  *(
    ("torch.hub", "load", CANARY),
    ("numpy", "load", CANARY),
    ("builtins", "list", "x"),
  ),
  *(("runpy", "run_path", CANARY), ("pickle", "loads", CANARY), ("torch", "load", "x")),
  *(("builtins", "bytearray", "x"), ("operator", "attrgetter", "system")),
  *(("builtins", "getattr", "x"), ("tokenizers", f"{CANARY}.x", "x")),
  *(("transformers.tokenization_x", CANARY, "x"), ("collections", "Counter", "x")),
]


def _fragments(rng: random.Random) -> bytes:
  """Operations that no file of weights has."""
  laughs = b"(lp9\n" + b"".join(b"0(g%dg%dlp%d\n" % (n, n, n + 1) for n in range(9, 45))
  return rng.choice(
    [
      f"(S'{_TOUCH}'\nios\nsystem\n0".encode(),  # INST
      f"(cos\nsystem\nS'{_TOUCH}'\no0".encode(),  # OBJ
      f"cos\nsystem\n(S'{_TOUCH}'\nt\x81".encode("latin-1") + b"0",  # NEWOBJ
      b"ctorch\nSize\n}(S'x'\ncos\nsystem\nsb0",  # BUILD
      b"ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb0",
      b"(" * rng.choice([10, 2000, 100_000]),
      b"]" * 3000 + b"a" * 2999 + b"0",
      laughs + b"0",
      laughs + b"Q0",  # BINPERSID of what has no end of a printed form
      b"(" + laughs + b"X\x01\x00\x00\x00aX\x01\x00\x00\x00bK\x01tQ0",
      b"P" + b"storage\n0",
      b"\x8d" + struct.pack("<Q", 2**40) + b"x",  # BINUNICODE8
      b"\x96" + struct.pack("<Q", 2**36) + b"x",  # BYTEARRAY8
      b"\x8b" + struct.pack("<i", 2**30) + b"x",  # LONG4
      b"r" + struct.pack("<I", 2**31),  # LONG_BINPUT
      b"j" + struct.pack("<I", 2**31),
      b"\x95" + struct.pack("<Q", 2**62),  # FRAME
      b"\x82\x01", b"\x97", b"\x98", b"g9\n", b"p999999999\n", b"K\x00Q0", b"N}Q0",
      b"X\x03\x00\x00\x00\xed\xa0\x80" + b"0",  # half a surrogate pair
      b"I" + b"9" * 5000 + b"\n0",
      b"cbuiltins\ncomplex\n(S'9e999'\ntR0",
      b"cbuiltins\nset\n(cbuiltins\nset\n)Rl\x85R0",
    ]
  )  # fmt: skip


def pickle_program(rng: random.Random, program: bytes) -> tuple[bytes, str]:
  """Operations deleted, moved, changed or put in between."""
  starts = [place for _, _, place in pickletools.genops(program)]
  ops = [program[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
  said = []
  for _ in range(rng.choice([1, 1, 2, 4])):
    place, act = rng.randrange(1, len(ops) - 1), rng.randrange(7)
    if act == 0:
      said.append(f"{ops.pop(place)!r:.20} is deleted at {place}")
    elif act == 1:
      ops.insert(place, ops[place])
      said.append(f"{ops[place]!r:.20} twice at {place}")
    elif act == 2:
      other = rng.randrange(1, len(ops) - 1)
      ops[place], ops[other] = ops[other], ops[place]
      said.append(f"{place} and {other} change places")
    elif act in (3, 4):
      number = rng.choice([*_HUGE[:3], 0, 1, 2, 3, 255, -1])
      numbers = [i for i, op in enumerate(ops) if op[:1] in (b"K", b"M", b"J")]
      where = rng.choice(numbers or [place])
      new = rng.choice([b"J" + struct.pack("<I", number % 2**32), b"I%d\n" % number])
      new = rng.choice(
        [new, b"\x8a\x09" + (number % 2**64).to_bytes(9, "little"), b"N"]
      )
      said.append(f"{ops[where]!r:.20} becomes {new!r:.20} at {where}")
      ops[where] = new
    else:
      program = rng.choice([_call, _stack_call])(*rng.choice(_FUNCTIONS)) + b"0"
      fragment = program if rng.random() < 0.3 else _fragments(rng)
      ops.insert(place, fragment)
      said.append(f"{fragment[:60]!r} at {place}")
  return b"".join(ops), "; ".join(said)


def archive(rng: random.Random, data: bytes) -> tuple[bytes, str]:
  """A zip archive whose members or directory are not as they were."""
  source = zipfile.ZipFile(io.BytesIO(data))
  members = [(info.filename, source.read(info)) for info in source.infolist()]
  place = rng.randrange(len(members))
  name, content = members[place]
  act = rng.randrange(9)
  kind = zipfile.ZIP_STORED
  if act == 0:
    names = [
      "../../escape",
      "/tmp/escape",
      "x/data.pkl",
      "a" * 5000,
      "data.pkl",
      "\x1b",
    ]
    members[place] = (rng.choice([*names, f"{name}/", name.upper()]), content)
  elif act == 1:
    del members[place]
  elif act == 2:
    members.append((name, mutate.change_bytes(rng, content)[0]))
  elif act == 3:
    kind = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    members[place] = (name, rng.choice([content, bytes(8 * 2**20)]))
  elif act == 4:
    members[place] = (
      name,
      rng.choice([b"", content[:-1], content + b"x", content * 2]),
    )
  elif act == 5:
    members = [(n, b"big" if n.endswith("byteorder") else c) for n, c in members]
  elif act == 6:
    members += [("archive/data/0", b""), ("archive/data.pkl", members[0][1])]
  out = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(out, "w", kind) as made:
    warnings.simplefilter("ignore")  # of names that are there twice
    for member, bytes_of_it in members:
      made.writestr(member, bytes_of_it)
  found, what = out.getvalue(), f"act {act} on {name!r}"
  if act < 7:
    return found, what
  return _directory(rng, found)


def _directory(rng: random.Random, data: bytes) -> tuple[bytes, str]:
  """A field of a local header, of the directory or of its end is another number."""
  found, said = bytearray(data), []
  for _ in range(rng.choice([1, 1, 2])):
    magic, fields = rng.choice(
      [
        (b"PK\x03\x04", {6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2}),
        (b"PK\x01\x02", {8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 42: 4}),
        (b"PK\x05\x06", {4: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2}),
      ]
    )
    places = [i for i in range(len(found)) if found[i : i + 4] == magic]
    field, size = rng.choice(list(fields.items()))
    place = rng.choice(places) + field
    number = rng.choice(
      [0, 1, 8, 99, 2**16 - 1, 2**31, 2**32 - 1, rng.randrange(2**16)]
    )
    found[place : place + size] = (number % 256**size).to_bytes(size, "little")
    said.append(f"{magic[2:].hex()}+{field} = {number}")
  return bytes(found), ", ".join(said)


def edit_member(data: bytes, name: str, edit) -> bytes:
  """The archive with the content of one member changed by a function."""
  source, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
  with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
    for info in source.infolist():
      content = source.read(info)
      made.writestr(info.filename, edit(content) if info.filename == name else content)
  return out.getvalue()
