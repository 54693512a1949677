"""Batches of texts from start to finish: stops, processors, orders of the user's."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import data
from set_diffusion_jax.api import Model
from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.decode import Stops
from set_diffusion_jax.decode.choose import allowed_logits, choose, truncated
from set_diffusion_jax.decode.request import check
from set_diffusion_jax.errors import UserError
from tests import tiny

LENGTH, V = 24, data.ByteTokenizer.vocabulary


@pytest.fixture(scope="module", params=["ar", "set", "block", "masked"])
def model(request):
  obj = tiny.objective(
    vocab_size=V.size,
    method__name=request.param,
    data__length=LENGTH,
    **({"method__block_size": 4} if request.param == "block" else {}),
  )
  return Model(obj.config, tiny.params(obj, scale=0.2), data.ByteTokenizer(), 0)


FREE = DecodeConfig(stop_at_eos=False)


def test_a_batch_equals_its_rows(model):
  prompts = ["a long prompt", "", "mid"]
  if model.objective.one_stream:
    assert model.config.data.bos
  together = model.generate(prompts, seed=3, options=FREE)
  assert [len(r["tokens"]) for r in together] == [LENGTH] * 3
  alone = model.generate(prompts[:1], seed=3, options=FREE)
  assert alone[0]["tokens"] == together[0]["tokens"]
  again = model.generate(prompts, seed=3, options=FREE)
  assert [r["tokens"] for r in again] == [r["tokens"] for r in together]
  rest = model.generation(model.continued(prompts[1:]), 3, FREE, first_row=1)
  assert [r["tokens"] for r in rest.finish()] == [r["tokens"] for r in together[1:]]
  other = model.generate(prompts, seed=4, options=FREE)
  assert other[0]["tokens"] != together[0]["tokens"]


def test_more_tokens_a_step_than_there_are(model):
  """As many as there are; larger numbers ran into limits of the compiler."""
  if model.objective.one_stream:
    return
  asked = [DecodeConfig(tokens_per_step=n, stop_at_eos=False) for n in (LENGTH, 1e9)]
  first, second = (model.generate(["ab"], options=one)[0] for one in asked)
  assert first["tokens"] == second["tokens"]


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_seeds_that_have_no_key_of_their_own_are_refused(model, seed):
  with pytest.raises(UserError, match=f"seed = {seed}: must be a whole number from 0"):
    model.generate(["a"], seed=seed)


def test_what_is_no_text_is_refused(model):
  for call in (model.generate, model.infill):
    with pytest.raises(UserError, match=r"half a character .* at 2"):
      call(["ab\udcff [MASK:2]"])


UNREAD = [
  ({"threshold": 0.5, "commit": "posterior"}, "decode.threshold = 0.5: must be null"),
  ({"window": 4}, "decode.window = 4: must be null for method"),
  ({"forbidden": (3, V.size)}, rf"decode.forbidden: has {V.size}; .* \[0, {V.size}\)"),
  ({"forbidden": (-1,)}, "decode.forbidden: has -1"),
  ({"forbidden": tuple(range(V.size))}, "decode.forbidden: leaves no id"),
]


@pytest.mark.parametrize(("options", "words"), UNREAD)
def test_options_that_would_not_be_read_are_refused(model, options, words):
  name = model.config.method.name
  if "window" in options and name in ("set", "masked"):
    check(model.objective, DecodeConfig(**options), model.continued(["a"]))
    return
  if "threshold" in options and name == "ar":
    words = "method ar has no noise schedule"
  with pytest.raises(UserError, match=words):
    model.generate(["a"], options=DecodeConfig(**options))


def test_watching_changes_nothing(model):
  templates = model.continued(["ab", "c"])
  plain = model.generation(templates, 1, FREE).finish()
  generation = model.generation(templates, 1, FREE)
  looks = list(generation.run(every=2))
  done = [look.committed.sum() for look in looks]
  assert done == sorted(done) and len(looks) > 3
  assert [r["tokens"] for r in generation.results()] == [r["tokens"] for r in plain]


def test_stops(model):
  """Each stop cuts the text that would have come without it, wherever one looks."""
  options = dataclasses.replace(FREE, temperature=1.0)
  (whole,) = model.generate(["ab"], seed=5, options=options)
  new = whole["tokens"][3:]
  text = model.tokenizer.decode(np.array(new))
  part = text[len(text) // 2 :][:1]
  (cut,) = model.generate(["ab"], seed=5, options=options, stops=Stops((part,)))
  assert cut["text"] == "ab" + text[: text.find(part)] != whole["text"]
  assert cut["ended_by"] == f"stop string {part!r}"
  assert cut["steps"] <= whole["steps"]
  (cut,) = model.generate(["ab"], seed=5, options=options, stops=Stops(pattern="."))
  assert cut["text"] == "ab" and cut["ended_by"] == "stop regex"
  sure = Stops(confidence=(3, 1.0))
  (cut,) = model.generate(["ab"], seed=5, options=options, stops=sure)
  assert cut["text"] == "ab" and cut["ended_by"] == "low confidence"
  poor = Stops(entropy=(4, 9.0))
  (cut,) = model.generate(["ab"], seed=5, options=options, stops=poor)
  assert cut["text"] == "ab" and cut["ended_by"] == "low entropy"
  greedy = dataclasses.replace(FREE, temperature=0.0)
  (row,) = model.generate(["ab"], options=greedy, stops=Stops(repeats=2))
  pairs = zip(row["tokens"][3:], row["tokens"][4:], strict=False)
  assert all(a != b for a, b in pairs)


def test_windows_of_stops():
  """Where the first run of n tokens is repeated, unsure or poor."""
  ids = np.array([5, 5, 1, 2, 3, 4, 4, 4])
  sure = np.array([0.9, 0.9, 0.2, 0.3, 0.9, 0.9, 0.1, 0.1])
  found = lambda stops: stops.found(ids, sure, data.ByteTokenizer())
  assert found(Stops(repeats=3)) == (6, "repeated token")
  assert found(Stops(repeats=4)) is None
  assert found(Stops(confidence=(2, 0.3))) == (2, "low confidence")
  assert found(Stops(confidence=(2, 0.1))) is None
  # Frequencies 1/4, 3/4 of the last four ids: 0.562 nats; 1/2, 1/4, 1/4: 1.040.
  assert found(Stops(entropy=(4, 0.57))) == (4, "low entropy")
  assert found(Stops(entropy=(4, 1.05))) == (0, "low entropy")
  assert found(Stops(entropy=(4, 0.56))) is None
  assert found(Stops(entropy=(9, 99.0))) is None


def test_eos_ends_a_text(model):
  forbidden = tuple(i for i in range(V.size) if i not in (V.eos, V.mask))
  only_eos = DecodeConfig(forbidden=forbidden)
  (row,) = model.generate(["ab"], options=only_eos)
  assert row["tokens"][3:] == [V.eos] and row["ended_by"] == "eos"
  assert row["text"] == "ab"
  later = DecodeConfig(forbidden=forbidden[1:], minimum_length=4)
  (row,) = model.generate(["ab"], options=later)
  assert row["tokens"][3:7] == [0] * 4


def test_an_order_of_the_user(model):
  if model.config.method.name != "set":
    with pytest.raises(UserError, match="order of its own"):
      model.generate(["a"], position=np.arange(LENGTH))
    return
  backwards = np.concatenate([[0, 1], np.arange(LENGTH - 1, 1, -1)])
  generation = model.generation(model.continued(["a"]), 0, FREE, backwards)
  counts = [np.flatnonzero(~look.committed[0]) for look in generation.run(every=1)]
  for i, missing in enumerate(counts[:-1]):
    assert missing[: LENGTH - 2].tolist()[: LENGTH - 3 - i] == list(
      range(2, LENGTH - 1 - i)
    )


def test_speculation_needs_a_drawn_order_and_the_training_length(model):
  drafts = dataclasses.replace(FREE, drafts=2)
  if model.config.method.name != "set":
    with pytest.raises(UserError, match="must be null for"):
      model.generate(["a"], options=drafts)
    return
  with pytest.raises(UserError, match="24 tokens, one has 30"):
    model.generate(["a"], 30, options=drafts)
  (row,) = model.generate(["a"], options=drafts)
  assert len(row["tokens"]) == LENGTH and row["steps"] <= LENGTH


def test_one_compilation_for_a_bucket_of_shapes(model):
  """Other prompts, lengths and seeds of the same number of rows compile nothing new."""
  if model.config.method.name in ("block", "masked"):
    return
  model.generate(["abcd", "a"], 20, options=FREE)
  assert not compiled(lambda: model.generate(["uvwxyz", "uvw"], 24, 7, FREE))
  assert compiled(lambda: model.generate(["xyz"] * 5, 24, 7, FREE))  # another shape


def compiled(run):
  """What JAX compiles during a call."""
  messages, handler, logger = [], logging.Handler(), logging.getLogger("jax")
  handler.emit = lambda record: messages.append(record.getMessage())
  level = logger.level  # the command line raises it
  logger.addHandler(handler)
  logger.setLevel(logging.WARNING)
  try:
    with jax.log_compiles():
      run()
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
  return [message for message in messages if message.startswith("Compiling")]


def test_truncation_against_its_definition():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(50, 9)).astype(np.float32) * 2
  for options in (DecodeConfig(top_k=3), DecodeConfig(top_p=0.6, temperature=0.7)):
    kept = np.isfinite(truncated(options, jnp.asarray(logits)))
    for row, mine in zip(logits / options.temperature, kept, strict=True):
      order = np.argsort(-row)
      share = np.exp(row[order]) / np.exp(row).sum()
      count = 3 if options.top_k else 1 + int((np.cumsum(share) < 0.6).sum())
      assert set(np.flatnonzero(mine)) == set(order[:count])


def test_processors_against_their_definition():
  options = DecodeConfig(
    repetition_penalty=1.5,
    length_penalty=1.2,
    length_penalty_start=2,
    minimum_length=2,
    forbidden=(5,),
  )
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(2, 3, 8)).astype(np.float32)
  tokens = np.array([[0, 1, 7, 7, 2, 7, 7], [3, 7, 4, 7, 7, 7, 1]])
  committed = tokens != 7
  place = np.array([[2, 3, 5], [1, 4, 7]])
  may_end = np.array([[False, True, True], [True, False, True]])
  prompt_length = np.array([2, 1])
  for context in ("left", "both"):
    found = allowed_logits(
      dataclasses.replace(options, repetition_context=context),
      *map(jnp.asarray, (logits, place, may_end, tokens, committed, prompt_length)),
      mask_id=7,
      eos_id=6,
    )
    for b, w in np.ndindex(2, 3):
      expected = logits[b, w].astype(np.float64)
      at, written = place[b, w], place[b, w] - prompt_length[b]
      for i, token in enumerate(tokens[b]):
        if committed[b, i] and (i < at or context == "both"):
          value = logits[b, w, token]
          expected[token] = value / 1.5 if value > 0 else value * 1.5
      beyond = max(written + 1 - 2, 0)
      expected[6] += abs(expected[6]) * (1.2**beyond - 1)
      if written < 2 or not may_end[b, w]:
        expected[6] = -np.inf
      expected[[5, 7]] = -np.inf
      np.testing.assert_allclose(found[b, w], expected, rtol=1e-5)


def test_draws_follow_the_probabilities():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
  rows = 4000
  keys = jax.random.split(jax.random.key(0), rows)
  place = jnp.zeros((rows, 1), jnp.int32)
  many = jnp.tile(logits, (rows, 1, 1))
  token, share, margin = choose(DecodeConfig("margin"), many, place, keys)
  found = np.bincount(np.asarray(token)[:, 0], minlength=3)
  expected = rows * np.array([0.5, 0.3, 0.2])
  assert ((found - expected) ** 2 / expected).sum() < 13.8
  np.testing.assert_allclose(share[:, 0], np.array([0.5, 0.3, 0.2])[token[:, 0]], 1e-5)
  np.testing.assert_allclose(margin, 0.2, atol=1e-5)
