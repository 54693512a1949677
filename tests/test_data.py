"""Text to batches: nothing lost, nothing twice, however many processes share it."""

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


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_bytes_round_trip(text):
  ids = TOKENIZER.encode(text)
  assert TOKENIZER.decode(ids) == text
  assert TOKENIZER.token_bytes[ids].sum() == len(text.encode())
  assert ids.size == 0 or ids.max() < 256


def test_special_ids_in_text():
  v = TOKENIZER.vocabulary
  ids = [v.bos, 72, v.mask, v.mask, 105, v.eos, v.pad]
  assert TOKENIZER.decode(np.array(ids)) == "H__i"
  assert TOKENIZER.token_bytes[[v.bos, v.eos, v.pad, v.mask]].sum() == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(2, 9), st.booleans())
def test_blocks_hold_each_token_once(count, length, bos):
  ids = np.arange(count)
  blocks = data.Blocks(ids, length, TOKENIZER.vocabulary, bos)
  found = []
  for row in (blocks[i] for i in range(len(blocks))):
    assert row["tokens"].shape == (length,)
    found.extend(row["tokens"][row["valid"] & ~row["context"]])
    assert row["context"].sum() == bos
    assert (row["tokens"][~row["valid"]] == TOKENIZER.vocabulary.pad).all()
  assert found == ids.tolist()


def some_blocks(rows=11):
  return data.Blocks(np.arange(rows * 4), 5, TOKENIZER.vocabulary, bos=True)


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
  assert sorted(first) == sorted(second) == sorted(blocks.tokens[:, 1])
  assert list(first) != list(second)
  other_seed = np.concatenate(take(data.training_iterator(blocks, 4, 1, 0, 1), 3))
  assert list(other_seed[:, 1]) != list(first)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 13), st.integers(1, 4), st.integers(0, 20))
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
  for batch, numbers in data.evaluation_batches(blocks, batch_size, limit):
    assert batch["tokens"].shape == (batch_size, 5)
    counted = batch["valid"].any(-1)
    seen.extend(zip(numbers[counted], batch["tokens"][counted, 1], strict=True))
  assert seen == list(enumerate(blocks.tokens[:limit, 1]))


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
  found = sources.text_files("data.train_path", str(tmp_path / "*.txt"))
  assert found == ["first é", "second"]


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
