"""Prepared corpora: the same sequences as the text, whatever happens on the way."""

import dataclasses
import json
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax import data
from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import preparation as module
from set_diffusion_jax.data import prepared
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import workdir
from tests import tiny

BPE = data.train_bpe([tiny.TEXT], 300)


@pytest.fixture(autouse=True)
def small_records(monkeypatch):
  """So that a few words are many records."""
  monkeypatch.setattr(prepared, "RECORD", 7)


def write_lines(folder, documents):
  path = folder / "text.jsonl"
  path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
  return DataConfig(
    source="jsonl", train_path=str(path), length=8, validation_documents=2
  )


def prepared_config(config, folder):
  return dataclasses.replace(config, source="prepared", directory=str(folder))


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def equal_blocks(first, second):
  assert len(first) == len(second) and first.digest == second.digest
  for row in range(len(first)):
    for name, value in first[row].items():
      np.testing.assert_array_equal(value, second[row][name])
    np.testing.assert_array_equal(first.bytes_of(row), second.bytes_of(row))


DOCUMENTS = st.lists(st.text("ab é\n", max_size=30), min_size=4, max_size=12).filter(
  lambda documents: (
    len("".join(documents[:-2]).encode()) > 12
    and len("".join(documents[-2:]).encode()) > 12
  )
)


@settings(max_examples=40, deadline=None)
@given(
  DOCUMENTS,
  st.sampled_from(["wrapped", "sentence"]),
  st.sampled_from(["documents", "sequences", "both", "none"]),
  st.booleans(),
  st.integers(4, 12),
  st.sampled_from([20, 10**6]),
  st.booleans(),
)
def test_sequences_are_those_of_the_text(
  tmp_path_factory, documents, cut, eos, bos, length, shard, bpe
):
  folder = tmp_path_factory.mktemp("corpus")
  (folder / "tokenizer.json").write_text(BPE)
  config = dataclasses.replace(
    write_lines(folder, documents),
    cut=cut,
    eos=eos,
    bos=bos,
    length=length,
    tokenizer=str(folder) if bpe else "byte",
  )
  module.prepare(config, folder / "out", shard=shard)
  try:
    direct = data.load(config)
  except UserError:
    with pytest.raises(UserError, match=r"data\.length"):
      data.load(prepared_config(config, folder / "out"))
    return
  found = data.load(prepared_config(config, folder / "out"))
  equal_blocks(direct.train, found.train)
  equal_blocks(direct.validation, found.validation)
  assert found.fingerprint == {**direct.fingerprint, "source": "prepared"}
  counted = np.concatenate(
    [row["tokens"][row["valid"] & ~row["context"]] for row in found.train]
  )
  if cut == "wrapped" and eos == "none":
    expected = direct.tokenizer.encode_all(documents[:-2])
    assert counted.tolist() == [i for ids, _ in expected for i in ids.tolist()]


@settings(max_examples=15, deadline=None)
@given(DOCUMENTS, st.integers(0, 12), st.booleans())
def test_an_interrupted_preparation_goes_on(tmp_path_factory, documents, stop, text):
  folder = tmp_path_factory.mktemp("corpus")
  config = write_lines(folder, documents)
  module.prepare(config, folder / "whole", text=text, shard=25)

  class Stopped(Exception):
    pass

  def begin(total):
    left = stop

    def advance(count):
      nonlocal left
      left -= count
      if left < 0:
        raise Stopped

    return advance

  out = folder / "parts"
  try:
    module.prepare(config, out, text=text, shard=25, begin=begin)
  except Stopped:
    shards = sorted(out.glob("*.array_record"))
    assert shards and not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in shards[:-1]}
    # As if killed while the last shard was written, its note not being there yet.
    last = shards[-1]
    last.write_bytes(last.read_bytes()[:50])
    (out / f"{last.stem}.json").unlink()
    (out / "train-00099.array_record.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match="is not finished"):
      data.load(prepared_config(config, out))
    module.prepare(config, out, text=text, shard=25)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
  assert contents(out) == contents(folder / "whole")
  before = contents(out)
  module.prepare(config, out, text=text, shard=25)  # nothing is left to do
  assert contents(out) == before


def test_text_that_changed_in_between_is_read_again(tmp_path):
  config = write_lines(tmp_path, ["one text", "two", "three", "held out", "it"])

  def stop(total):
    def advance(count):
      raise KeyboardInterrupt

    return advance

  with pytest.raises(KeyboardInterrupt):
    module.prepare(config, tmp_path / "out", shard=4, begin=stop)
  write_lines(tmp_path, ["ONE text", "two", "three", "held out", "it"])
  module.prepare(config, tmp_path / "out", shard=4)
  equal_blocks(
    data.load(config).train,
    data.load(prepared_config(config, tmp_path / "out")).train,
  )
  with pytest.raises(UserError, match="validation_documents = 2, not 3"):
    other = dataclasses.replace(config, validation_documents=3)
    module.prepare(other, tmp_path / "out", shard=4)


def test_the_number_of_workers_does_not_matter(tmp_path, monkeypatch):
  monkeypatch.setattr(prepared, "RECORD", 2048)  # of the workers
  (tmp_path / "tokenizer.json").write_text(BPE)
  config = write_lines(tmp_path, [f"{i} {tiny.TEXT}" for i in range(30)])
  config = dataclasses.replace(config, tokenizer=str(tmp_path))
  for workers in (1, 2):
    module.prepare(config, tmp_path / f"{workers}", workers=workers, shard=500)
  assert contents(tmp_path / "1") == contents(tmp_path / "2")
  assert len(contents(tmp_path / "1")) > 6


def test_prepared_text_is_a_source(tmp_path):
  config = write_lines(tmp_path, ["one é", "", "three\n\n", "held out", "it"])
  module.prepare(config, tmp_path / "text", text=True, shard=4)
  text = prepared_config(config, tmp_path / "text")
  equal_blocks(data.load(config).train, data.load(text).train)
  module.prepare(text, tmp_path / "tokens", shard=9)
  equal_blocks(
    data.load(config).train,
    data.load(prepared_config(config, tmp_path / "tokens")).train,
  )


def test_processes_share_prepared_tokens(tmp_path):
  config = write_lines(tmp_path, [f"{i} {tiny.TEXT}" for i in range(9)])
  module.prepare(config, tmp_path / "out", shard=200)
  blocks = data.load(prepared_config(config, tmp_path / "out")).train

  def take(process, processes, start=0):
    iterator = data.training_iterator(blocks, 4, 3, process, processes)
    if start:  # the state is the step, of whatever number of processes
      iterator.set_state({"next_index": start})
    return [next(iterator)["tokens"] for _ in range(6)]

  whole = take(0, 1)
  parts = [take(process, 2) for process in range(2)]
  for step, batch in enumerate(whole):
    np.testing.assert_array_equal(np.concatenate([p[step] for p in parts]), batch)
  np.testing.assert_array_equal(take(1, 2, 3)[:3], parts[1][3:])


@pytest.mark.parametrize(
  "change, words",
  [
    ({"detokenizer": "ptb"}, 'data.detokenizer = "ptb".*prepared with "none"'),
    ({"cut": "prompt", "prompt_field": "q"}, "holds no prompts"),
    ({"streaming": True}, "data.streaming = true: data.directory holds tokens"),
    ({"directory": "/nowhere"}, "has no manifest.json"),
    ({"tokenizer": "/nowhere.json"}, "data.tokenizer"),
  ],
)
def test_settings_that_do_not_fit(tmp_path, change, words):
  config = write_lines(tmp_path, ["one", "two", "held out", "and this"])
  module.prepare(config, tmp_path / "out")
  wrong = prepared_config(config, tmp_path / "out")
  with pytest.raises(UserError, match=words):
    data.load(dataclasses.replace(wrong, **change))


def test_another_tokenizer_is_refused(tmp_path):
  (tmp_path / "tokenizer.json").write_text(BPE)
  config = write_lines(tmp_path, ["one" * 9, "two", "held out", "and this"])
  module.prepare(config, tmp_path / "out")
  other = dataclasses.replace(config, tokenizer=str(tmp_path))
  with pytest.raises(UserError, match="prepared with another one"):
    data.load(prepared_config(other, tmp_path / "out"))
  with pytest.raises(UserError, match="prepared with another one"):
    data.load_validation(
      prepared_config(config, tmp_path / "out"), data.JsonTokenizer(BPE)
    )
  module.prepare(other, tmp_path / "bpe")
  (tmp_path / "tokenizer.json").unlink()  # the directory has its own
  corpus = data.load(prepared_config(config, tmp_path / "bpe"))
  assert corpus.tokenizer.describe() == data.JsonTokenizer(BPE).describe()


def test_damage_is_found(tmp_path):
  config = write_lines(tmp_path, ["one" * 9, "two", "held out", "and this"])
  module.prepare(config, tmp_path / "out")
  read = prepared_config(config, tmp_path / "out")
  shard = tmp_path / "out" / "validation-00000.array_record"
  good = shard.read_bytes()
  prepared.Prepared.read(tmp_path / "out").check()
  shard.write_bytes(good[:-10])
  with pytest.raises(
    UserError, match=r"validation-00000\.array_record has .* must have"
  ):
    data.load(read)
  place = good.index(b"held")  # one bit of the text
  shard.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
  with pytest.raises(UserError, match="SHA-256 is another"):
    prepared.Prepared.read(tmp_path / "out").check()
  blocks = data.load(read).validation
  with pytest.raises(UserError, match="a shard is damaged"):
    [blocks[row] for row in range(len(blocks))]
  shard.unlink()
  with pytest.raises(UserError, match=r"validation-00000\.array_record: No such file"):
    data.load(read)
  (tmp_path / "out" / "manifest.json").write_text("{")
  with pytest.raises(UserError, match=r"manifest\.json is damaged"):
    data.load(read)


def test_a_full_disk(tmp_path, monkeypatch):
  """Files cannot grow beyond 10 KB for a while."""
  monkeypatch.setattr(prepared, "RECORD", 2048)
  config = write_lines(tmp_path, [tiny.TEXT * 1000, tiny.TEXT, "held out", "and this"])
  out = tmp_path / "out"
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
  try:
    with pytest.raises(UserError) as error:
      module.prepare(config, out)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  message = str(error.value)
  assert message.startswith(f"--output={out}: ") and "File too large" in message
  assert not list(out.glob("*.tmp")) and not (out / "manifest.json").exists()
  module.prepare(config, out)
  equal_blocks(data.load(config).train, data.load(prepared_config(config, out)).train)


def test_text_as_it_comes(tmp_path, monkeypatch):
  """Empty documents, one gigantic line, special strings: only the CR of CR LF goes."""
  monkeypatch.setattr(prepared, "RECORD", 2048)
  path = tmp_path / "text.txt"
  gigantic = "word <mask> [MASK] " * 5000
  path.write_bytes(f"\n\r\n{gigantic}\n\nend\rof\n{tiny.TEXT}".encode())
  (tmp_path / "tokenizer.json").write_text(BPE)
  config = DataConfig(
    source="lines",
    train_path=str(path),
    tokenizer=str(tmp_path),
    length=64,
    validation_fraction=0.005,
    eos="none",
    bos=False,
  )
  manifest = module.prepare(config, tmp_path / "out", shard=1000)
  sides = manifest["sides"]
  total = sum(side["text_bytes"] for side in sides.values())
  text = path.read_bytes().replace(b"\r\n", b"\n").decode()
  assert total == len(text.encode())
  corpus = data.load(prepared_config(config, tmp_path / "out"))
  found = "".join(
    corpus.tokenizer.decode(blocks.text.read(0, blocks.text.tokens)[0])
    for blocks in (corpus.train, corpus.validation)
  )
  assert found == text
  v = corpus.tokenizer.vocabulary
  assert not np.isin(
    corpus.train.text.read(0, corpus.train.text.tokens)[0], [v.mask, v.eos]
  ).any()


def test_broken_text_is_found_before_anything_is_written(tmp_path):
  path = tmp_path / "text.jsonl"
  config = write_lines(tmp_path, ["one", "two", "three", "four"])
  good = path.read_bytes()
  for bad, words in (
    (b'{"text": "\xff"}\n', f"is not UTF-8 at byte {len(good) + 10}"),
    (b'{"text": "\\ud800"}\n', "line 5: half a character"),
    (b"[1]\n", "line 5: must be a JSON object"),
  ):
    path.write_bytes(good + bad)
    with pytest.raises(UserError, match=words):
      module.prepare(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
  path.write_bytes(good)
  with pytest.raises(UserError, match="leaves no text for validation"):
    none = dataclasses.replace(
      config, validation_documents=None, validation_fraction=0.001
    )
    module.prepare(none, tmp_path / "out")
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="holds other files"):
    module.prepare(config, tmp_path / "mine")
  with pytest.raises(UserError, match=r"data\.validation_documents = 4: must leave"):
    wrong = dataclasses.replace(config, validation_documents=4)
    module.prepare(wrong, tmp_path / "out")


def test_a_run_goes_on_with_the_same_data_only(tmp_path):
  (tmp_path / "tokenizer.json").write_text(BPE)
  documents = [f"{i} {tiny.TEXT}" for i in range(9)]
  config = write_lines(tmp_path, documents)
  one = prepared_config(config, tmp_path / "one")
  module.prepare(config, tmp_path / "one")

  def claim(fields, processes=1, **changes):
    whole = tiny.config(**changes)
    whole = dataclasses.replace(whole, data=fields)
    fingerprint = data.load(fields, processes).fingerprint
    workdir.claim(tmp_path / "run", whole, fingerprint)

  claim(one)
  (tmp_path / "one").rename(tmp_path / "moved")
  claim(prepared_config(config, tmp_path / "moved"))  # the same text elsewhere
  bpe = dataclasses.replace(config, tokenizer=str(tmp_path))
  module.prepare(bpe, tmp_path / "bpe")
  write_lines(tmp_path, [documents[0].replace("age", "AGE"), *documents[1:]])
  module.prepare(config, tmp_path / "other")
  for folder, words in (("other", r"data \(train_sha256\)"), ("bpe", "tokenizer")):
    with pytest.raises(UserError, match=words):
      claim(prepared_config(config, tmp_path / folder))
  for changes in ({"train__batch_size": 8}, {"train__seed": 1}):
    (field,) = changes
    with pytest.raises(UserError, match=field.replace("__", r"\.")):
      claim(prepared_config(config, tmp_path / "moved"), **changes)
  module.prepare(config, tmp_path / "text", text=True)
  stream = prepared_config(config, tmp_path / "text")
  stream = dataclasses.replace(stream, streaming=True)
  (tmp_path / "run" / "config.json").unlink()
  claim(stream)
  with pytest.raises(UserError, match=r"data \(processes\) = 1, not 2"):
    claim(stream, processes=2)
