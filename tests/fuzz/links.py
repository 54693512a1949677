"""Links, pipes, devices and names."""

import os
import pathlib
import random
import shutil

from tests.fuzz.watch import SECRET


def plant(rng: random.Random, box: pathlib.Path, source: pathlib.Path):
  """Puts something else in the place of a file; returns what, the file, if it is wrong.

  A link may lead to a place inside of the checkpoint, or follow the layout of the hub's
  cache (`snapshots/REVISION/FILE -> ../../blobs/HASH`); any other one is not followed.
  """
  files = sorted(p for p in source.rglob("*") if p.is_file())
  file = rng.choice(files)
  outside = box / "elsewhere"
  outside.mkdir()
  content = file.read_bytes()
  act = rng.randrange(9)
  if act == 8 and (source / "checkpoints").exists():
    act = 1
  if act != 8:
    file.unlink()
  relative = os.path.relpath(outside, file.parent)
  name = file.relative_to(source)
  if act in (0, 1):  # the very file, but somewhere else
    (outside / file.name).write_bytes(content)
    file.symlink_to(f"{relative}/{file.name}" if act else outside / file.name)
    return f"{name} leads out of the checkpoint", name, True
  if act == 2:
    (outside / "secret").write_text(f'{{"{SECRET}": 1}}\n')
    file.symlink_to(outside / "secret")
    return f"{name} leads to a secret", name, True
  if act == 3:
    file.symlink_to(file.name)
    return f"{name} leads to itself", name, True
  if act == 4:
    file.symlink_to(
      rng.choice(["nowhere", "/dev/zero", "/proc/self/environ", "/dev/full"])
    )
    return f"{name} leads to {os.readlink(file)}", name, True
  if act == 5:
    os.mkfifo(file)
    return f"{name} is a pipe", name, True
  if act == 6:
    file.mkdir()
    return f"{name} is a folder", name, True
  if act == 7:  # inside of the checkpoint: fine
    inner = file.with_name("other")
    inner.write_bytes(content)
    file.symlink_to("other")
    return f"{name} leads to another file beside it", name, False
  # The hub's cache.
  cache = box / "cache" / "models--a--b"
  (cache / "blobs").mkdir(parents=True)
  snapshot = cache / "snapshots" / "0123abc"
  shutil.copytree(source, snapshot)
  for number, path in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
    path.rename(cache / "blobs" / str(number))
    path.symlink_to(os.path.relpath(cache / "blobs" / str(number), path.parent))
  shutil.rmtree(source)
  source.symlink_to(snapshot)
  return "the hub's cache", None, False


_NAMES = [
  *("a [1]", "a*b", "a?b", "a#1", "a%20b", "a%b", "a|b", "a&b=c", "a;b", "a:b", "s3:x"),
  *("a\nb", "a\tb", "a\x1b[2Jb", "a\\b", "-a", "--output=x", "~", "~root", "$HOME"),
  *("a b ", " a", "ü", "u\u0308", "\u202ea", "a\u2028b", "日本", "a'b", 'a"b', "{a}"),
  *("a.json", "1", "0", "a@b", "a,b", "a=b", "..a", "...", "checkpoints", "x" * 255),
  *("x" * 300, "x" * 240, "é" * 120, "a\udcffb", "CON", "a<b>", "\x01", "[", "a%00b"),
  *("file:", "gs:", "a%2Fb", "a+b", "`a`", "a\r", "\ufeffa", "NaN", "null"),
]


def name(rng: random.Random) -> str:
  """A name of a file that is not like others."""
  return rng.choice(_NAMES)
