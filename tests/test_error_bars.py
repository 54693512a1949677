"""Standard errors of likelihoods, and figures by token beside sums by row."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.diffusion.draws import EVALUATE, row_keys, split_rows, stream_key
from set_diffusion_jax.evaluate import Likelihood, detail, draw_variance
from tests.test_counts import LENGTH, likelihood, model, text


@pytest.mark.parametrize(
  "method, levels, draws",
  [
    ("set", None, 5),
    ("masked", "counts", 2),
    ("masked", "counts", 5),
    ("block", "counts", 8),
    ("general", "counts", 4),
    ("masked", "uniform", 5),
    ("block", "uniform", 8),
  ],
)
def test_the_error_of_the_draws_is_their_spread(method, levels, draws):
  """Many evaluations of one text: the error that each states, and their spread.

  Where draws are independent and alike the two are equal; by counts the stated one may
  be larger; by levels its heavy tail allows no more than that bound.
  """
  m = model(method, evaluate__levels=levels, evaluate__draws=draws)
  several = np.tile(text(), (3000, 1))
  found = likelihood(m, several)
  spread, stated = found.nats.var(ddof=1), found.draw_variance.mean()
  print(f"{method} {levels}, {draws} draws: variance {spread:.4f}, stated {stated:.4f}")
  if method == "set":
    assert stated == pytest.approx(spread, rel=0.1)
  else:
    assert stated > 0.9 * spread
  if levels == "counts":
    assert stated < 1.6 * spread
  # All sequences are the same text: the error is that of the draws.
  parts = found.standard_error_parts
  assert parts["texts"] < 0.5 * parts["draws"]
  if method == "set":
    assert parts["draws"] == pytest.approx(found.standard_error, rel=0.05)


def test_the_variance_of_independent_draws():
  """Unbiased for any number of them, against numbers whose variance is known."""
  rng = np.random.default_rng(0)
  scale = np.array([0.5, 2.0])
  for count in (2, 3, 4, 7):
    drawn = rng.normal(5, 1, (count, 40_000)) * np.repeat(scale, 20_000)
    found = np.asarray(draw_variance(jnp.asarray(drawn, jnp.float32)))
    by_scale = found.reshape(2, -1).mean(-1)
    np.testing.assert_allclose(by_scale, scale**2 / count, rtol=0.05)
  assert (np.asarray(draw_variance(jnp.ones((1, 3)))) == 0).all()


def test_the_parts_of_an_error():
  """Texts that differ by 0.3 a token, and draws that differ by 0.2 a token."""
  rng = np.random.default_rng(0)
  n, tokens, draws = 4000, 20.0, 4
  of_text = tokens * rng.normal(2, 0.3, n)
  drawn = of_text + tokens * rng.normal(0, 0.2, (draws, n))
  nats = drawn.mean(0)
  variance = np.asarray(draw_variance(jnp.asarray(drawn, jnp.float32)))
  every = np.full(n, tokens)
  found = Likelihood(nats, nats, every, 2 * every, variance, draws, False)
  parts, figures = found.standard_error_parts, found.summary()
  assert parts["draws"] == pytest.approx(0.2 / math.sqrt(draws * n), rel=0.05)
  assert parts["texts"] == pytest.approx(0.3 / math.sqrt(n), rel=0.05)
  for name in ("nats_per_token", "perplexity", "bits_per_byte"):
    whole = figures[f"{name}_standard_error"]
    both = [figures[f"{name}_standard_error_{part}"] for part in ("texts", "draws")]
    assert math.hypot(*both) == pytest.approx(whole)
  single = Likelihood(nats, nats, every, every, variance, 1, False)
  assert not [name for name in single.summary() if name.endswith(("texts", "_draws"))]


@pytest.mark.parametrize("method", ["ar", "set", "block"])
def test_tokens_add_up_to_rows(method):
  m = model(method, evaluate__draws=3)
  tokens = np.random.default_rng(0).integers(0, 9, (5, LENGTH)).astype(np.int32)
  rows = {}
  likelihood(m, tokens, "token", rows.update)
  for row in rows.values():
    found = detail(row)
    assert found.number.tolist() == list(range(1, LENGTH))
    assert (found.tokens == 1).all()
    np.testing.assert_allclose(found.nats.sum(), row[0], rtol=1e-5)


def test_nats_of_a_token_are_those_of_a_longer_text():
  """Autoregression: what a text costs more than the same one without its last token."""
  m, rows = model("ar"), {}
  tokens = np.tile(text(), (2, 1))
  likelihood(m, tokens, "token", rows.update)
  nats = dict(zip(*detail(rows[0])[:2], strict=True))
  for end in range(2, LENGTH + 1):
    shorter = m.nelbo(tokens[:1, : end - 1])[0] if end > 2 else 0.0
    more = m.nelbo(tokens[:1, :end])[0] - shorter
    assert nats[end - 1] == pytest.approx(more, rel=1e-4)


@pytest.mark.parametrize("method", ["ar", "set", "block", "general"])
def test_ranks_add_up_to_rows(method):
  m, rows = model(method, evaluate__draws=4), {}
  likelihood(m, np.tile(text(), (3, 1)), "rank", rows.update)
  for row in rows.values():
    found = detail(row)
    np.testing.assert_allclose(found.nats.sum(), row[0], rtol=1e-5)
    assert found.tokens.sum() == pytest.approx(LENGTH - 1)
    if method == "block":  # BOS, in the first block, does not count
      assert found.tokens.tolist() == [2, 3]
    if method in ("ar", "set"):
      assert found.number.tolist() == list(range(1, LENGTH))


@pytest.mark.parametrize("method", ["ar", "any_order", "set", "general"])
def test_nats_by_rank_are_those_of_the_positions_in_a_set(method):
  """One draw, whose order is drawn here again."""
  m, by = model(method, evaluate__draws=1, method__noise="full"), {}
  tokens = np.tile(text(), (5, 1))
  for name in ("token", "rank"):
    by[name] = {}
    likelihood(m, tokens, name, by[name].update)
  every = np.arange(LENGTH) >= 0
  batch = Batch(tokens, *np.broadcast_to([[every], [~every]], (2, 5, LENGTH)), range(5))
  batch = Batch(*map(jnp.asarray, batch))
  batch = batch._replace(context=batch.context.at[:, 0].set(True))
  keys = row_keys(stream_key(m.config.evaluate.seed, EVALUATE), 0, batch.row)
  order = m.objective.draw_order(batch, split_rows(keys)[0], False)
  for row in range(5):
    nats = np.zeros(LENGTH)
    at, ranks = detail(by["token"][row]), detail(by["rank"][row])
    nats[at.number] = at.nats
    for rank, found, count in zip(*ranks, strict=True):
      members = np.asarray(order.position[row])[np.asarray(order.rank[row]) == rank]
      members = members[members > 0]
      assert len(members) == count
      assert found == pytest.approx(nats[members].sum(), rel=1e-5)
