"""Text to batches: nothing lost, nothing twice, however many processes share it."""

import dataclasses
import gzip
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax import data
from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import sources
from set_diffusion_jax.errors import UserError

TOKENIZER = data.ByteTokenizer()


def wrapped(ids, length, bos, stride=None):
  text = data.Tokens(ids, np.ones_like(ids), np.array([len(ids)]))
  return data.Blocks.wrapped(
    text, data.Frame(length, TOKENIZER.vocabulary, bos), stride
  )


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_bytes_round_trip(text):
  ids = TOKENIZER.encode(text)
  assert TOKENIZER.decode(ids) == text
  assert ids.size == 0 or ids.max() < 256


def test_special_ids_in_text():
  v = TOKENIZER.vocabulary
  ids = [v.bos, 72, v.mask, v.mask, 105, v.eos, v.pad]
  assert TOKENIZER.decode(np.array(ids)) == "H__i"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(2, 9), st.booleans())
def test_blocks_hold_each_token_once(count, length, bos):
  ids = np.arange(count)
  blocks = wrapped(ids, length, bos)
  found = []
  for row in (blocks[i] for i in range(len(blocks))):
    assert row["tokens"].shape == (length,)
    found.extend(row["tokens"][row["valid"] & ~row["context"]])
    assert row["context"].sum() == bos
    assert (row["tokens"][~row["valid"]] == TOKENIZER.vocabulary.pad).all()
  assert found == ids.tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(3, 9), st.booleans(), st.data())
def test_windows_count_each_token_once(count, length, bos, draw):
  """With any stride, and what a window sees besides is what came right before."""
  width = length - bos
  blocks = wrapped(np.arange(count), length, bos, draw.draw(st.integers(1, width)))
  found = []
  for row in range(len(blocks)):
    example = blocks[row]
    text = example["tokens"][bos : example["valid"].sum()]
    assert text.tolist() == list(range(text[0], text[0] + len(text)))
    found.extend(example["tokens"][example["valid"] & ~example["context"]])
    assert row == len(blocks) - 1 or example["valid"].all()
  assert found == list(range(count))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab", max_size=9), max_size=5), st.booleans(), st.booleans())
def test_sentences_are_documents_of_their_own(texts, bos, eos):
  text = data.Tokens.of(texts, TOKENIZER, eos=False)
  v = TOKENIZER.vocabulary
  blocks = data.Blocks.sentences(text, data.Frame(6, v, bos, eos))
  expected = [t for t in texts if t]
  assert len(blocks) == len(expected)
  for row, document in enumerate(expected):
    example = blocks[row]
    ids = [v.bos] * bos + [*document.encode()][: 6 - bos - eos] + [v.eos] * eos
    assert example["tokens"][example["valid"]].tolist() == ids
    assert example["valid"].tolist() == [i < len(ids) for i in range(6)]
    assert example["context"].sum() == bos
    assert blocks.bytes_of(row).sum() == len(ids) - bos - eos


def test_sequences_that_end_with_eos():
  v = TOKENIZER.vocabulary
  text = data.Tokens.of(["abcde"], TOKENIZER, eos=False)
  blocks = data.Blocks.wrapped(text, data.Frame(5, v, bos=True, eos=True))
  assert blocks[0]["tokens"].tolist() == [v.bos, *b"abc", v.eos]
  assert blocks[1]["tokens"].tolist() == [v.bos, *b"de", v.eos, v.pad]
  assert blocks[1]["valid"].tolist() == [True] * 4 + [False]
  assert blocks.bytes_of(1).tolist() == [0, 1, 1, 0, 0]


def some_blocks(rows=11):
  return wrapped(np.arange(rows * 4), 5, bos=True)


def take(iterator, count):
  return [next(iterator)["tokens"] for _ in range(count)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_each_batch(processes):
  whole = take(data.training_iterator(some_blocks(), 4, 3, 0, 1), 9)
  parts = [
    take(data.training_iterator(some_blocks(), 4, 3, i, processes), 9)
    for i in range(processes)
  ]
  for step, batch in enumerate(whole):
    np.testing.assert_array_equal(np.concatenate([p[step] for p in parts]), batch)


def test_each_epoch_is_a_new_permutation():
  blocks = some_blocks(12)
  rows = np.concatenate(take(data.training_iterator(blocks, 4, 0, 0, 1), 6))[:, 1]
  first, second = rows[:12], rows[12:]
  assert sorted(first) == sorted(second) == sorted(blocks.text.ids[::4])
  assert list(first) != list(second)
  other_seed = np.concatenate(take(data.training_iterator(blocks, 4, 1, 0, 1), 3))
  assert list(other_seed[:, 1]) != list(first)


@settings(max_examples=12, deadline=None)
@given(st.integers(90, 130), st.integers(1, 9), st.integers(0, 20))
def test_an_iterator_resumes_at_any_point(rows, batch_size, stop):
  iterator = data.training_iterator(some_blocks(rows), batch_size, 0, 0, 1)
  take(iterator, stop)
  place = json.loads(json.dumps(iterator.get_state()))
  expected = take(iterator, 7)
  resumed = data.training_iterator(some_blocks(rows), batch_size, 0, 0, 1)
  resumed.set_state(place)
  np.testing.assert_array_equal(take(resumed, 7), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 13), st.integers(1, 5), st.integers(1, 13))
def test_evaluation_takes_each_row_once(rows, batch_size, limit):
  blocks, limit = some_blocks(rows), min(limit, rows)
  seen = []
  wanted = np.arange(limit)
  for batch, sizes, numbers in data.evaluation_batches(blocks, wanted, batch_size):
    assert batch["tokens"].shape == sizes.shape == (batch_size, 5)
    counted = batch["valid"].any(-1)
    seen.extend(zip(numbers[counted], batch["tokens"][counted, 1], strict=True))
  assert seen == list(enumerate(blocks.text.ids[: 4 * limit : 4]))


def test_embedded_text():
  documents = sources.embedded(0.1)
  total = sum(map(len, documents.train + documents.validation))
  assert total > 250_000
  assert 0.08 < sum(map(len, documents.validation)) / total < 0.2
  paragraphs = [
    {p.strip() for text in side for p in text.split("\n\n")} for side in documents
  ]
  assert not paragraphs[0] & paragraphs[1]
  every = [p.strip() for text in documents.train for p in text.split("\n\n")]
  assert len(every) == len(set(every))
  assert documents == sources.embedded(0.1)


def test_text_files(tmp_path):
  for name, text in (("b.txt", "second"), ("a.txt", "first é"), ("c.md", "no")):
    (tmp_path / name).write_text(text, encoding="utf-8")
  config = DataConfig(source="text", validation_path=str(tmp_path / "*.txt"))
  assert sources.read_validation(config) == ["first é", "second"]


def held_out(path, **fields):
  config = DataConfig(validation_path=str(path), **fields)
  return sources.read_validation(config)


def test_json_lines_and_plain_lines(tmp_path):
  records = [{"title": "One", "text": "first\n"}, {"title": "Two", "text": "é"}]
  text = "\n".join(map(json.dumps, records))
  (tmp_path / "a.jsonl").write_text(text + "\n\n")
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
  for name in ("a.jsonl", "a.jsonl.gz"):
    assert held_out(tmp_path / name, source="jsonl") == ["first\n", "é"]
  joined = held_out(tmp_path / "a.jsonl", source="jsonl", field="title,text")
  assert joined == ["One first\n", "Two é"]
  (tmp_path / "b.txt").write_text(" one \n\n two")
  assert held_out(tmp_path / "b.txt", source="lines") == [" one \n", "\n", " two"]
  found = held_out(tmp_path / "b.txt", source="lines", detokenizer="ptb")
  assert found == ["one", "", "two"]


@pytest.mark.parametrize(
  "text, words",
  [
    ('{"text": "a"}\n{"text": \n', "line 2: is not JSON"),
    ('["a"]\n', "line 1: must be a JSON object"),
    ('{"body": "a"}\n', 'data.field = "text".*line 1 has no such text, but body'),
    ('{"text": null}\n', 'data.field = "text".*line 1: text is null; must be a string'),
    ('{"text": 1.5}\n', "line 1: text is a number; must be a string"),
    ('{"text": true}\n', "line 1: text is a boolean; must be a string"),
    ('{"text": ["a"]}\n', "line 1: text is a list; must be a string"),
    ('{"text": {"a": "b"}}\n', "line 1: text is an object; must be a string"),
    ("{}\n", "line 1 has no such text, but no field at all"),
    ('{"text": " "}\n', "holds no text"),
  ],
)
def test_broken_json_lines(tmp_path, text, words):
  (tmp_path / "a.jsonl").write_text(text)
  with pytest.raises(UserError, match=words):
    held_out(tmp_path / "a.jsonl", source="jsonl")


def test_a_broken_gzip_file(tmp_path):
  whole = gzip.compress(b"text " * 1000)
  for name, content in (("cut.txt.gz", whole[:-9]), ("not.txt.gz", b"text")):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
      held_out(tmp_path / name, source="text")


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
  """A data set on disk that TFDS does not know, prepared without TensorFlow."""
  import tensorflow_datasets as tfds

  class Tales(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {"title": tfds.features.Text(), "text": tfds.features.Text()}
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(3), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, {"title": f"t{i}", "text": f"tale {i} é"}

  folder = tmp_path_factory.mktemp("tfds")
  with tfds.core.registered.skip_registration():
    Tales(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def test_tfds(tfds_directory):
  fields = {"source": "tfds", "name": "tales", "directory": str(tfds_directory)}
  documents = sources.read(DataConfig(**fields, field="title,text"))
  assert sorted(documents.train) == [f"t{i} tale {i} é" for i in range(3)]
  assert sorted(documents.validation) == ["t0 tale 0 é", "t1 tale 1 é"]
  for wrong, words in (
    ({"name": "legends"}, 'data.name = "legends".*not prepared'),
    ({"validation_split": "dev"}, 'split "dev"'),
    ({"field": "body"}, 'data.field = "body".*title, text|text, title'),
  ):
    with pytest.raises(UserError, match=words):
      sources.read_validation(DataConfig(**{**fields, **wrong}))


def test_tfds_prepared_and_as_a_stream(tfds_directory, tmp_path):
  fields = {"source": "tfds", "name": "tales", "directory": str(tfds_directory)}
  config = DataConfig(**fields, field="title,text", length=8, detokenizer="ptb")
  manifest = data.prepare(config, tmp_path / "out", shard=10)
  assert [side["documents"] for side in manifest["sides"].values()] == [3, 2]
  again = dataclasses.replace(
    config, source="prepared", directory=str(tmp_path / "out")
  )
  assert data.load(config).train.digest == data.load(again).train.digest
  stream = data.load(dataclasses.replace(config, streaming=True))
  assert stream.fingerprint["train_documents"] == 3
  batch = next(data.training_iterator(stream.train, 2, 0, 0, 1))
  text = TOKENIZER.decode(batch["tokens"][:, 1:].ravel())
  assert text.startswith("t") and " tale " in text
  pairs = DataConfig(**fields, prompt_field="title", cut="prompt", length=16)
  direct = data.load(pairs).train
  data.prepare(pairs, tmp_path / "pairs")
  pairs = dataclasses.replace(
    pairs, source="prepared", directory=str(tmp_path / "pairs")
  )
  assert data.load(pairs).train.digest == direct.digest and len(direct) == 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5), st.floats(0.01, 0.99))
def test_holding_out_loses_nothing(documents, fraction):
  split = sources.hold_out_end(documents, fraction)
  assert "".join(itertools.chain(*split)) == "".join(documents)
  total = len("".join(documents))
  assert abs(len("".join(split.validation)) - fraction * total) <= 0.5 + 1e-9


def test_fingerprints(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("some words " * 50)
  config = DataConfig(source="text", train_path=str(path), length=16)
  first = data.load(config).fingerprint
  assert data.load(config).fingerprint == first
  path.write_text("some words " * 49 + "some other ")
  assert data.load(config).fingerprint != first


def test_text_shorter_than_a_sequence(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("short " * 10)
  with pytest.raises(UserError, match=r"data.length = 32: must be at most 8"):
    data.load(DataConfig(source="text", train_path=str(path), length=32))
