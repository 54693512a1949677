"""Mutations of texts, of records and of compressed files."""

import gzip
import json
import random

from tests.fuzz import mutate

# What people's texts really have between their words.
PIECES = [
  *(
    "\ufeff",
    "\r\n",
    "\r",
    "\n\n\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
  ),
  *(
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\u200b",
    "e\u0301",
    "\U0001f468\u200d\U0001f469",
    "ﬁ",
  ),
  *(
    "<s>",
    "</s>",
    "[MASK]",
    "[MASK:3]",
    "[MASK:0]",
    "<mask>",
    "<pad>",
    "\t",
    "\\u0000",
  ),
  *("[MASK:99999999999999999999]", "[MASK:٣]", "[MASK: 3]", "[MASK:-1]", "[MASK:]"),
  *("{", '{"text": 1}', "[MASK", "%s", "{0}", "x" * 9000, " " * 400, "İ", "ß" * 50),
]
ESCAPES = [r"\ud800", r"\udc00\ud800", r"\u0000", r"\u2028", r"\ud83d\ude00", r"\/"]


def text(rng: random.Random, content: bytes) -> tuple[bytes, str]:
  """A text of which some places are other."""
  act = rng.randrange(6)
  if act == 0:
    return mutate.change_file(rng, content)
  if act == 1:
    encoding = rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp1252"])
    return (content.decode() + "é").encode(encoding), f"is {encoding}"
  if act == 2:
    bad = rng.choice(
      [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80"]
    )
    place = rng.choice([0, len(content), rng.randrange(len(content))])
    return content[:place] + bad + content[place:], f"{bad.hex()} at {place}"
  text, said = content.decode(), []
  for _ in range(rng.choice([1, 2, 5])):
    piece = rng.choice(PIECES)
    place = rng.choice([0, len(text), rng.randrange(len(text) + 1)])
    text = text[:place] + piece + text[place:]
    said.append(f"{piece!r:.20} at {place}")
  return text.encode(), ", ".join(said)


def records(rng: random.Random, content: bytes) -> tuple[bytes, str]:
  """JSON lines of which one is another, or any of their bytes."""
  if rng.random() < 0.3:
    return text(rng, content)
  lines = content.decode().split("\n")[:-1]
  place = rng.randrange(len(lines))
  if rng.random() < 0.3:
    escape = rng.choice(ESCAPES)
    lines[place] = lines[place].replace("cat", escape)
    return ("\n".join(lines) + "\n").encode(), f"{escape} in line {place + 1}"
  if rng.random() < 0.2:
    lines[place] = lines[place].replace("cat", rng.choice(PIECES).replace("\n", " "))
    return ("\n".join(lines) + "\n").encode(), f"a piece in line {place + 1}"
  change = mutate.change_json(rng, json.loads(lines[place]), ["text", "prompt"])
  lines[place] = mutate.dumps(change.value)
  return ("\n".join(lines) + "\n").encode(), f"line {place + 1}: {change.what}"


def zipped(rng: random.Random, content: bytes) -> tuple[bytes, str]:
  """A compressed file that is cut, damaged, or several."""
  whole = gzip.compress(content, mtime=0)
  act = rng.randrange(5)
  if act == 0:
    return whole[: rng.randrange(len(whole))], "the archive is cut"
  if act == 1:
    return whole + rng.choice([whole, b"\0" * 9, b"junk", whole[:40]]), "more follows"
  if act == 2:
    return content, "is not compressed"
  return mutate.change_bytes(rng, whole)
