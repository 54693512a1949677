"""A method of one's own is a record and a sampler; nothing else knows its name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import data
from set_diffusion_jax.api import Model, load
from set_diffusion_jax.config import Config, DecodeConfig
from set_diffusion_jax.convert.published import published_config
from set_diffusion_jax.diffusion import order
from set_diffusion_jax.diffusion.method import METHODS, Method
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.figures import masks
from set_diffusion_jax.training.metrics import read_metrics
from set_diffusion_jax.training.train import train
from tests import tiny
from tests.decoding import SMALL

V, HELD_OUT = data.ByteTokenizer.vocabulary, "validation/nats_per_token"


def two_ended(method, length, keys, group):
  """The leftmost or the rightmost target that is left: a fair coin says which."""
  slots = group.shape[-1]
  left = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(slots,)))(keys)
  turn = jnp.broadcast_to(jnp.arange(slots), group.shape)
  before = jnp.cumsum(left, axis=-1) - left  # turns that went to the left
  target = (group == order.TARGET) | (group == order.LAST_TARGET)
  count = target.sum(-1, keepdims=True)
  nth = jnp.where(left, before, count - 1 - (turn - before))
  turn_of_nth = jnp.argsort(jnp.where(turn < count, nth, turn), axis=-1)
  which = jnp.maximum(jnp.cumsum(target, axis=-1) - 1, 0)
  time = jnp.where(target, jnp.take_along_axis(turn_of_nth, which, axis=-1), 0)
  return order.singletons(order.generation_order(time.astype(jnp.float32), group))


@pytest.fixture(scope="module", autouse=True)
def registered():
  record = Method(
    "two_ended",
    drawn=True,
    max_active=lambda method, length: 2,
    size=lambda method: "both ends",
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(METHODS, "two_ended", record)
    patch.setitem(order.SAMPLERS, "two_ended", two_ended)
    yield


@pytest.fixture(scope="module")
def model():
  obj = tiny.objective(V.size, method__name="two_ended", **SMALL)
  return Model(obj.config, tiny.params(obj), data.ByteTokenizer(), 0)


def test_it_trains_and_is_evaluated(tmp_path):
  """A run from text to a checkpoint that is read again."""
  settings = tiny.settings(
    method__name="two_ended",
    data__source="text",
    data__train_path=str(tiny.text_file(tmp_path)),
    train__steps=4,
    train__log_every=1,
    train__evaluate_every=4,
    train__checkpoint_every=4,
    **SMALL,
  )
  train(Config.from_dict(settings.to_dict()), tmp_path / "run")
  rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  assert len(losses) == 4 and losses[-1] < losses[0]
  (nats,) = [row[name] for row in rows for name in row if name == HELD_OUT]
  assert 0 < nats < np.log(V.size)
  assert load(tmp_path / "run").config.method.name == "two_ended"


def every_order(targets):
  """Each run of coins, and the order of 0 .. targets - 1 that it makes."""
  for coins in itertools.product((True, False), repeat=targets):
    left = list(range(targets))
    yield [left.pop(0 if coin else -1) for coin in coins]


def test_likelihood_against_all_orders(model):
  """Nats of a text under each drawn order, and their mean, the NELBO."""
  targets, rows = 4, 1000
  text = model.tokenizer.encode("time")
  tokens = np.concatenate([[V.bos], text]).astype(np.int32)[None]
  orders = [[0, *(1 + i for i in found)] for found in every_order(targets)]
  shape = (len(orders), 1 + targets)
  exact = -model.log_prob(np.broadcast_to(tokens, shape), np.array(orders))
  assert np.ptp(exact) > 1e-3, "orders must differ for the test to mean anything"
  nats = model.nelbo(np.broadcast_to(tokens, (rows, 1 + targets)))
  distance = np.abs(nats[:, None] - exact)
  np.testing.assert_allclose(distance.min(-1), 0, atol=1e-4)
  found = np.bincount(distance.argmin(-1), minlength=len(orders))
  names = sorted(set(map(tuple, orders)))
  drawn = np.zeros(len(names))
  np.add.at(drawn, [names.index(tuple(one)) for one in orders], found)
  expected = rows / len(names)
  assert len(names) == 8
  assert ((drawn - expected) ** 2 / expected).sum() < 24.3  # 0.1%, 7 degrees of freedom
  error = nats.std() / np.sqrt(rows)
  assert abs(nats.mean() - exact.mean()) < 4 * error


def test_it_generates_and_infills_from_both_ends(model):
  """Each step commits the first or the last position that is missing."""
  templates = model.templates(["It[MASK:4]was[MASK:5]t", "[MASK:9]", "a[MASK:6]"])
  generation = model.generation(templates, 1, DecodeConfig(stop_at_eos=False))
  missing = [set(np.flatnonzero(t == V.mask)) for t in templates]
  ends = [set() for _ in templates]
  for look in generation.run(every=1):
    for row, left in enumerate(missing):
      now = {place for place in left if not look.committed[row, place]}
      for place in left - now:
        assert place in (min(left), max(left)) and len(left - now) == 1
        ends[row].add(place == min(left))
      missing[row] = now
  assert not any(missing) and all(end == {True, False} for end in ends)
  for template, row in zip(templates, generation.results(), strict=True):
    given = template != V.mask
    np.testing.assert_array_equal(np.array(row["tokens"])[given], template[given])


def test_what_is_said_of_it(model):
  config = model.config
  assert masks.title(config) == "two_ended, both ends"
  assert config.method.max_active(100) == 2
  with pytest.raises(UserError, match=r"two_ended.*has no published counterpart"):
    published_config(config, V, "float32")
  with pytest.raises(UserError, match="two_ended has no noise schedule"):
    model.infill(["a[MASK]"], options=DecodeConfig(commit="posterior"))
  with pytest.raises(UserError, match='must be "all" for method two_ended'):
    tiny.config(method__name="two_ended", method__predict="active")


def test_a_record_of_something_unknown_is_refused():
  with pytest.raises(ValueError, match=r"sets = 'pairs': must be one of .*drawn"):
    Method("two_ended", sets="pairs")
