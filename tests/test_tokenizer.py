"""Tokenizers: nothing lost, special strings are text, bytes add up."""

import io
import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax import data
from set_diffusion_jax.errors import UserError
from tests import tiny

BPE = data.train_bpe([tiny.TEXT, "naïve café €5 😀 don't"], 300)
PARTS = [
  "<mask>",
  "[MASK]",
  "<|endoftext|>",
  "\n",
  " ",
  "é",
  "😀",
  "the times",
  "\u3000",
]
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PARTS))).map("".join)


def word_pieces():
  """A tokenizer that loses case, accents and spaces, with BERT's special entries."""
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
  made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=80, special_tokens=special, show_progress=False
  )
  made.train_from_iterator([tiny.TEXT], trainer)
  return data.JsonTokenizer(made.to_str())


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3))
def test_bpe_loses_nothing(texts):
  tokenizer = data.JsonTokenizer(BPE)
  v = tokenizer.vocabulary
  for text, (ids, sizes) in zip(texts, tokenizer.encode_all(texts), strict=True):
    assert tokenizer.decode(ids) == text
    np.testing.assert_array_equal(tokenizer.encode(text), ids)
    assert not np.isin(ids, [v.bos, v.eos, v.pad, v.mask]).any()
    assert sizes.sum() == len(text.encode()) and (sizes >= 0).all()


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_bytes_add_up_for_a_lossy_tokenizer(text):
  tokenizer = word_pieces_once
  ((ids, sizes),) = tokenizer.encode_all([text])
  assert len(ids) == len(sizes)
  assert sizes.sum() == (len(text.encode()) if len(ids) else 0)
  v = tokenizer.vocabulary
  assert not np.isin(ids, [v.bos, v.eos, v.pad, v.mask]).any()


word_pieces_once = word_pieces()


def test_training_is_deterministic():
  again = data.train_bpe([tiny.TEXT, "naïve café €5 😀 don't"], 300)
  assert again == BPE
  v = data.JsonTokenizer(BPE).vocabulary
  assert (v.pad, v.bos, v.eos, v.mask, v.size) == (0, 1, 2, 3, 300)


@pytest.mark.parametrize(
  "special, expected",
  [
    # (bos, eos, pad, mask, size) after 3 ordinary entries and the special ones
    (["<|endoftext|>"], (3, 3, 3, 4, 5)),
    (["[PAD]", "[CLS]", "[SEP]", "[MASK]"], (4, 5, 3, 6, 7)),
    ([], (3, 3, 3, 4, 5)),
    (["<s>", "</s>"], (3, 4, 4, 5, 6)),
    (["<bos>"], (3, 3, 3, 4, 5)),
  ],
)
def test_special_ids(special, expected):
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}))
  made.add_special_tokens(special)
  v = data.JsonTokenizer(made.to_str()).vocabulary
  assert (v.bos, v.eos, v.pad, v.mask, v.size) == expected


def test_masks_show_and_special_ids_vanish():
  tokenizer = data.JsonTokenizer(BPE)
  v = tokenizer.vocabulary
  first, second = tokenizer.encode("times"), tokenizer.encode("of")
  ids = np.concatenate([[v.bos], first, [v.mask, v.mask], second, [v.eos, v.pad]])
  assert tokenizer.decode(ids) == "times__of"


def test_a_checkpoint_keeps_its_tokenizer():
  for tokenizer in (
    data.ByteTokenizer(),
    data.JsonTokenizer(BPE),
    data.IdTokenizer(data.Vocabulary(9, 5, 6, 7, 8)),
  ):
    stored = json.loads(json.dumps(tokenizer.describe()))
    restored = data.restore_tokenizer(stored)
    assert type(restored) is type(tokenizer)
    assert restored.vocabulary == tokenizer.vocabulary
    assert restored.describe() == tokenizer.describe()
    for broken in ({"name": "gone"}, {"size": None}, {"mask": "x"}):
      with pytest.raises(UserError, match="checkpoint: its tokenizer"):
        data.restore_tokenizer({**stored, **broken})
  ids = data.IdTokenizer(data.Vocabulary(9, 5, 6, 7, 8))
  assert ids.decode([1, 8, 2]) == "1 _ 2" and not ids.encode("").size
  with pytest.raises(UserError, match=r"give a tokenizer\.json"):
    ids.encode("text")


def test_files(tmp_path):
  (tmp_path / "tokenizer.json").write_text(BPE)
  (tmp_path / "broken.json").write_text(BPE[:-200])
  (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
  folder, file = (str(tmp_path), str(tmp_path / "tokenizer.json"))
  for name in (folder, file):
    assert data.load_tokenizer(name).vocabulary.size == 300
  for name in ("broken.json", "latin.json", "gone.json"):
    with pytest.raises(UserError, match=rf"data.tokenizer = .*{name}"):
      data.load_tokenizer(str(tmp_path / name))


def pieces():
  sentencepiece = pytest.importorskip("sentencepiece")
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([tiny.TEXT, "naïve café"] * 20),
    model_writer=model,
    vocab_size=320,
    byte_fallback=True,
    hard_vocab_limit=False,
    pad_id=3,
    user_defined_symbols=["<mask>"],
    minloglevel=2,
  )
  return model.getvalue()


def test_sentence_pieces(tmp_path):
  (tmp_path / "tokenizer.model").write_bytes(pieces())
  tokenizer = data.load_tokenizer(str(tmp_path))
  v = tokenizer.vocabulary
  assert (v.bos, v.eos, v.pad, v.mask) == (1, 2, 3, v.size - 1)
  texts = ["It was  the <mask> of </s> times", "", " ", "café 日本 😀\n"]
  for text, (ids, sizes) in zip(texts, tokenizer.encode_all(texts), strict=True):
    np.testing.assert_array_equal(tokenizer.encode(text), ids)
    assert len(ids) == len(sizes) and (sizes >= 0).all()
    assert sizes.sum() == (len(text.encode()) if len(ids) else 0)
    assert not np.isin(ids, [v.bos, v.eos, v.pad, v.mask]).any()
  ids = np.array([v.bos, *tokenizer.encode("It was"), v.mask, v.mask, v.eos])
  assert tokenizer.decode(ids) == "It was__"
  stored = json.loads(json.dumps(tokenizer.describe()))
  restored = data.restore_tokenizer(stored)
  assert restored.describe() == tokenizer.describe()
  for files in ({}, {"tokenizer.model.base64": "AAAA"}):
    with pytest.raises(UserError, match="checkpoint: its tokenizer"):
      data.restore_tokenizer({**stored, "files": files})
  (tmp_path / "broken.model").write_bytes(b"junk")
  with pytest.raises(UserError, match=r"broken\.model.*not a SentencePiece model"):
    data.load_tokenizer(str(tmp_path / "broken.model"))


def test_sentencepiece_is_an_extra(tmp_path, monkeypatch):
  (tmp_path / "a.model").write_bytes(b"anything")
  monkeypatch.setitem(sys.modules, "sentencepiece", None)
  with pytest.raises(UserError, match="needs pip install sentencepiece"):
    data.load_tokenizer(str(tmp_path / "a.model"))
