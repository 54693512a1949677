"""Figures of likelihood: estimators against enumeration and their own definitions."""

import dataclasses
import functools
import itertools
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import data
from set_diffusion_jax.api import Model
from set_diffusion_jax.diffusion.draws import EVALUATE, row_keys, stream_key
from set_diffusion_jax.diffusion.order import singletons
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.evaluate import SUMS, Likelihood, PartialResults, mixture_nats
from set_diffusion_jax.evaluate.clip import SetLosses, search_clip, set_losses
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.model import build_network
from tests import tiny


def likelihood(nats, tokens, size=None):
  nats, tokens = np.asarray(nats, float), np.asarray(tokens, float)
  size = tokens if size is None else size
  return Likelihood(nats, nats, tokens, size, np.zeros_like(nats), 1, False)


def test_perplexity_is_of_totals_not_a_mean_of_means():
  found = likelihood([10.0, 2.0], [10, 1])
  assert found.nats_per_token == pytest.approx(12 / 11)
  assert found.perplexity == pytest.approx(math.exp(12 / 11))
  assert likelihood([8.0], [4], np.array([2.0])).bits_per_byte == pytest.approx(
    4 / math.log(2)
  )
  assert math.isnan(likelihood([1.0], [1]).standard_error)


def test_standard_error_is_the_spread_of_the_estimate():
  """Against the spread over many data sets, with sequences of different lengths."""
  rng = np.random.default_rng(0)
  estimates, errors = [], []
  for _ in range(2000):
    tokens = rng.integers(5, 30, 60)
    nats = tokens * rng.normal(2, 0.3, 60) + rng.normal(0, 1, 60)
    found = likelihood(nats, tokens)
    estimates.append(found.nats_per_token)
    errors.append(found.standard_error)
  assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.06)


def test_more_orders_tighten_the_bound_and_stay_above_the_truth():
  """All K-tuples of the 6 orders of 3 positions, on a model that can be enumerated."""
  obj = tiny.objective(method__name="any_order", data__length=3, vocab_size=6)
  params = tiny.params(obj, scale=0.6)
  batch = tiny.batch(rows=6, length=3, vocab_size=6)
  one = jax.tree.map(lambda x: jnp.repeat(x[:1], 6, axis=0), batch)
  orders = singletons(jnp.asarray(list(itertools.permutations(range(3))), jnp.int32))
  nats = tiny.nats(obj, params, tiny.streams(obj, one, orders)).sum(-1)
  exact = float(mixture_nats(nats))
  assert jnp.ptp(nats) > 0.05, "the orders must differ for the test to mean anything"
  bounds = []
  for count in (1, 2, 3, 4):
    tuples = jnp.asarray(list(itertools.product(range(6), repeat=count)))
    bounds.append(float(mixture_nats(nats[tuples].T).mean()))
  assert bounds[0] == pytest.approx(float(nats.mean()), rel=1e-6)
  assert all(a > b for a, b in itertools.pairwise(bounds))
  assert bounds[-1] > exact


LENGTH = 12


@functools.cache
def model(method, **changes):
  """A model with arbitrary weights and a text of its own."""
  folder = pathlib.Path(TEXTS.name)
  path = tiny.text_file(folder, lines=6)
  config = tiny.config(
    method__name=method,
    data__length=LENGTH,
    data__source="text",
    data__validation_path=str(path),
    **{"evaluate__batch_size": 16, **changes},
  )
  tokenizer = data.ByteTokenizer()
  network = build_network(config.model, tokenizer.vocabulary.size)
  v = tokenizer.vocabulary
  params = tiny.params(Objective(config, network, v.mask, v.eos))
  return Model(config, params, tokenizer, 0), path.read_text()


@pytest.mark.parametrize(
  "tokens", [np.zeros((0, 4), int), np.ones((1, 4)) / 2, np.zeros((1, LENGTH + 1), int)]
)
def test_tokens_that_are_none_are_refused(tokens):
  m, _ = model("set")
  with pytest.raises(ValueError, match=r"tokens: must be whole numbers \[B, L\]"):
    m.nelbo(tokens)


TEXTS = tempfile.TemporaryDirectory(prefix="set-diffusion-texts-")


def rows_of(held_out):
  """The tokens of all rows but the last, which is padded."""
  return np.stack([held_out[i]["tokens"] for i in range(len(held_out) - 1)])


@pytest.mark.parametrize("method", ["ar", "set", "general", "masked"])
def test_figures_are_those_of_single_rows(method):
  """The evaluator against the plain functions of a model, row by row."""
  m, text = model(method, evaluate__draws=3)
  evaluator = m.evaluator()
  found = evaluator.run(m.params).likelihood
  tokens = rows_of(evaluator.held_out)
  np.testing.assert_allclose(found.nats[:-1], m.nelbo(tokens, draws=3), rtol=1e-5)
  assert (found.tokens[:-1] == LENGTH - 1).all()
  assert found.bytes.sum() == len(text.encode())
  assert found.tokens.sum() == len(text.encode()) + 1  # and EOS
  mixes = method in ("set", "general")  # their draws are orders with exact nats
  mixed = -m.log_prob_bound(tokens, orders=3) if mixes else found.nats[:-1]
  np.testing.assert_allclose(found.mixed[:-1], mixed, rtol=1e-5)
  assert found.exact == (method == "ar")


def test_several_drawn_orders_of_sets_make_one_distribution():
  """Probabilities of all texts of three tokens, each text under the same draws."""
  c = tiny.config(
    method__name="general",
    method__grid=2,
    method__max_set_size=3.0,
    data__length=3,
    data__bos=False,
  )
  vocabulary = tiny.vocabulary(5)
  network = build_network(c.model, vocabulary.size)
  params = tiny.params(Objective(c, network, vocabulary.mask, vocabulary.eos))
  m = Model(c, params, data.IdTokenizer(vocabulary), 0)
  texts = np.array(list(itertools.product(range(4), repeat=3)))  # without [MASK]
  bounds = [float(m.log_prob_bound(text[None], orders=3)[0]) for text in texts]
  assert np.exp(bounds).sum() == pytest.approx(1, abs=1e-5)
  # An order's nats are exact: one order's bound is its NELBO.
  one = m.log_prob_bound(texts[:1], orders=1)
  assert one == pytest.approx(-m.nelbo(texts[:1], draws=1), rel=1e-6)


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"method__name": "ar"}, "method ar has one order only"),
    ({"method__name": "block"}, "method block draws noise levels"),
    ({"method__name": "masked"}, "method masked draws noise levels"),
    ({"method__name": "general", "method__noise": "level"}, "general draws noise"),
  ],
)
def test_orders_that_do_not_mix_are_refused(changes, why):
  c = tiny.config(**changes)
  tokenizer = data.IdTokenizer(tiny.vocabulary(12))
  with pytest.raises(ValueError, match=f"log_prob_bound: .*{why}"):
    Model(c, None, tokenizer, 0).log_prob_bound([[0]])


def test_a_given_order_gives_the_exact_log_p(tmp_path):
  order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(LENGTH - 1)])
  np.save(tmp_path / "order.npy", order)
  for name, position in (
    ("left_to_right", np.arange(LENGTH)),
    (str(tmp_path / "order.npy"), order),
  ):
    m, _ = model("set", evaluate__order=name)
    evaluator = m.evaluator()
    found = evaluator.run(m.params).likelihood
    tokens = rows_of(evaluator.held_out)
    expected = -m.log_prob(tokens, np.tile(position, (len(tokens), 1)))
    np.testing.assert_allclose(found.nats[:-1], expected, rtol=1e-5)
    assert found.exact and found.summary()["bound"] == "exact"


@pytest.mark.parametrize(
  "array, words",
  [
    (np.arange(LENGTH - 1), r"shape \[1, 11\], must be \[12\] or"),
    (np.zeros(LENGTH, int), "permutation of 0..11"),
    (np.array(["a"] * LENGTH, dtype=object), "not an array of numbers"),
    (None, "No such file"),
  ],
)
def test_wrong_orders(tmp_path, array, words):
  path = tmp_path / "order.npy"
  if array is not None:
    np.save(path, array, allow_pickle=True)
  m, _ = model("set", evaluate__order=str(path))
  with pytest.raises(UserError, match=words):
    m.evaluator()


def test_an_interrupted_evaluation_goes_on(tmp_path):
  """Interrupted after any batch and continued in another batch size: the same rows."""
  m, _ = model("set", evaluate__draws=2)
  whole = m.evaluator().run(m.params).likelihood
  path = tmp_path / "out.json"
  smaller, _ = model("set", evaluate__draws=2, evaluate__batch_size=8)
  smaller = dataclasses.replace(smaller, params=m.params)
  done = []

  size = (len(whole.nats), SUMS)
  partial = PartialResults(path, {"a": 1}, *size)

  def interrupt(rows):
    partial.add(rows)
    done.append(len(rows))
    if len(done) == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    smaller.evaluator().run(m.params, interrupt)
  partial = PartialResults(path, {"a": 1}, *size)
  assert partial.found == sum(done) == 24
  # A kill in the middle of a line loses that row only.
  text = partial.path.read_text()
  for damage in ("", "[0, 1.0]\n", "[[0], 1.0]\n", '["0"]\n', "[99, 1, 1, 1, 1, 1]\n"):
    partial.path.write_text(text[: text.rindex("[")] + damage)
    assert PartialResults(path, {"a": 1}, *size).found == 23
  partial.path.write_text(text[:-5])
  partial = PartialResults(path, {"a": 1}, *size)
  assert partial.found == 23
  seen = []
  found = m.evaluator().run(m.params, seen.append, partial.rows).likelihood
  assert sum(map(len, seen)) == len(whole.nats) - 23
  np.testing.assert_allclose(found.nats, whole.nats, rtol=1e-6)
  np.testing.assert_allclose(found.mixed, whole.mixed, rtol=1e-6)
  with pytest.raises(UserError, match="holds another evaluation"):
    PartialResults(path, {"a": 2}, *size)
  partial.finish()
  assert not partial.path.exists()


def test_a_stride_gives_every_token_more_context():
  m, text = model("ar")
  plain = m.evaluator().run(m.params).likelihood
  m, _ = model("ar", evaluate__stride=3)
  found = m.evaluator().run(m.params).likelihood
  assert found.tokens.sum() == plain.tokens.sum() == len(text.encode()) + 1
  # Row by row: the last three tokens of a window given all before them.
  tokens = rows_of(m.evaluator().held_out)
  shorter = tokens.copy()[:, : LENGTH - 3]
  left = np.arange(LENGTH)
  whole = m.log_prob(tokens, np.tile(left, (len(tokens), 1)))
  given = m.log_prob(shorter, np.tile(left[:-3], (len(tokens), 1)))
  np.testing.assert_allclose(found.nats[1:-1], (given - whole)[1:], rtol=1e-4)


def test_the_clip_search_finds_the_range_of_least_variance():
  """Losses with a known spread at each level, against the best of every range."""
  rng = np.random.default_rng(0)
  level = rng.random(40_000)
  spread = 0.1 + np.abs(level - 0.6)
  loss = 2.0 + spread * rng.normal(size=level.size)
  tokens = np.ones_like(level)
  found = search_clip(SetLosses(level, loss, tokens), least_width=0.4)
  assert (found.t_min, found.t_max) == pytest.approx((0.4, 0.8))
  inside = (level >= 0.4) & (level <= 0.8)
  assert found.variance == pytest.approx((spread[inside] ** 2).mean(), rel=0.03)
  assert found.full_variance == pytest.approx((spread**2).mean(), rel=0.03)
  # Sets that are not there do not count; nor do ranges with too few samples.
  absent = np.concatenate([tokens, np.zeros(100)])
  more = np.concatenate([level, np.full(100, 0.6)])
  wild = np.concatenate([loss, 1e6 * rng.normal(size=100)])
  assert search_clip(SetLosses(more, wild, absent), 0.4) == found
  few = SetLosses(level[:20], loss[:20], tokens[:20])
  assert search_clip(few, 0.4) is None


def test_variance_on_a_range_is_that_of_levels_drawn_from_it():
  """Restricting the evaluation's own draws, against drawing from the range itself."""
  obj = tiny.objective(method__name="block", data__length=8, method__block_size=4)
  params = tiny.params(obj)
  batch = tiny.batch(rows=6000, length=8)
  keys = row_keys(stream_key(0, EVALUATE), 0, batch.row)
  low, high = 0.5, 0.9

  def losses(clip):
    order = obj.draw_order(batch, keys, False)
    noise = obj.draw_noise(batch, order, keys, keys, clip=clip)
    streams = obj.streams(batch, order, noise, False)
    return set_losses(streams, obj.nats(params, streams), noise.level, "nelbo")

  full = jax.device_get(jax.jit(losses)(jnp.array([0.0, 1.0])))
  drawn = jax.device_get(jax.jit(losses)(jnp.array([low, high])))
  there = full.tokens > 0
  assert there.sum() == 2 * 6000 and (full.tokens[there] == 4).all()
  inside = there & (full.level >= low) & (full.level <= high)
  expected = drawn.loss[drawn.tokens > 0].var()
  assert full.loss[inside].var() == pytest.approx(expected, rel=0.1)
  assert full.loss[there].var() > 1.5 * expected
