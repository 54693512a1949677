"""Tokenizers from outside: ids are those of the file, or it is refused in one line."""

import base64
import json

import numpy as np
import pytest

from set_diffusion_jax import data
from set_diffusion_jax.data.tokenizer import facts, lost_text
from set_diffusion_jax.errors import UserError
from tests.test_tokenizer import BPE, pieces

WORDS = {"[UNK]": 0, "the": 1, "mill": 2, "sang": 3}
BY_SPACES = {"type": "WhitespaceSplit"}


def added(number, content, special=True):
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  return {"id": number, "content": content, "special": special, **flags}


def file(vocab, *tokens, model=(), **settings):
  """The text of a tokenizer.json of words between spaces."""
  word_level = {"type": "WordLevel", "unk_token": "[UNK]"}
  return json.dumps(
    {
      "version": "1.0",
      "added_tokens": list(tokens),
      "pre_tokenizer": {"type": "Whitespace"},
      "model": {**word_level, "vocab": vocab, **dict(model)},
      **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
      "decoder": None,
      **settings,
    }
  )


def unigram(tokens, *entries, **model):
  scored = [[token, -float(i)] for i, token in enumerate(tokens)]
  return file(scored, *entries, model={"type": "Unigram", "unk_id": None, **model})


def special(tokenizer):
  v = tokenizer.vocabulary
  return v.size, v.bos, v.eos, v.pad, v.mask


def test_a_hole_is_no_word_and_no_special_id():
  names = "[UNK] the old river ran past a - small stone".split()
  vocab = {name: i for i, name in enumerate(names) if name != "-"}
  tokenizer = data.JsonTokenizer(file(vocab))
  assert special(tokenizer) == (12, 10, 10, 10, 11)
  assert tokenizer.unused == ((7, 8),)
  ids = tokenizer.encode("the small stone")
  np.testing.assert_array_equal(ids, [1, 8, 9])
  assert tokenizer.decode(ids) == "the small stone"


def test_sparse_ids_are_those_of_the_file():
  vocab = {"[UNK]": 0, "the": 10, "old": 20, "sang": 180}
  tokens = added(900, "<|mask|>"), added(901, "<|eos|>"), added(902, "mill", False)
  tokenizer = data.JsonTokenizer(file(vocab, *tokens))
  assert special(tokenizer) == (903, 901, 901, 901, 900)
  assert sum(after - first for first, after in tokenizer.unused) == 903 - 7
  ids = tokenizer.encode("the old mill sang <|mask|>")
  np.testing.assert_array_equal(ids[:4], [10, 20, 902, 180])
  assert not np.isin(ids, [900, 901]).any()
  assert tokenizer.decode([10, 902, 20, 901, 900, 5]) == "the mill old_"
  ((again, sizes),) = tokenizer.encode_all(["the old mill sang <|mask|>"])
  np.testing.assert_array_equal(again, ids)
  assert sizes.sum() == 26


@pytest.mark.parametrize(
  "text",
  [
    file({**WORDS, "<eos>": 4}, added(4, "<eos>"), pre_tokenizer=BY_SPACES),
    file(WORDS, added(4, "<eos>"), pre_tokenizer=BY_SPACES),
    unigram(["[UNK]", "<eos>", "\u2581", *"<eos>/the "], added(1, "<eos>"), unk_id=0),
  ],
)
def test_a_special_string_in_a_text_is_text(text):
  tokenizer = data.JsonTokenizer(text)
  v = tokenizer.vocabulary
  ids = tokenizer.encode("the <eos> the")
  assert v.eos in (1, 4) and not np.isin(ids, [v.bos, v.eos, v.pad, v.mask]).any()


def test_a_special_entry_that_is_a_word_stays_in_texts():
  tokenizer = data.JsonTokenizer(file(WORDS, added(1, "the")))
  assert tokenizer.decode(tokenizer.encode("the mill")) == "the mill"
  assert tokenizer.vocabulary.eos == 4


def test_padding_and_truncation_settings_are_not_used():
  truncation = {"direction": "Right", "max_length": 2, "stride": 5}
  truncation["strategy"] = "LongestFirst"
  padding = {"strategy": {"Fixed": 10**11}, "direction": "Right", "pad_id": 0}
  padding |= {"pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "[PAD]"}
  text = file(WORDS, truncation=truncation, padding=padding)
  ids = data.JsonTokenizer(text).encode("the mill sang the mill")
  np.testing.assert_array_equal(ids, [1, 2, 3, 1, 2])


COMPILED = base64.b64encode((1024).to_bytes(4, "little") + b"\xff\x7f" * 512 + b"a\0")
REFUSED = {
  "two tokens of one id": (file({**WORDS, "old": 1}), "'the' and 'old' both have id 1"),
  "an added one as well": (file(WORDS, added(1, "<eos>")), "both have id 1"),
  "a token of two ids": (file(WORDS, added(7, "the")), "'the' has two ids, 1 and 7"),
  "a token twice": (file(WORDS).replace("mill", "the"), "'the' is there twice"),
  "a large id": (file({**WORDS, "old": 4 * 10**9}), "has id 4000000000; must be"),
  "a large added id": (file(WORDS, added(2**40, "<eos>")), "'<eos>' has id 1099511"),
  "a negative id": (file({**WORDS, "old": -1}), "has id -1; must be a whole number"),
  "an id with a point": (file({**WORDS, "old": 4.0}), "has id 4.0; must be"),
  "true for an id": (file({**WORDS, "old": True}), "has id True; must be"),
  "no model": ("{}", "model must be an object"),
  "no object": ("[]", "it must be an object"),
  "words in a list": (file(list(WORDS)), "an entry of model.vocab must be a list"),
  "no tokens": (file({}), "it has no tokens"),
  "an added text": (file(WORDS, "x"), "an added token must be an object"),
  "deep": ("[" * 10_000, "nested deeper|not JSON"),
  "a digit too many": (file({**WORDS, "old": 0}).replace("0", "1" * 5000), "not JSON"),
  "dropout": (
    file({"a": 0}, model={"type": "BPE", "merges": [], "dropout": 0.5}),
    "model.dropout = 0.5",
  ),
  "a merge of what is not there": (
    file({"a": 0}, model={"type": "BPE", "merges": ["a b"]}),
    "not a tokenizer.json",
  ),
  "an unknown model": (file(WORDS, model={"type": "x"}), "not a tokenizer.json"),
  "a damaged normaliser": (
    file(WORDS, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAB"}),
    "precompiled_charsmap is damaged",
  ),
  "one that leads outside": (
    file(
      WORDS,
      normalizer={
        "type": "Sequence",
        "normalizers": [
          {"type": "Precompiled", "precompiled_charsmap": COMPILED.decode()}
        ],
      },
    ),
    "precompiled_charsmap is damaged",
  ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_right_ids_is_refused(kind, tmp_path, capfd):
  text, message = REFUSED[kind]
  path = tmp_path / "tokenizer.json"
  path.write_text(text)
  with pytest.raises(UserError, match=f"data.tokenizer = .*{message}") as error:
    data.load_tokenizer(str(path))
  assert "\n" not in str(error.value)
  assert capfd.readouterr().err == ""  # the library writes beside Python


@pytest.mark.parametrize(
  "ids, message",
  [
    ({"bos": 1}, "BOS is id 1, which is that of the text 'the'"),
    ({"eos": 3, "pad": 3}, "EOS = PAD is id 3, which is that of the text 'sang'"),
    ({"mask": 2}, "MASK is id 2, which is that of the text 'mill'"),
    ({"eos": 0}, r"EOS = PAD is id 0, which is that of the text '\[UNK\]'"),
    ({"size": 3, "bos": 2, "eos": 2, "pad": 2, "mask": 1}, "has 4 ids, the weights 3"),
    ({"mask": 99}, "mask has id 99; must be below 6"),
    ({"size": 2**40}, r"size = 1099511627776; must be from 1 to"),
    ({"size": "6"}, "size = '6'; must be"),
    ({"eos": -1}, "eos has id -1"),
    ({"pad": True}, "pad has id True"),
  ],
)
def test_special_ids_of_weights_are_no_words(ids, message):
  right = {"size": 6, "bos": 4, "eos": 4, "pad": 0, "mask": 5}
  stored = {"name": "json", "files": {"tokenizer.json": file(WORDS)}}
  tokenizer = data.restore_tokenizer({**stored, **right})
  assert special(tokenizer) == (6, 4, 4, 0, 5)
  with pytest.raises(UserError, match=f"checkpoint: its tokenizer: {message}"):
    data.restore_tokenizer({**stored, **right, **ids})


def test_part_of_a_character_is_no_special_id():
  v = data.JsonTokenizer(BPE).vocabulary
  (number, *_) = data.JsonTokenizer(BPE).encode("😀")
  stored = data.JsonTokenizer(BPE).describe()
  with pytest.raises(UserError, match=f"EOS is id {number}, which is that of the text"):
    data.restore_tokenizer({**stored, "eos": int(number), "size": v.size})


def test_a_text_without_ids_is_refused():
  tokenizer = data.JsonTokenizer(file({"the": 0}))
  np.testing.assert_array_equal(tokenizer.encode("the"), [0])
  for encode in (tokenizer.encode, lambda text: list(tokenizer.encode_all([text]))):
    with pytest.raises(UserError, match=r"text .the mill.*cannot encode it .*UNK"):
      encode("the mill")
  assert "does not take every text" in lost_text(tokenizer)


def test_facts_say_what_is_there_and_what_is_lost():
  assert facts(data.ByteTokenizer()) == [
    "byte, 260 ids; BOS 256, EOS 257, PAD 258, MASK 259"
  ]
  assert facts(data.JsonTokenizer(BPE)) == [
    "json, 300 ids; BOS 1 '<bos>', EOS 2 '<eos>', PAD 0 '<pad>', MASK 3 '<mask>'"
  ]
  lower = {"type": "Lowercase"}
  first, second = facts(data.JsonTokenizer(file({**WORDS, "old": 7}, normalizer=lower)))
  assert first == "json, 10 ids, 3 of them without a token; BOS = EOS = PAD 8, MASK 9"
  assert "does not keep every text" in second and "the" in second
  rows = data.IdTokenizer(data.Vocabulary(12, 1, 1, 1, 11), used_ids=8)
  assert facts(rows) == [
    "ids, 12 ids, 3 of them without a token; BOS = EOS = PAD 1, MASK 11"
  ]
  assert data.restore_tokenizer(rows.describe()).unused == ((8, 11),)


def varint(number):
  rest = b"" if number < 128 else varint(number >> 7)
  return bytes([number & 127 | (128 if rest else 0)]) + rest


def message(field, content):
  return varint(field << 3 | 2) + varint(len(content)) + content


def piece(text, type_=1):
  return message(1, message(1, text) + b"\x15\0\0\0\0" + b"\x18" + varint(type_))


def test_damaged_models_of_pieces_are_refused(tmp_path, capfd):
  model = pieces()
  unknown = piece(b"<unk>", 2)
  for content, reason in {
    b"": "it has no pieces",
    model[:-3]: "a field of",
    model + b"\x0a\xff\xff\xff\xff\x0f": "a field of 4294967295 bytes, 0 are left",
    model + b"\x0a" + b"\xff" * 12: "a number of over 64 bits",
    model + b"\x0b": "wire type 3",
    model + piece("▁".encode()): "pieces .* are '▁'",
    unknown + piece(b"\xff"): "piece 1: must be a text in UTF-8",
    unknown + piece(b""): "piece 1: must be a text in UTF-8",
    unknown + piece(b"a", 9): "piece 1: its type must be from 1 to 6, is 9",
    unknown
    + message(1, message(1, b"a") + b"\x15\0\0\xc0\x7f"): "score must be finite",
    piece(b"a"): "has 0 pieces for unknown text",
    unknown + piece(b"a", 2): "has 2 pieces for unknown text",
    model + message(3, message(2, b"\0\4\0\0" + b"\xff" * 2000)): "charsmap is damaged",
  }.items():
    path = tmp_path / f"{abs(hash(content))}.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}.*{reason}") as error:
      data.load_tokenizer(str(path))
    assert "\n" not in str(error.value)
  assert capfd.readouterr().err == ""


def test_special_ids_are_control_pieces():
  tokenizer = data.PieceTokenizer(pieces())
  stored = tokenizer.describe()
  assert data.restore_tokenizer({**stored, "pad": 0}).vocabulary.pad == 0
  word = int(tokenizer.encode("the times")[0])
  marker = int(tokenizer.encode("<mask>")[-1])
  for ids in ({"eos": word}, {"mask": marker}, {"bos": 0}):
    (kind,) = ids
    with pytest.raises(UserError, match=f"{kind.upper()} is id .*, which is the piece"):
      data.restore_tokenizer({**stored, **ids})
  with pytest.raises(UserError, match="ids, the weights 9"):
    data.restore_tokenizer({**stored, "size": 9, "pad": 3, "mask": 8})
