"""Corpora from outside: what a cut drops is said, what is damaged is refused."""

import dataclasses
import json
import os
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax import cli, data
from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data.detokenize import RULES, detokenizer
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import paths
from set_diffusion_jax.inputs.arrays import read_array
from set_diffusion_jax.storage import workdir
from tests import tiny


def write_lines(folder, documents, **fields):
  path = folder / "text.jsonl"
  path.write_text("".join(json.dumps(d) + "\n" for d in documents))
  return DataConfig(source="jsonl", train_path=str(path), **fields)


def refused(act, *words):
  with pytest.raises(UserError) as caught:
    act()
  message = str(caught.value)
  assert "\n" not in message and all(word in message for word in words), message


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.text("ab", max_size=20), min_size=1, max_size=9).filter(any),
  st.sampled_from(["documents", "sequences", "both", "none"]),
  st.booleans(),
  st.sampled_from(["sentence", "prompt"]),
  st.integers(5, 12),
)
def test_what_a_cut_drops_is_counted(documents, eos, bos, cut, length):
  documents = documents * 2 if len(documents) % 2 else documents
  config = DataConfig(eos=eos, bos=bos, length=length, cut=cut)
  tokenizer = data.ByteTokenizer()
  text = data.Tokens.of(documents, tokenizer, config.ends_documents)
  frame = data.Frame(length, tokenizer.vocabulary, bos, config.ends_sequences)
  if cut == "prompt" and config.ends_sequences:
    return
  make = data.Blocks.sentences if cut == "sentence" else data.Blocks.prompts
  blocks = make(text, frame)
  kept = sum(
    int(row["valid"].sum()) - bos - config.ends_sequences
    for row in (blocks[i] for i in range(len(blocks)))
  )
  found = blocks.dropped
  assert (found.of_tokens, found.of_documents) == (text.tokens, len(documents))
  assert found.tokens == text.tokens - kept
  assert (found.documents > 0) == (found.tokens > 0)
  assert data.Blocks.wrapped(text, frame).dropped is None


def test_what_is_dropped_is_said(tmp_path):
  documents = [{"text": "x" * 1003}] * 9 + [{"text": "y" * 20}]
  config = write_lines(
    tmp_path, documents, cut="sentence", length=64, validation_documents=2
  )
  corpus = data.load(config)
  tokens = 8 * (1004 - 63)
  assert corpus.fingerprint["train_cut_off"] == {
    "tokens": tokens,
    "of_tokens": 8 * 1004,
    "documents": 8,
    "of_documents": 8,
  }
  assert corpus.notes == (
    "training text: 7,528 of 8,032 tokens (93.7%), in 8 of 8 documents (100.0%) are "
    "cut off, being beyond data.length = 64",
    "held-out text: 941 of 1,025 tokens (91.8%), in 1 of 2 documents (50.0%) are cut "
    "off, being beyond data.length = 64",
  )
  assert data.load_validation(config, corpus.tokenizer).notes == corpus.notes[1:]
  data.prepare(config, tmp_path / "out")
  again = dataclasses.replace(
    config, source="prepared", directory=str(tmp_path / "out")
  )
  assert data.load(again).notes == corpus.notes
  whole = dataclasses.replace(config, length=2000)
  assert data.load(whole).notes == ()
  assert data.load(whole).fingerprint["train_cut_off"]["tokens"] == 0


def test_a_run_of_before_goes_on(tmp_path):
  """Its fingerprint does not say what was cut off."""
  config = tiny.config()
  new = {"train_sha256": "1", "train_cut_off": {"tokens": 3}}
  workdir.claim(tmp_path / "run", config, {"train_sha256": "1"})
  workdir.claim(tmp_path / "run", config, new)
  assert workdir.read(tmp_path / "run")[1] == new
  refused(
    lambda: workdir.claim(tmp_path / "run", config, {**new, "train_sha256": "2"}),
    "data (train_sha256) = '1', not '2'",
  )


ODD = st.text("ab \n\t\r\x1c\x85\u2028()[]{}\"'#$1", max_size=40)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(RULES)), ODD)
def test_detokenizers_do_what_their_patterns_say(name, text):
  expected = text
  for rule in RULES[name]:
    for _ in range(rule.times):
      if rule.regular:
        expected = re.sub(rule.pattern, rule.replacement, expected)
      else:
        expected = expected.replace(rule.pattern, rule.replacement)
  assert detokenizer(name)(text) == expected


@pytest.mark.parametrize("name", sorted(RULES))
def test_no_text_takes_a_detokenizer_long(name):
  before = time.process_time()
  for odd in (" ", "\n", "(", '"', "( ", " '", '" ', "1", "#### 1 ", " a ", ".", "= "):
    for text in (odd * 20_000, f'"{odd * 20_000}x', f"({odd * 20_000}"):
      detokenizer(name)(text)
  assert time.process_time() - before < 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  documents = [{"text": f"{i} {tiny.TEXT}"} for i in range(9)]
  data.prepare(write_lines(folder, documents), folder / "out")
  return folder / "out"


def changed(manifest, path, value):
  *parts, last = path
  for part in parts:
    manifest = manifest[part]
  if value is None:
    del manifest[last]
  else:
    manifest[last] = value


FILE = "train-00000.array_record"


@pytest.mark.parametrize(
  ("path", "value", "words"),
  [
    (("settings",), None, "settings is missing"),
    (("settings",), [], "settings cannot be '[]'"),
    (("settings", "kind"), "other", "kind cannot be 'other'"),
    (("settings", "record"), 0, "record cannot be '0'"),
    (("settings", "record"), 7, "a shard is damaged"),
    (("settings", "tokenizer", "file"), "../../secret", "file cannot be"),
    (("settings", "tokenizer", "vocabulary"), 10**6, "prepared with another one"),
    (("settings", "tokenizer", "vocabulary"), 40, "has an id above 39"),
    (("settings", "tokenizer", "is"), {"name": "json"}, "prepared with another one"),
    (("files", "../x"), {"bytes": 1, "sha256": ""}, "is no name of a file"),
    (("files", "/etc/passwd"), {"bytes": 1, "sha256": ""}, "is no name of a file"),
    (("files", FILE), 5, "bytes is missing"),
    (("files", FILE, "bytes"), -1, "bytes cannot be '-1'"),
    (("sides", "train", "ends"), "../x.npy", "ends cannot be"),
    (("sides", "train", "ends"), FILE, "not an array of numbers"),
    (("sides", "train", "ends"), "validation.ends.npy", "must be int64 [9]"),
    (("sides", "train", "shards"), [], "shards cannot be"),
    (("sides", "train", "shards", 0, "file"), "other", "file cannot be 'other'"),
    (("sides", "train", "shards", 0, "records"), -1, "records cannot be"),
    (("sides", "train", "shards", 0, "records"), True, "records cannot be 'True'"),
    (("sides", "train", "tokens"), 1, "tokens cannot be '1'"),
    (("format_version",), 2, "format version 2, this code reads 1"),
    (("source_files",), {}, "source_files cannot be '{}'"),
  ],
)
def test_a_manifest_that_cannot_be(corpus, tmp_path, path, value, words):
  manifest = json.loads((corpus / "manifest.json").read_text())
  changed(manifest, path, value)
  for file in corpus.iterdir():
    (tmp_path / file.name).symlink_to(file)
  (tmp_path / "manifest.json").unlink()
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))

  def read_all():
    blocks = data.load(
      DataConfig(source="prepared", directory=str(tmp_path), length=32)
    ).train
    return [blocks[row] for row in range(len(blocks))]

  refused(read_all, "data.directory", words)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_devices_and_pipes_in_place_of_a_manifest(tmp_path, name):
  config = write_lines(tmp_path, [{"text": f"{i} {tiny.TEXT}"} for i in range(9)])
  folder = tmp_path / "prepared"
  folder.mkdir()
  for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo):
    make(folder / name)
    if name == "plan.json":
      refused(lambda: data.prepare(config, folder), name, "must be a file")
    else:
      given = DataConfig(source="prepared", directory=str(folder))
      refused(lambda given=given: data.load(given), "data.directory", "must be a file")
    (folder / name).unlink()


def test_an_endless_tokenizer_is_refused(monkeypatch):
  monkeypatch.setattr(paths.content, "__defaults__", (10**6,))
  refused(lambda: data.load_tokenizer("/dev/zero"), "holds more than 1,000,000 bytes")


def test_ends_of_documents_that_cannot_be(corpus, tmp_path):
  for file in corpus.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  path = tmp_path / "train.ends.npy"
  ends = np.load(path)
  config = DataConfig(source="prepared", directory=str(tmp_path), length=32)
  for broken, words in (
    (ends[[1, 0, *range(2, 9)]], "ends before it starts"),
    (np.concatenate([ends[:-1], ends[-1:] + 1]), "must end at"),
    (ends - ends[0] - 1, "ends before it starts"),
  ):
    np.save(path, broken)
    refused(lambda: data.load(config), "train.ends.npy", words)
  content = path.read_bytes()
  path.write_bytes(content.replace(b"(9,)", b"(9e)"))
  refused(lambda: data.load(config), "train.ends.npy", "is damaged or not an array")


def test_notes_of_an_unfinished_preparation(tmp_path):
  """A damaged one is written again; a damaged plan is refused."""
  config = write_lines(tmp_path, [{"text": f"{i} {tiny.TEXT}"} for i in range(9)])
  data.prepare(config, tmp_path / "whole")

  def stop(total):
    def advance(count):
      raise KeyboardInterrupt

    return advance

  with pytest.raises(KeyboardInterrupt):
    data.prepare(config, tmp_path / "out", begin=stop)
  for broken in ("{", "[]", '{"text_sha256": 1}', '{"a": ' * 2000):
    (tmp_path / "out" / "train-00000.json").write_text(broken)
    (tmp_path / "out" / "manifest.json").unlink(missing_ok=True)
    plan = (tmp_path / "out" / "plan.json").read_text()
    (tmp_path / "out" / "plan.json").write_text(broken)
    if not broken.endswith("1}"):
      refused(lambda: data.prepare(config, tmp_path / "out"), "--output=", "plan.json")
    (tmp_path / "out" / "plan.json").write_text(plan)
  data.prepare(config, tmp_path / "out")
  contents = [
    {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    for name in ("whole", "out")
  ]
  assert contents[0] == contents[1]


def npy(header, content=b""):
  text = header.encode()
  text += b" " * (-(len(text) + 11) % 64) + b"\n"
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "is damaged or not an array"),
    (b"text", "is damaged or not an array"),
    (npy(HEADER.format("<i4", "(1000000000000,)"), bytes(64)), "is damaged"),
    (npy(HEADER.format("<i4", f"({10**30},)"), bytes(64)), "is damaged"),
    (npy(HEADER.format("<i4", "(-1,)"), bytes(64)), "is damaged"),
    (npy(HEADER.format("<i4", "('a',)"), bytes(64)), "is damaged"),
    (npy(HEADER.format("|O", "(4,)"), bytes(64)), "is damaged"),
    (npy(HEADER.format("<U4", "(4,)"), bytes(64)), "is not an array of numbers"),
    (npy(HEADER.format("<c8", "(4,)"), bytes(64)), "is not an array of numbers"),
    (npy("(" * 3000), "is damaged"),
    (npy("{'descr': __import__('os').getcwd()}"), "is damaged"),
    (npy("\ufffd("), "is damaged"),
  ],
)
def test_arrays_that_are_refused(tmp_path, content, words):
  path = tmp_path / "order.npy"
  path.write_bytes(content)
  refused(lambda: read_array(path, "evaluate.order"), "evaluate.order: ", words)


def test_arrays_that_are_read(tmp_path):
  for array in (np.arange(16), np.arange(16.0).reshape(2, 8), np.uint8([3])):
    np.save(tmp_path / "order.npy", array)
    found = read_array(tmp_path / "order.npy", "evaluate.order")
    np.testing.assert_array_equal(found, array)
  refused(lambda: read_array(tmp_path, "evaluate.order"), "is no regular file")
  refused(lambda: read_array(tmp_path / "gone.npy", "evaluate.order"), "No such file")


def test_inspect_says_what_was_changed_and_cut(tmp_path, capsys):
  path = tmp_path / "book [1912].txt"
  lines = b"".join(b"%d past sang river mill ran by autumn.\r\n" % i for i in range(60))
  path.write_bytes(b"\xef\xbb\xbf" + lines)
  fields = {"source": "lines", "train_path": path, "cut": "sentence", "length": 16}
  command = ["inspect", "--data", "--config=quickstart", "--rows=1"]
  command += [f"--config.data.{name}={value}" for name, value in fields.items()]
  output = tmp_path / "figures.json"
  assert cli.main([*command, "--config.method.name=ar", f"--output={output}"]) == 0
  printed = capsys.readouterr().out
  assert "1 byte-order mark(s) left out, 60 line end(s) of CR LF read" in printed
  assert re.search(r"training text: .* in 5\d of 55 documents \(\d+.\d%\) are", printed)
  cut = json.loads(output.read_text())["train_cut_off"]
  assert cut["of_documents"] == 55 and cut["documents"] > 50
  assert "\r" not in printed and "\ufeff" not in printed


def test_figures_for_a_model_card_are_bounded_json(tmp_path, capsys):
  path = tmp_path / "figures.json"
  command = ["convert", f"{tmp_path}/a", f"{tmp_path}/b", f"--evaluation={path}"]
  for content, words in (
    (b'{"a":' * 10**5, "is nested deeper"),
    (b'{"a": %s}' % (b"9" * 5000), "is not JSON"),
    (b'{"a": NaN}', "NaN is no JSON number"),
    (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
    (b"[]", "must be a JSON object"),
  ):
    path.write_bytes(content)
    assert cli.main(command) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: --evaluation={path}: ") and words in printed
    assert printed.count("\n") == 1
