"""Prompts and targets: a prompt is context, a target is counted."""

import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax import data
from set_diffusion_jax.config import Config, DataConfig
from set_diffusion_jax.configs import corpora
from set_diffusion_jax.data.detokenize import detokenizer
from set_diffusion_jax.errors import UserError

V = data.ByteTokenizer.vocabulary


def write(folder, pairs):
  path = folder / "pairs.jsonl"
  rows = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
  path.write_text("\n".join(rows))
  return {
    "source": "jsonl",
    "train_path": str(path),
    "cut": "prompt",
    "prompt_field": "question",
    "field": "answer",
  }


TEXT = st.text("ab é", max_size=12)


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.tuples(TEXT, TEXT), min_size=3, max_size=6).filter(
    lambda pairs: any(text.strip() for pair in pairs for text in pair)
  ),
  st.integers(4, 20),
  st.booleans(),
  st.booleans(),
  st.booleans(),
)
def test_what_a_sequence_holds(tmp_path_factory, pairs, length, bos, eos, from_disk):
  folder = tmp_path_factory.mktemp("pairs")
  fields = {
    **write(folder, pairs),
    "prompt_prefix": "Q:",
    "target_prefix": "A:",
    "length": length,
    "bos": bos,
    "eos": "documents" if eos else "none",
    "validation_documents": 1,
  }
  config = DataConfig(**fields)
  if from_disk:
    data.prepare(config, folder / "out", shard=9)
    fields |= {"source": "prepared", "directory": str(folder / "out")}
    config = DataConfig(**fields)
  corpus = data.load(config)
  end = [V.eos] * eos
  assert (len(corpus.train), len(corpus.validation)) == (len(pairs) - 1, 1)
  for row, (question, answer) in enumerate(pairs):
    blocks, place = (
      (corpus.train, row) if row < len(pairs) - 1 else (corpus.validation, 0)
    )
    prompt = [V.bos] * bos + [*f"Q:{question}".encode(), *end]
    target = [*f"A:{answer}".encode(), *end]
    prompt, target = prompt[: length // 2], target[: length // 2]
    example = blocks[place]
    assert example["tokens"][example["valid"]].tolist() == prompt + target
    assert example["tokens"][example["context"]].tolist() == prompt
    assert (example["tokens"][~example["valid"]] == V.pad).all()
    sizes = blocks.bytes_of(place)
    assert sizes.sum() == sum(token < 256 for token in prompt + target)


def test_the_final_answer_of_gsm8k():
  clean = detokenizer("gsm8k")
  assert clean("6 x 12\n#### 72") == "6 x 12\n$\\boxed{72}$"
  assert clean("so\n#### 1,000") == "so\n#### 1,000"  # as published: digits only
  assert clean("#### 7\nmore") == "$\\boxed{7}$\nmore"


def test_the_shipped_gsm8k(tmp_path):
  """Its prefixes, its boxed answer, and which side of a record is counted."""
  (tmp_path / "gsm8k").mkdir()
  path = write(
    tmp_path / "gsm8k",
    [
      (
        f"Ada sold {n} cards in May and twice as many in June. How many in both?",
        f"In June {n}*2 = <<{n}*2={2 * n}>>{2 * n} cards.\n#### {3 * n}",
      )
      for n in range(10, 40)
    ],
  )["train_path"]
  tokenizer = tmp_path / "tokenizers" / "qwen3" / "tokenizer.json"
  tokenizer.parent.mkdir(parents=True)
  tokenizer.write_text(data.train_bpe([pathlib.Path(path).read_text()], 400))
  shipped = corpora.get_config(f"corpus=gsm8k,data={tmp_path}").data
  shipped.update({"train_path": path, "validation_path": None})
  shipped.validation_documents = 20
  corpus = data.load(DataConfig(**shipped.to_dict()))
  v = corpus.tokenizer.vocabulary
  assert (len(corpus.train), len(corpus.validation)) == (10, 20)
  example = corpus.train[0]
  tokens, context = example["tokens"], example["context"]
  assert tokens[0] == v.bos and tokens[context][-1] == v.eos
  prompt = corpus.tokenizer.decode(tokens[context][1:-1])
  assert prompt.startswith("Please reason step") and prompt.endswith("many in both?")
  target = tokens[example["valid"] & ~context]
  assert target[-1] == v.eos
  target = corpus.tokenizer.decode(target[:-1])
  assert target.startswith("Answer: In June 10*2") and target.endswith(
    "\n$\\boxed{30}$"
  )
  examples, _ = corpus.train.batch(range(len(corpus.train)))
  assert not (examples["context"] & ~examples["valid"]).any()
  assert (examples["valid"] & ~examples["context"]).any(-1).all()


@pytest.mark.parametrize(
  "change, words",
  [
    ({"prompt_field": None}, "data.prompt_field = null: must be set"),
    ({"eos": "sequences"}, 'data.eos = "sequences"'),
    ({"source": "lines"}, 'data.source = "lines": must be one of jsonl'),
    ({"cut": "wrapped"}, 'data.prompt_field = "question"'),
  ],
)
def test_wrong_settings(tmp_path, change, words):
  fields = {**write(tmp_path, [("a", "b")] * 3), **change}
  with pytest.raises(UserError) as error:
    Config.from_dict({"data": fields})
  assert words in str(error.value)


def test_a_record_without_a_prompt(tmp_path):
  fields = write(tmp_path, [("a", "b")] * 3)
  with pytest.raises(UserError, match=r'data\.prompt_field = "body".*question, answer'):
    data.load(DataConfig(**{**fields, "prompt_field": "body"}))
