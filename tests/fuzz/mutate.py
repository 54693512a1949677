"""Mutations of bytes, of JSON and of text; a random generator decides."""

import json
import random
from typing import NamedTuple

_WORDS = (
  b'\x00 \xff \x80 \x7f \n \r { [ " \\ , : \xef\xbb\xbf \xe2\x80\xa8 \x1b'.split()
)
LFS = (
  b"version https://git-lfs.github.com/spec/v1\n"
  b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
  b"size 437592000\n"
)


class Raw(NamedTuple):
  """Stands in JSON as it is written here."""

  text: str


class Change(NamedTuple):
  """What was done to a JSON value.

  Attributes:
    value: the changed value.
    what: in a line.
    key: the innermost name of an object on the way to the place.
    old: what stood there; None where nothing did.
    new: what stands there now; None where nothing does.
  """

  value: object
  what: str
  key: str
  old: object = None
  new: object = None


def hostile(rng: random.Random):
  """A JSON value that nobody expects."""
  return rng.choice(
    [
      *(None, True, False, 0, 1, -1, 7, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63)),
      *(0.5, -0.5, 1e-300, 1e308, "", " ", "x", "0", "true", "\x00", "\ud800", "é" * 9),
      *(
        "../../escape",
        "/etc/passwd",
        "C:\\x",
        "a" * 5000,
        "\x1b[31mred",
        "two\nlines",
      ),
      *("\u2028", "\u202eright", "${x}", "%s%n", "__class__", "~", "-", "nan"),
      *([], {}, [[]], [None], {"a": 1}, [0] * 3000, ["x"] * 3, {"": ""}),
      *(Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("1" * 5000), Raw("-0")),
      *(
        Raw("[" * 99 + "]" * 99),
        Raw("[" * 20000 + "]" * 20000),
        Raw("01"),
        Raw("'x'"),
      ),
      Raw('{"a": 1, "a": 2}'),
    ]
  )


def near(rng: random.Random, value):
  """A value close to another one."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return rng.choice(
      [value + 1, value - 1, value * 2, -value, value // 2, value + 0.5]
    )
  if isinstance(value, float):
    return rng.choice([value * 2, -value, value + 1, int(value), str(value)])
  if isinstance(value, str):
    place = rng.randrange(len(value) + 1)
    letter = rng.choice("aZ0_.-/ \x00é\n")
    return rng.choice([value[:place] + letter + value[place + 1 :], value[:place]])
  if isinstance(value, list):
    return rng.choice([value[:-1], value + value[:1], value[::-1], [value]])
  if isinstance(value, dict):
    return rng.choice([list(value), {**value, "more": 1}, {}])
  return rng.choice([0, "", False])


def _places(value, keys=(), depth=0) -> list[tuple]:
  """The way to every value inside a JSON value; long lists are sampled."""
  found = []
  if isinstance(value, dict) and depth < 8:
    for key, inner in value.items():
      found += [(*keys, key), *_places(inner, (*keys, key), depth + 1)]
  elif isinstance(value, list) and depth < 8:
    for index in [*range(min(4, len(value))), len(value) - 1] if value else []:
      found += [(*keys, index), *_places(value[index], (*keys, index), depth + 1)]
  return found


def change_json(rng: random.Random, value, more_keys=()) -> Change:
  """One change somewhere inside a JSON object.

  Args:
    rng: decides.
    value: stays as it is.
    more_keys: names that may be added.
  """
  value = json.loads(json.dumps(value))
  places = _places(value)
  if not places:
    return Change(hostile(rng), "the whole is another value", "")
  place = rng.choice(places)
  outer = value
  for key in place[:-1]:
    outer = outer[key]
  last = place[-1]
  key = next((str(k) for k in reversed(place) if isinstance(k, str)), "")
  way, old = "/".join(map(str, place)), outer[last]
  act = rng.choice("hostile hostile hostile near near delete rename add twice".split())
  if isinstance(outer, list) and act in ("rename", "add", "twice"):
    act = "near"
  if act in ("hostile", "near"):
    new = outer[last] = hostile(rng) if act == "hostile" else near(rng, old)
    return Change(value, f"{way} = {new!r:.60}", key, old, new)
  if act == "delete":
    del outer[last]
    return Change(value, f"{way} is deleted", key, old)
  if act == "rename":
    name = rng.choice([f"{last}x", last.upper(), last[:-1], f"model.{last}", ""])
    outer[name] = outer.pop(last)
    return Change(value, f"{way} is renamed {name!r}", key, old)
  if act == "add":
    name = rng.choice([*more_keys, "unheard_of", "\x1b[2J", "a" * 300])
    new = outer[name] = hostile(rng)
    return Change(value, f"{name!r:.40} = {new!r:.40} beside {way}", name, None, new)
  outer[last] = Twice(old, near(rng, old))
  return Change(value, f"{way} is there twice", key, old, outer[last])


class Twice(NamedTuple):
  """Two values under one key."""

  first: object
  second: object


def dumps(value) -> str:
  """JSON text of a value in which `Raw` and `Twice` may stand."""
  if isinstance(value, Raw):
    return value.text
  if isinstance(value, Twice):
    return dumps(value.first)
  if isinstance(value, dict):
    pairs = []
    for key, inner in value.items():
      both = inner if isinstance(inner, Twice) else [inner]
      pairs += [f"{json.dumps(key)}: {dumps(one)}" for one in both]
    return "{" + ", ".join(pairs) + "}"
  if isinstance(value, list):
    return "[" + ", ".join(map(dumps, value)) + "]"
  return json.dumps(value)


def change_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
  """One to three changes of bytes, and what they were."""
  found, said = bytearray(data), []
  for _ in range(rng.choice([1, 1, 1, 2, 3])):
    size = len(found)
    place, length = rng.randrange(size + 1), rng.choice([1, 2, 4, 8, 100, 5000])
    act = rng.choice("flip set word insert delete cut more zero copy".split())
    if act == "flip" and place < size:
      found[place] ^= 1 << rng.randrange(8)
    elif act == "set" and place < size:
      found[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    elif act == "word":
      word = rng.choice(_WORDS)
      found[place : place + len(word)] = word
    elif act == "insert":
      found[place:place] = rng.choice([*_WORDS, rng.randbytes(length)])
    elif act == "delete":
      del found[place : place + length]
    elif act == "cut":
      del found[place:]
    elif act == "more":
      found += rng.randbytes(length)
    elif act == "zero":
      found[place : place + length] = bytes(len(found[place : place + length]))
    elif act == "copy":
      found[place:place] = found[place : place + length]
    said.append(f"{act} at {place}")
  return bytes(found), ", ".join(said)


def change_file(rng: random.Random, data: bytes) -> tuple[bytes, str]:
  """A file as a whole: as people really get it wrong, or some of its bytes."""
  act = rng.randrange(12)
  if act == 0:
    return b"", "the file is empty"
  if act == 1:
    return LFS, "the file is a pointer of Git LFS"
  if act == 2:
    return b"<!DOCTYPE html>\n<html>404</html>\n", "the file is a web page"
  if act == 3:
    return data[: rng.randrange(len(data) + 1)], "the file is cut"
  if act == 4:
    return bytes(len(data)), "the file is all zeros"
  if act == 5:
    return data.decode("latin-1").encode("utf-16"), "the file is UTF-16"
  if act == 6:
    return b"\xef\xbb\xbf" + data, "the file has a byte-order mark"
  if act == 7:
    return data.replace(b"\n", b"\r\n"), "the lines are Windows's"
  return change_bytes(rng, data)
