"""Figures of likelihood: estimators against enumeration and their own definitions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.evaluate import Likelihood, mixture_nats
from set_diffusion_jax.order import singletons
from tests import tiny


def likelihood(nats, tokens, size=None):
  nats, tokens = np.asarray(nats, float), np.asarray(tokens, float)
  return Likelihood(nats, nats, tokens, tokens if size is None else size, 1, False)


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
