"""The shipped corpora in the form they are published in, through the real code."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
import tokenizers

from set_diffusion_jax import cli, data, load
from set_diffusion_jax.config import Config, DataConfig
from set_diffusion_jax.configs import corpora
from set_diffusion_jax.training.train import train
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]


def small(config, length=16):
  """A shipped configuration with a model and a cadence for tests."""
  config.model.update({"layers": 1, "width": 16, "heads": 2, "ffn": 32})
  config.optimizer.warmup_steps = 1
  config.train.update({"steps": 2, "batch_size": 4, "log_every": 1})
  config.train.update({"evaluate_every": 2, "checkpoint_every": 2})
  config.evaluate.update({"batch_size": 8, "sequences": 8})
  config.data.length = length
  return Config.from_dict(config.to_dict())


@pytest.mark.parametrize("name", list(corpora.CORPORA))
def test_every_corpus_is_a_valid_configuration(name):
  for arguments in (f"corpus={name}", f"corpus={name},prepared=x"):
    config = Config.from_dict(corpora.get_config(arguments).to_dict())
    assert config.data.source in ("lines", "jsonl", "text", "prepared")
  text = (ROOT / "docs" / "data.md").read_text()
  assert re.search(rf"^\| `{name}` ", text, re.MULTILINE)


def write_tokenizers(folder):
  """Small ones under the names of the real ones, with their special entries."""
  bert = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
  bert.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  bert.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=90, special_tokens=special, show_progress=False
  )
  bert.train_from_iterator([tiny.TEXT], trainer)
  gpt2 = json.loads(data.train_bpe([tiny.TEXT], 300))
  words = gpt2["model"]["vocab"]
  words["<|endoftext|>"] = words.pop("<eos>")
  gpt2["added_tokens"] = [
    {**token, "content": "<|endoftext|>"}
    for token in gpt2["added_tokens"]
    if token["content"] == "<eos>"
  ]
  for name, text in (("bert-base-uncased", bert.to_str()), ("gpt2", json.dumps(gpt2))):
    (folder / "tokenizers" / name).mkdir(parents=True)
    (folder / "tokenizers" / name / "tokenizer.json").write_text(text)


def test_lm1b(tmp_path):
  """Sentences in many files, wrapped between [CLS] and [SEP], a [SEP] after each."""
  write_tokenizers(tmp_path)
  get = corpora.get_config
  paths = get(f"corpus=lm1b,data={tmp_path}").data
  sentences = [f"It was the {word} of times , it was ." for word in ("best", "worst")]
  for pattern, files in ((paths.train_path, 3), (paths.validation_path, 2)):
    folder = pathlib.Path(pattern).parent
    folder.mkdir(parents=True)
    for number in range(files):
      name = pathlib.Path(pattern).name.replace("*", f"0000{number}-of-00100")
      (folder / name).write_text(f"{sentences[number % 2]}\n" * 20)
  direct = small(get(f"corpus=lm1b,data={tmp_path}"))
  corpus = data.load(direct.data)
  v = corpus.tokenizer.vocabulary
  decoded = corpus.tokenizer.decode(corpus.train[0]["tokens"])
  assert decoded.replace(" ", "").startswith("itwasthebestoftimes,itwas.itwas")
  tokens, sizes = corpus.train.batch(range(len(corpus.train)))
  whole = tokens["valid"].all(-1)
  assert (tokens["tokens"][:, 0] == v.bos).all() and whole.sum() == len(whole) - 1
  assert (tokens["tokens"][whole, -1] == v.eos).all()
  assert (tokens["tokens"][:, 1:-1] == v.eos).sum() + 1 >= 60
  assert sizes.sum() == sum(
    len(sentences[n % 2].replace(" ,", ",").replace(" .", ".")) * 20 for n in range(3)
  )
  data.prepare(direct.data, tmp_path / "tokens")
  get_prepared = f"corpus=lm1b,data={tmp_path},prepared={tmp_path}/tokens"
  prepared = small(get(get_prepared))
  train(direct, tmp_path / "run")
  model = load(tmp_path / "run")
  first = model.evaluator().run(model.params).likelihood
  model = dataclasses.replace(model, config=prepared)
  second = model.evaluator().run(model.params).likelihood
  np.testing.assert_array_equal(first.nats, second.nats)
  np.testing.assert_array_equal(first.bytes, second.bytes)


@pytest.mark.slow
def test_openwebtext(tmp_path, capsys):
  """The last documents of JSONL files are held out; EOS between, none at the ends."""
  write_tokenizers(tmp_path)
  (tmp_path / "openwebtext").mkdir()
  texts = [f"{i} {tiny.TEXT}" for i in range(30)]
  for part in range(3):
    rows = [json.dumps({"text": text}) for text in texts[part::3]]
    (tmp_path / "openwebtext" / f"{part}.jsonl").write_text("\n".join(rows))
  base = f"corpus=openwebtext,data={tmp_path}"
  fields = ["--config.data.length=16", "--config.data.validation_documents=5"]
  command = ["prepare", f"--config=corpora:{base}", *fields, f"--output={tmp_path}/out"]
  assert cli.main([*command, "--workers=1", "--shard-size=0.0005"]) == 0
  printed = capsys.readouterr().out
  assert re.search(r"train +25 documents, .* 4 shards", printed)
  assert re.search(r"validation +5 documents", printed)
  assert cli.main(["prepare", f"--check={tmp_path}/out"]) == 0
  assert "all are whole" in capsys.readouterr().out
  config = corpora.get_config(f"{base},prepared={tmp_path}/out")
  config.data.validation_documents = 5
  corpus = data.load(small(config).data)
  ids, _ = corpus.validation.text.read(0, corpus.validation.text.tokens)
  parts = np.split(ids, np.flatnonzero(ids == corpus.tokenizer.vocabulary.eos) + 1)
  assert [corpus.tokenizer.decode(part) for part in parts[:-1]] == texts[2::3][-5:]
  first = corpus.train[0]
  assert not first["context"].any() and first["valid"].all()
  train(small(config), tmp_path / "run")
  capsys.readouterr()
  assert cli.main(["evaluate", f"--checkpoint={tmp_path}/run", "--sequences=4"]) == 0
  assert "64 tokens" in capsys.readouterr().out
  shown = ["inspect", "--data", f"--config=corpora:{base},prepared={tmp_path}/out"]
  capsys.readouterr()
  output = tmp_path / "figures.json"
  shown += [*fields, "--rows=1", f"--output={output}", "--config.train.batch_size=2"]
  assert cli.main(shown) == 0
  printed = capsys.readouterr().out
  assert "batch      2 x 16: 32 targets, 0 context, 0 padding" in printed
  assert "--- row 0: 16 tokens, 0 context, 16 masked\n[" in printed
  assert json.loads(output.read_text())["targets"] == 32


# As WikiText is published, word by word with its own marks.
MARKED = [
  " = Night train = ",
  " ",
  " The <unk> line , opened in 1 @,@ 904 , is a two @-@ track railway of the Señora .",
  " ",
  " = = Stations = = ",
  " ",
  ' At " Old Mill " ( 3 @.@ 5 km ) trains stop 😀 only where somebody waits . ',
]


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_text_and_its_shards_are_the_same(tmp_path, name):
  write_tokenizers(tmp_path)
  article = "".join(f"{line}\n" for line in MARKED)
  text = "".join(article.replace("904", str(900 + i)) for i in range(20))
  (tmp_path / "valid.txt").write_text(text, encoding="utf-8")
  fields = {
    "source": "lines",
    "train_path": str(tmp_path / "valid.txt"),
    "tokenizer": str(tmp_path / "tokenizers" / name),
    "length": 32,
  }
  direct = DataConfig(**fields)
  data.prepare(direct, tmp_path / "out", workers=1, shard=1500)
  again = DataConfig(**{**fields, "source": "prepared", "directory": f"{tmp_path}/out"})
  first, second = data.load(direct), data.load(again)
  assert first.train.digest == second.train.digest
  rows = np.random.default_rng(0).integers(0, len(first.train), 50)
  for one, two in zip(first.train.batch(rows), second.train.batch(rows), strict=True):
    for key in one if isinstance(one, dict) else [slice(None)]:
      np.testing.assert_array_equal(one[key], two[key])
  if name == "gpt2":  # loses nothing
    halves = [corpus.text for corpus in (second.train, second.validation)]
    ids = [h.read(0, h.tokens)[0] for h in halves]
    assert "".join(map(second.tokenizer.decode, ids)) == text
