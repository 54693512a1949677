"""Text tokenized while training: nothing lost, nothing twice, resumed anywhere."""

import dataclasses
import itertools
import json

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax import data
from set_diffusion_jax.config import Config, DataConfig
from set_diffusion_jax.data import stream as module
from set_diffusion_jax.errors import UserError

TOKENIZER = data.ByteTokenizer()
NO_THREADS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
# Many, because grain's shuffle is slow for few (it walks through a domain of 2**16).
DOCUMENTS = (
  st.lists(st.text("abcé", max_size=14), min_size=1, max_size=7)
  .filter(any)
  .map(
    lambda texts: [f"{text}{i}" if text else "" for i in range(60) for text in texts]
  )
)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch, request):
  """Hundreds of iterators that read ahead take time."""
  if request.node.name != "test_prepared_text_as_a_stream":
    monkeypatch.setattr(module, "cpus", lambda: 0)


def stream(documents, width, eos):
  config = DataConfig(eos="documents" if eos else "none")
  frame = data.Frame(width + 1, TOKENIZER.vocabulary, bos=True)
  return data.Stream(documents, config, TOKENIZER, frame)


def take(iterator, count):
  return [next(iterator)["tokens"][:, 1:] for _ in range(count)]


def permuted(documents, seed, process, processes, count):
  """The documents of a process as grain's own shuffle gives them."""
  every = grain.MapDataset.source(documents).seed(seed).shuffle().repeat()
  share = every[process::processes].to_iter_dataset(NO_THREADS)
  return list(itertools.islice(share, count))


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS, st.integers(1, 9), st.booleans(), st.sampled_from([(0, 1), (1, 2)]))
def test_the_tokens_are_those_of_the_documents_in_turn(documents, width, eos, share):
  iterator = stream(documents, width, eos).iterator(2 * share[1], 5, *share)
  found = np.concatenate(take(iterator, 6)).ravel().tolist()
  many = permuted(documents, 5, *share, 12 * width + 2 * len(documents))
  end = [TOKENIZER.vocabulary.eos] * eos
  expected = [i for text in many for i in [*text.encode(), *end]]
  assert found == expected[: len(found)] and len(found) == 12 * width


@settings(max_examples=40, deadline=None)
@given(
  DOCUMENTS, st.integers(1, 9), st.booleans(), st.integers(0, 9), st.integers(1, 3)
)
def test_a_stream_resumes_at_any_step(documents, width, eos, stop, batch):
  corpus = stream(documents, width, eos)
  iterator = corpus.iterator(batch, 0, 0, 1)
  take(iterator, stop)
  place = json.loads(json.dumps(iterator.get_state()))
  expected = take(iterator, 8)
  resumed = corpus.iterator(batch, 0, 0, 1)
  resumed.set_state(place)
  np.testing.assert_array_equal(take(resumed, 8), expected)
  assert json.loads(json.dumps(resumed.get_state())) == iterator.get_state()
  iterator.set_state(place)  # backwards, too
  np.testing.assert_array_equal(take(iterator, 8), expected)


def test_an_epoch_takes_each_document_once_over_all_processes():
  documents = [f"<{i}>" for i in range(12)]
  parts = []
  for process in range(3):
    iterator = stream(documents, 4, eos=False).iterator(3, 1, process, 3)
    parts.append("".join(TOKENIZER.decode(t.ravel()) for t in take(iterator, 4)))
  seen = [part + ">" for text in parts for part in text.split(">")[:4]]
  assert sorted(seen) == sorted(documents)


def test_another_number_of_processes_is_refused():
  corpus = stream(["abc", "de"], 4, eos=True)
  place = corpus.iterator(4, 0, 0, 1).get_state()
  with pytest.raises(UserError, match="had 1 processes, now there are 2"):
    corpus.iterator(4, 0, 0, 2).set_state(place)


def test_prepared_text_as_a_stream(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("".join(f"{i} line\n" for i in range(40)))
  config = DataConfig(source="lines", train_path=str(path), length=16)
  data.prepare(config, tmp_path / "out", text=True, shard=50)
  config = dataclasses.replace(
    config, source="prepared", directory=str(tmp_path / "out"), streaming=True
  )
  one, two = data.load(config), data.load(config, processes=2)
  assert one.fingerprint["processes"] == 1 and one.fingerprint != two.fingerprint
  assert one.fingerprint == {**two.fingerprint, "processes": 1}
  batch = next(data.training_iterator(one.train, 4, 0, 0, 1))
  assert batch["tokens"].shape == (4, 16) and batch["valid"].all()
  assert batch["context"].sum() == 4
  settings = {"source": "lines", "train_path": str(path), "streaming": True}
  with pytest.raises(UserError, match=r"data\.source = \"lines\": must be prepared"):
    Config.from_dict({"data": settings})
