"""Detokenizers by example, and the zero-shot corpora by their protocol."""

import json

import pytest

from set_diffusion_jax import data
from set_diffusion_jax.config import DETOKENIZERS, DataConfig
from set_diffusion_jax.data.detokenize import RULES, detokenizer, detokenizer_digest
from set_diffusion_jax.data.zero_shot import ZERO_SHOT, zero_shot_data, zero_shot_names
from set_diffusion_jax.errors import UserError


@pytest.mark.parametrize(
  "name, marked, plain",
  [
    ("none", " as @-@ is ", " as @-@ is "),
    ("wikitext", " = = T = = \n", " == T ==\n"),
    ("wikitext", " a @-@ b ( c ) , 1 @,@ 000 @.@ 5 ; x", " a-b (c), 1,000.5; x"),
    ("wikitext", 'the " game " of Tom \'s at 3 ° C', 'the "game" of Tom\'s at 3°C'),
    ("ptb", "it 's <unk> n't N N % of firms ' $ N", "it's ?n't 1 1 % of firms' $ N"),
    ("ptb", " rose $ N a share \n", "rose $1 a share"),
    ("lm1b", 'He said , " no " ( so ) . It is $ 5 .', 'He said, "no" (so) . It is $5.'),
    ("lm1b", "see http : / / a.b ? ok !", "see http://a.b? ok!"),
    ("lambada", "  “yes”, she said\n", '\n"yes", she said'),
    ("lambada", " ", "\n"),
    ("scientific_papers", "@xmath0 , ( see ) . then \n", "@xmath0, (see). then\n"),
  ],
)  # fmt: skip
def test_examples(name, marked, plain):
  assert detokenizer(name)(marked) == plain


def test_each_set_of_rules_has_its_own_digest():
  assert set(RULES) == set(DETOKENIZERS)
  assert len({detokenizer_digest(name) for name in RULES}) == len(RULES)


def test_windows_of_the_protocol(tmp_path):
  """Rows one after another without separator; BOS, text, EOS; BOS is not counted."""
  (tmp_path / "ptb.txt").write_text(" it is n't \n mr. N said \n")
  config = zero_shot_data("ptb", DataConfig(length=10), tmp_path)
  blocks = data.load_validation(config, data.ByteTokenizer())
  v = data.ByteTokenizer.vocabulary
  text = "".join(bytes(b["tokens"][b["valid"]][1:-1].tolist()).decode() for b in blocks)
  assert text == "it isn'tmr. 1 said"
  first = blocks[0]
  assert first["tokens"][0] == v.bos and first["tokens"][-1] == v.eos
  assert first["context"].tolist() == [True] + [False] * 9


def test_where_a_corpus_comes_from(tmp_path):
  trained = DataConfig(length=8)
  for name, corpus in ZERO_SHOT.items():
    if corpus.tfds is None:
      with pytest.raises(UserError, match=rf"has no {name}.txt"):
        zero_shot_data(name, trained, tmp_path)
    else:
      config = zero_shot_data(name, trained, tmp_path)
      assert (config.source, config.name) == ("tfds", corpus.tfds)
  record = {"sentence": "mr. <unk> of N companies", "text": "other"}
  (tmp_path / "ptb.jsonl").write_text(json.dumps(record))
  config = zero_shot_data("ptb", trained, tmp_path)
  blocks = data.load_validation(config, data.ByteTokenizer())
  assert bytes(blocks.text.ids.tolist()) == b"mr. ? of 1 companies"


def test_a_corpus_shorter_than_the_window_is_an_error(tmp_path):
  (tmp_path / "lm1b.txt").write_text("short\n")
  config = zero_shot_data("lm1b", DataConfig(length=64), tmp_path)
  with pytest.raises(UserError, match=r"data\.length = 64: must be at most 7"):
    data.load_validation(config, data.ByteTokenizer())


def test_names():
  assert zero_shot_names("all") == list(ZERO_SHOT)
  assert zero_shot_names("ptb,arxiv") == ["ptb", "arxiv"]
  with pytest.raises(UserError, match="'gone' is not one of ptb"):
    zero_shot_names("ptb,gone")
