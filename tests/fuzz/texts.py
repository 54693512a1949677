"""Corpora and prompts that nobody should have sent."""

import functools
import gzip
import io
import json
import pathlib
import shutil
import sys

import numpy as np

from set_diffusion_jax import cli, data
from set_diffusion_jax.cli.texts import read_texts
from set_diffusion_jax.decode import template
from tests.fuzz import bases, links, mutate, mutate_text
from tests.fuzz.check import Case

# So that what is read is the text and nothing else.
_ALL = {"bos": False, "eos": "none"}


def _rows(corpus, folder: dict) -> int:
  """Reads every sequence; keeps the ids and the corpus for the check."""
  sides = []
  for side in (corpus.train, corpus.validation):
    examples = side.batch(range(len(side)))[0] if len(side) else None
    sides.append(
      examples["tokens"][examples["valid"]] if examples else np.zeros(0, int)
    )
  folder.update(ids=np.concatenate(sides), corpus=corpus)
  print(f"{len(folder['ids'])} ids")
  print(corpus.tokenizer.decode(folder["ids"][:200]).encode("unicode_escape").decode())
  return 0


def _open(found: dict, **fields) -> int:
  """Opens a corpus as training and `inspect --data` do, and reads all of it."""
  return cli.guarded(lambda: _rows(data.load(bases.data_config(**fields)), found))


def _whole(content: bytes, path: pathlib.Path) -> bytes:
  return gzip.decompress(content) if path.suffix == ".gz" else content


def _text(content: bytes) -> str:
  """What a file says by the rule of docs/data.md; ValueError: it is no text."""
  return content.decode().removeprefix("\ufeff").replace("\r\n", "\n")


def _fields(text: str, field: str) -> list[str]:
  """A field of each JSON line."""
  lines = [line.removeprefix("\ufeff") for line in text.split("\n") if line.strip()]
  return [json.loads(line)[field] for line in lines]


def _same_text(found: dict, content: bytes, path: pathlib.Path, field: str | None):
  """Whether the ids are the bytes of the text, read in another way."""
  try:
    text = _text(_whole(content, path))
    if field is not None:
      text = "".join(_fields(text, field))
  except (ValueError, KeyError, OSError, EOFError) as error:
    return f"the file is not sound, but accepted: {error}"
  read = bytes(found["ids"].astype(np.uint8)).decode()
  return None if read == text else "what is read is not what is there"


def _corpus(kind, rng, home, box, name, change, **fields) -> Case:
  """The case of a file that training would read."""
  path = box / (links.name(rng)[:80] + name if rng.random() < 0.1 else name)
  content, what = change(rng, (home / "texts" / name).read_bytes())
  try:
    path.write_bytes(content)
  except OSError:
    path = box / name
    path.write_bytes(content)
  (box / "out").mkdir()
  known = {"train_path": str(path), **fields}
  field = "text" if fields["source"] == "jsonl" else None
  if rng.random() < 0.7:
    found: dict = {}
    run = functools.partial(_open, found, **_ALL, **known)
    right = lambda _: _same_text(found, content, path, field)
    shown = [f"data.{key}={value}" for key, value in known.items()]
    return Case(kind, what, box, run, shown, (path.name,), (), right)
  return _prepare(kind, what, home, box, known, path.name)


def _prepare(kind, what, home, box, known: dict, *names) -> Case:
  folder = box / "out" / "prepared"
  changes = [f"--config.data.{key}={value}" for key, value in known.items()]
  arguments = ["prepare", f"--config={home}/config.py", *changes]
  arguments += [f"--output={folder}", "--workers=1"]
  right = lambda _: _checked(folder)
  run = lambda: cli.main(arguments)
  return Case(kind, what, box, run, arguments, names, (folder,), right)


def _checked(folder: pathlib.Path) -> str | None:
  code = cli.main(["prepare", f"--check={folder}"])
  return None if code == 0 else "the prepared folder is not sound"


def text(rng, home, box) -> Case:
  source = rng.choice(["text", "lines"])
  return _corpus(source, rng, home, box, "text.txt", mutate_text.text, source=source)


def jsonl(rng, home, box) -> Case:
  change = mutate_text.records
  return _corpus("jsonl", rng, home, box, "text.jsonl", change, source="jsonl")


def zipped(rng, home, box) -> Case:
  name, source = rng.choice(
    [("text.txt.gz", "text"), ("text.txt.gz", "lines"), ("text.jsonl.gz", "jsonl")]
  )
  plain = (home / "texts" / name.removesuffix(".gz")).read_bytes()
  change = lambda rng, _: mutate_text.zipped(rng, plain)
  return _corpus("gz", rng, home, box, name, change, source=source)


def prepared(rng, home, box) -> Case:
  """A prepared folder of which a file is another."""
  base = rng.choice(["tokens", "stored"])
  folder = shutil.copytree(home / base, box / "source")
  files = sorted(folder.iterdir())
  file = folder / "manifest.json" if rng.random() < 0.5 else rng.choice(files)
  content, sound = file.read_bytes(), True
  act = rng.randrange(10)
  if act == 0:
    file.unlink()
    what = "is not there"
  elif act == 1:
    (box / "elsewhere").write_bytes(content)
    file.unlink()
    file.symlink_to(rng.choice([box / "elsewhere", file.name, "/dev/zero"]))
    what = f"leads to {file.readlink()}"
  elif file.suffix == ".json" and act < 8:
    change = mutate.change_json(rng, json.loads(content), ["files", "../x"])
    file.write_bytes(mutate.dumps(change.value).encode())
    what, sound = change.what, False
  else:
    content, what = mutate.change_file(rng, content)
    file.write_bytes(content)
    sound = file.name != "manifest.json"
  what, names = f"{file.name} {what}", (file.name, "source", "data.")
  if rng.random() < 0.3:
    arguments = ["prepare", f"--check={folder}"]
    run = lambda: cli.main(arguments)
    return Case("prepared", what, box, run, arguments, names)
  found, good = {}, {}
  known = {"source": "prepared", **_ALL}
  run = functools.partial(_open, found, directory=str(folder), **known)

  def right(_):
    if not sound:
      return None
    _open(good, directory=str(home / base), **known)
    same = np.array_equal(found["ids"], good["ids"])
    return None if same else "a damaged file is read as another text"

  return Case(
    "prepared", what, box, run, [f"data.directory={folder}"], names, (), right
  )


def tokenizer(rng, home, box) -> Case:
  """A tokenizer that a corpus is read with."""
  name = rng.choice(["tokenizer.json", "tokenizer.json", "tokenizer.model"])
  if not (home / "texts" / name).exists():
    name = "tokenizer.json"
  path, content = box / name, (home / "texts" / name).read_bytes()
  if name.endswith("json") and rng.random() < 0.8:
    keys = ["byte_fallback", "fuse_unk", "max_input_chars_per_word", "normalizer"]
    change = mutate.change_json(rng, json.loads(content), keys)
    content, what = mutate.dumps(change.value).encode(), change.what
  else:
    content, what = mutate.change_file(rng, content)
  path.write_bytes(content)
  (box / "out").mkdir()
  known = {"tokenizer": str(path), "source": "jsonl"}
  known["train_path"] = str(home / "texts" / "text.jsonl")
  names = (name, "data.tokenizer")
  if rng.random() < 0.2:
    return _prepare("tokenizer", what, home, box, known, *names)
  found: dict = {}
  run = functools.partial(_open, found, **_ALL, **known)
  right = lambda _: _ids_of_words(found)
  shown = [f"data.{key}={value}" for key, value in known.items()]
  return Case("tokenizer", what, box, run, shown, names, (), right)


def _ids_of_words(found: dict) -> str | None:
  vocabulary, ids = found["corpus"].tokenizer.vocabulary, set(found["ids"].tolist())
  if ids and not 0 <= min(ids) <= max(ids) < vocabulary.size:
    return f"ids up to {max(ids)}, but the vocabulary has {vocabulary.size}"
  for kind in ("bos", "eos", "pad", "mask"):
    number = getattr(vocabulary, kind)
    if not 0 <= number < vocabulary.size:
      return f"{kind} is {number} of {vocabulary.size}"
    if number in ids:
      return f"id {number} of {kind} is that of a word"
  return None


_TEMPLATE = "The [MASK:3] sat on the [MASK] and [MASK:12] ran away.\n"
_PROMPTS = "The cat\nsat on\nthe mat and then\n"


def prompts(rng, home, box) -> Case:
  """Texts for `sample` and `infill`, from a file or standard input, and their ids."""
  gaps, lines = rng.random() < 0.4, rng.random() < 0.5
  field = "text" if gaps else "prompt"
  good = (_TEMPLATE if gaps else _PROMPTS).encode()
  if lines:
    records = [json.dumps({field: line}) for line in good.decode().splitlines()]
    good = ("\n".join(records) + "\n").encode()
  content, what = (mutate_text.records if lines else mutate_text.text)(rng, good)
  path = box / ("input.jsonl" if lines else "input.txt")
  path.write_bytes(content)
  standard = rng.random() < 0.2
  found: list[str] = []

  def act():
    texts = read_texts("-" if standard else str(path), field)
    found.extend(texts)
    tokenizer = data.ByteTokenizer()
    if rng.random() < 0.3:
      tokenizer = data.load_tokenizer(str(home / "texts" / "tokenizer.json"))
    for one in texts:
      ids = template(one, tokenizer, True) if gaps else tokenizer.encode(one)
      print(json.dumps({field: one, "ids": len(ids)}))
    return 0

  def run():
    given = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    try:
      return cli.guarded(act)
    finally:
      sys.stdin = given

  def right(_):
    try:
      text = _text(content)
    except UnicodeDecodeError:
      return "the file is not UTF-8, but accepted"
    if text.lstrip().startswith("{"):
      try:
        wanted = _fields(text, field)
      except (ValueError, KeyError, TypeError):
        return "the file is not JSON lines, but accepted"
    else:
      wanted = [line for line in text.split("\n") if line.strip()]
    return None if found == wanted else "other texts than those of the file"

  what = f"{path.name}{' on standard input' if standard else ''}: {what}"
  names = (path.name, "--input", "[MASK", "text '", "has no gap")
  return Case("prompts", what, box, run, [f"--input={path}"], names, (), right)


KINDS = {
  "text and lines": text,
  "jsonl": jsonl,
  "gz": zipped,
  "prepared": prepared,
  "tokenizer": tokenizer,
  "prompts": prompts,
}
SHARES = {"text and lines": 4, "jsonl": 4, "gz": 2, "prepared": 4} | {
  "tokenizer": 3,
  "prompts": 5,
}


def good(home: pathlib.Path) -> list:
  """What must be accepted before anything is mutated."""
  texts = home / "texts"
  known = [
    {"source": source, "train_path": str(texts / name)}
    for source, name in (
      *(("text", "text.txt"), ("lines", "text.txt.gz"), ("jsonl", "text.jsonl")),
      ("jsonl", "text.jsonl.gz"),
    )
  ]
  for name in ("tokenizer.json", "tokenizer.model"):
    if (texts / name).exists():
      known.append({**known[0], "tokenizer": str(texts / name)})
  for base in ("tokens", "stored"):
    known.append({"source": "prepared", "directory": str(home / base)})
  return [functools.partial(_open, {}, **_ALL, **fields) for fields in known]
