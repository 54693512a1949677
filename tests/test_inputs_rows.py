"""Rows without a token: never generated, in a likelihood only if that is published."""

import dataclasses
import json
import types

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import set_diffusion_jax
from set_diffusion_jax import data
from set_diffusion_jax.api import Model
from set_diffusion_jax.cli import main
from set_diffusion_jax.cli.evaluate import _print_figures
from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.convert import convert, describe, description_text
from set_diffusion_jax.decode.choose import allowed_logits, choose
from set_diffusion_jax.decode.request import check
from set_diffusion_jax.diffusion.draws import stream_key, training_keys
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.likelihood.loss import negative_log_likelihood, slot_nats
from set_diffusion_jax.model import build_network
from set_diffusion_jax.storage.checkpoint import Checkpoints
from tests import tiny
from tests.test_inputs_tokenizers import added, file
from tests.test_tokenizer import pieces

# Ids 0, 10, 20 are words, 30 and 31 are [MASK] and EOS, 35 is a word: 30 have no token.
TEXT = file(
  {"[UNK]": 0, "the": 10, "mill": 20, "sang": 35},
  added(30, "<mask>"),
  added(31, "<eos>"),
)
TOKENS, SIZE = {0, 10, 20, 31, 35}, 36


def model(method, **changes):
  blocks = {"method__block_size": 4} if method == "block" else {}
  obj = tiny.objective(SIZE, method__name=method, **blocks, **changes)
  return Model(obj.config, tiny.params(obj), data.JsonTokenizer(TEXT), 0)


WAYS = {
  "ar": ("ar", {}),
  "set": ("set", {"commit": "confidence", "window": 4, "tokens_per_step": 2}),
  "drafts": ("set", {"drafts": 3}),
  "revealed": ("set", {"commit": "posterior", "tokens_per_step": 2}),
  "block": ("block", {"commit": "posterior", "tokens_per_step": 2}),
  "masked": ("masked", {"commit": "posterior", "tokens_per_step": 4}),
  "infill": ("masked", {"commit": "margin", "temperature": 0.0}),
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_without_a_token_are_never_generated(way):
  method, options = WAYS[way]
  m, options = model(method), DecodeConfig(stop_at_eos=False, **options)
  if way == "infill":
    found = m.infill(["the [MASK:6] mill [MASK:3]"] * 8, options=options)
  else:
    found = m.generate(["the mill"] * 8, options=options)
  for result in found:
    assert set(result["tokens"]) <= TOKENS
    assert "_" not in result["text"]


def test_they_get_no_probability():
  logits = jax.random.normal(jax.random.key(0), (2, 3, SIZE)) * 3
  place, tokens = jnp.arange(6).reshape(2, 3), jnp.zeros((2, 6), jnp.int32)
  unused = data.JsonTokenizer(TEXT).unused
  found = allowed_logits(
    DecodeConfig(stop_at_eos=False),
    *(logits, place, jnp.ones((2, 3), bool), tokens, tokens > 0, jnp.zeros(2, int)),
    mask_id=30,
    eos_id=31,
    unused=unused,
  )
  kept = sorted(TOKENS)
  np.testing.assert_array_equal(
    np.isfinite(found).nonzero()[2].reshape(6, 5), [kept] * 6
  )
  keys = jax.random.split(jax.random.key(1), 2)
  token, share, _ = choose(DecodeConfig(), found, place, keys)
  part = np.exp(np.asarray(logits, np.float64)[..., kept])
  at = np.searchsorted(kept, token)
  expected = np.take_along_axis(part, at[..., None], -1)[..., 0] / part.sum(-1)
  np.testing.assert_allclose(share, expected, rtol=1e-5)


def test_something_must_be_left_to_choose():
  m = model("set")
  options = DecodeConfig(forbidden=tuple(TOKENS))
  with pytest.raises(UserError, match=r"decode\.forbidden: leaves no id"):
    check(m.objective, options, m.continued(["the"]))


@pytest.mark.parametrize("suppress", [None, 30])
def test_a_likelihood_among_tokens_is_a_softmax_over_their_rows(suppress):
  """Against float64 numpy, from the definition, whole and in pieces."""
  rng = np.random.default_rng(0)
  unused = data.JsonTokenizer(TEXT).unused
  h, w = rng.normal(size=(3, 8, 5)), rng.normal(size=(5, SIZE))
  kept = [i for i in (*sorted(TOKENS), 30) if i != suppress]
  target = rng.choice(sorted(TOKENS), (3, 8))
  logits = np.einsum("brd,dv->brv", h, w)
  picked = np.take_along_axis(logits, target[..., None], -1)[..., 0]
  expected = np.log(np.exp(logits[..., kept]).sum(-1)) - picked
  h, w, target = jnp.float32(h), jnp.float32(w), jnp.asarray(target)
  unembed = lambda h: jnp.einsum("brd,dv->brv", h, w)
  whole = negative_log_likelihood(unembed(h), target, suppress, unused)
  np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
  for elements in (10**9, 3 * SIZE * 4, 1):
    found = slot_nats(unembed, h, target, SIZE, suppress, elements, unused)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  gradient = jax.grad(
    lambda x: negative_log_likelihood(x, target, suppress, unused).sum()
  )(unembed(h))
  share = np.exp(logits) / np.exp(logits[..., kept]).sum(-1, keepdims=True)
  share[..., [i for i in range(SIZE) if i not in kept]] = 0
  np.testing.assert_allclose(gradient, share - np.eye(SIZE)[target], atol=1e-5)


def test_only_what_asks_for_it_leaves_rows_out():
  published, among = model("set"), model("set", evaluate__softmax="tokens")
  rng = np.random.default_rng(0)
  tokens = rng.choice(sorted(TOKENS), (2, 16)).astype(np.int32)
  unlikely = jax.tree.map(lambda x: x, published.params)
  rows = [i for i in range(SIZE) if i not in {*TOKENS, 30}]
  unlikely["head"]["bias"] = unlikely["head"]["bias"].at[np.array(rows)].set(-1e9)
  without = dataclasses.replace(published, params=unlikely).nelbo(tokens)
  np.testing.assert_allclose(among.nelbo(tokens), without, rtol=1e-5)
  assert (published.nelbo(tokens) > without + 1).all()
  # Training has the published softmax whatever is asked of a likelihood.
  batch = tiny.batch(length=16)
  keys = training_keys(stream_key(0, 0), 0, batch.row)
  nats = [
    tiny.training_nats(m.objective, published.params, batch, keys)
    for m in (published, among)
  ]
  np.testing.assert_array_equal(*nats)


def test_a_likelihood_says_which_rows_it_is_over(capsys):
  held_out = types.SimpleNamespace(digest="x")
  evaluator = types.SimpleNamespace(held_out=held_out, order_digest=None)
  said = {
    "rows": "all rows, 30 of them without a token",
    "tokens": "rows with a token; 30 without one are left out",
  }
  for choice, words in said.items():
    m = model("set", evaluate__softmax=choice)
    assert m.protocol(evaluator)["softmax"] == words
  whole = dataclasses.replace(m, tokenizer=data.ByteTokenizer())
  assert "softmax" not in whole.protocol(evaluator)
  with pytest.raises(UserError, match=r'evaluate\.softmax = "some": must be one of'):
    model("set", evaluate__softmax="some")
  figures = dict.fromkeys(("tokens", "bytes", "sequences", "draws"), 1)
  for name in ("nats_per_token", "perplexity", "bits_per_byte"):
    figures |= {name: 1.0, f"{name}_standard_error": None}
  protocol = {"levels": None, "softmax": said["rows"]}
  _print_figures({**figures, "bound": "exact", "protocol": protocol})
  assert "over all rows, 30 of them without a token\n" in capsys.readouterr().out


def run(folder, tokenizer, method="set"):
  """A work directory with a step as training saves it."""
  config = tiny.config(method__name=method, model__ffn=64, evaluate__weights="raw")
  network = build_network(config.model, tokenizer.vocabulary.size)
  params = network.init(jax.random.key(0))
  meta = {
    "config": config.to_dict(),
    "tokenizer": tokenizer.describe(),
    "weights_from": {"initialisation": "noise"},
  }
  folder.mkdir()
  (folder / "config.json").write_text(
    json.dumps({"config": meta["config"], "data": {}})
  )
  texts = iter(grain.MapDataset.range(1).to_iter_dataset())
  with Checkpoints(folder / "checkpoints", keep_latest=1) as checkpoints:
    checkpoints.save(3, {"params": params, "ema": params}, texts, meta, None)
  return folder


def test_sentence_pieces_survive_both_conversions(tmp_path):
  own = data.PieceTokenizer(pieces())
  first = run(tmp_path / "run", own)
  convert(first, tmp_path / "out", weights="raw")
  assert (tmp_path / "out" / "tokenizer.model").read_bytes() == own.model
  assert not list((tmp_path / "out").glob("*base64*"))
  convert(tmp_path / "out", tmp_path / "back", verify=True)
  convert(tmp_path / "back", tmp_path / "again")
  assert (tmp_path / "again" / "tokenizer.model").read_bytes() == own.model
  text = "It was  the café of 日本 times"
  for name in ("run", "out", "back", "again"):
    loaded = set_diffusion_jax.load(tmp_path / name)
    assert loaded.tokenizer.vocabulary == own.vocabulary
    np.testing.assert_array_equal(loaded.tokenizer.encode(text), own.encode(text))
    assert loaded.tokenizer.decode(own.encode(text)) == own.decode(own.encode(text))
    assert "tokenizer: sentencepiece, " in description_text(describe(tmp_path / name))
  (tmp_path / "out" / "tokenizer.model").write_bytes(own.model[:-3])
  with pytest.raises(UserError, match=r"out/tokenizer\.model: not a SentencePiece"):
    convert(tmp_path / "out", tmp_path / "more")
  # What only the library finds: a unit of the normaliser's trie is no leaf any more.
  size = 179_200
  start = own.model.index(size.to_bytes(4, "little")) + 4
  leaf = next(i for i in range(start + 3, start + size, 4) if own.model[i] == 0x80)
  damaged = own.model[:leaf] + b"\0" + own.model[leaf + 1 :]
  (tmp_path / "out" / "tokenizer.model").write_bytes(damaged)
  with pytest.raises(UserError, match="tokenizer: not a SentencePiece model"):
    convert(tmp_path / "out", tmp_path / "more")
  stored = own.describe()
  for text in ("AAAA", "A", "\u00e9"):
    stored["files"] = {"tokenizer.model.base64": text}
    broken = types.SimpleNamespace(vocabulary=own.vocabulary, describe=lambda: stored)
    name = f"broken{ord(text[-1])}{len(text)}"
    with pytest.raises(UserError, match="checkpoint: its tokenizer"):
      convert(run(tmp_path / name, broken), tmp_path / "more")
  assert not (tmp_path / "more").exists()


def test_sampling_from_what_was_converted(tmp_path, capsys):
  first = run(tmp_path / "run", data.PieceTokenizer(pieces()), "ar")
  convert(first, tmp_path / "out", weights="raw")
  convert(tmp_path / "out", tmp_path / "back")
  texts = []
  for name in ("out", "back"):
    sample = [f"--checkpoint={tmp_path / name}", "--prompt=It was", "--seed=3"]
    assert main(["sample", *sample, "--length=8"]) == 0
    texts.append(capsys.readouterr().out)
  assert texts[0] == texts[1] and "It was" in texts[0]


def test_inspect_says_what_the_tokenizer_is(tmp_path, capsys):
  assert main(["inspect", str(run(tmp_path / "run", data.JsonTokenizer(TEXT)))]) == 0
  out = capsys.readouterr().out
  special = "BOS = EOS = PAD 31 '<eos>', MASK 30 '<mask>'"
  assert f"tokenizer: json, 36 ids, 30 of them without a token; {special}\n" in out
  assert "tokenizer: the tokenizer does not keep every text" in out


def test_a_damaged_tokenizer_is_not_converted(tmp_path, capsys):
  tokenizer = data.JsonTokenizer(TEXT)
  stored = tokenizer.describe()
  for number, text in enumerate(("{}", TEXT.replace("20", "10"), TEXT[:-9])):
    stored["files"] = {"tokenizer.json": text}
    broken = types.SimpleNamespace(
      vocabulary=tokenizer.vocabulary, describe=lambda: stored
    )
    first = run(tmp_path / f"run{number}", broken)
    assert main(["convert", str(first), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "checkpoint: its tokenizer" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
