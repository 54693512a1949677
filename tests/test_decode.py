"""The cached, compiled decoder against forward passes without a cache."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.decode import Decoder, decode
from set_diffusion_jax.order import singletons
from set_diffusion_jax.rng import DECODE, row_keys, stream_key
from tests import tiny

LENGTH, VOCAB = 10, 12
METHODS = {
  "ar": ("ar", DecodeConfig()),
  "order": ("set", DecodeConfig("order", 1)),
  "order, 3 a step": ("set", DecodeConfig("order", 3)),
  "confidence": ("set", DecodeConfig("confidence", 1, window=4)),
  "confidence, 2 a step": ("set", DecodeConfig("confidence", 2, window=4)),
  "greedy": ("set", DecodeConfig("confidence", 2, window=3, temperature=0.0)),
}


def setup(name, prompts=((1, 2, 3), (4,), (5, 6, 7, 8, 0, 1)), length=LENGTH):
  method, options = METHODS[name]
  obj = tiny.objective(method__name=method, data__length=length, vocab_size=VOCAB)
  prompt = np.zeros((len(prompts), length), np.int32)
  given = np.zeros((len(prompts), length), bool)
  for i, row in enumerate(prompts):
    prompt[i, : len(row)], given[i, : len(row)] = row, True
  keys = row_keys(stream_key(0, DECODE), 0, jnp.arange(len(prompts)))
  arrays = jnp.asarray(prompt), jnp.asarray(given), keys
  return Decoder(obj, options), tiny.params(obj), *arrays, max(map(len, prompts)) - 1


@functools.partial(jax.jit, static_argnums=0)
def looked_at(decoder, params, state):
  """The logits that a step computes, and the text positions that they are for."""
  if decoder.objective.one_stream:
    place, fed = state.fresh + 1, state.fresh[:, :0]
  else:
    place = fed = decoder._candidates(state)
  h, _ = decoder._feed(params, state, state.fresh, fed)
  return place, decoder.objective.network.unembed(params, h)


@functools.partial(jax.jit, static_argnums=0)
def from_scratch(obj, params, tokens, position):
  """Logits of every target of one text under one order, without a cache."""
  batch = tiny.batch(rows=1, length=LENGTH)._replace(tokens=tokens[None])
  streams = tiny.streams(obj, batch, singletons(position[None]), False)
  h, _ = obj.network.hidden(params, streams.tokens, streams.index)
  return obj.network.unembed(params, h[:, -LENGTH:])[0]


def check_step(decoder, params, before):
  """All logits of a step, each against a pass over what had been committed."""
  place, logits = looked_at(decoder, params, before)
  for b, column in np.ndindex(place.shape):
    position = int(place[b, column])
    if position >= LENGTH or before.committed[b, position]:
      continue
    known = np.flatnonzero(before.committed[b])
    known = known[np.argsort(np.asarray(before.rank)[b, known])]
    rest = np.setdiff1d(np.arange(LENGTH), [*known, position])
    # The candidate comes right after all that is committed.
    order, slot = np.array([*known, position, *rest]), len(known)
    if decoder.objective.one_stream:
      order, slot = np.arange(LENGTH), position - 1
    tokens = jnp.where(before.committed[b], before.tokens[b], 0)
    order = jnp.asarray(order, jnp.int32)
    expected = from_scratch(decoder.objective, params, tokens, order)[slot]
    np.testing.assert_allclose(logits[b, column], expected, atol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_cached_equals_uncached(name):
  """Logits of every step against a forward pass over all committed tokens."""
  decoder, params, prompt, given, keys, prefill = setup(name)
  start = jax.jit(decoder.start, static_argnums=4)
  state = start(params, prompt, given, keys, prefill)
  step = jax.jit(decoder.step)
  while decoder.unfinished(state).any():
    check_step(decoder, params, state)
    state = step(params, state)
  np.testing.assert_array_equal(jnp.where(given, state.tokens, 0), prompt)
  assert decoder.objective.mask_id not in np.asarray(state.tokens)


@pytest.mark.parametrize("name", METHODS)
def test_while_loop_equals_python_loop_and_singles(name):
  decoder, params, prompt, given, keys, prefill = setup(name)
  run = jax.jit(decode, static_argnums=(0, 5))
  compiled = run(decoder, params, prompt, given, keys, prefill)
  start = jax.jit(decoder.start, static_argnums=4)
  state = start(params, prompt, given, keys, prefill)
  step = jax.jit(decoder.step)
  while decoder.unfinished(state).any():
    state = step(params, state)
  np.testing.assert_array_equal(compiled.tokens, state.tokens)
  np.testing.assert_array_equal(compiled.rank, state.rank)
  for i in range(len(prompt)):
    row = slice(i, i + 1)
    alone = run(decoder, params, prompt[row], given[row], keys[row], prefill)
    np.testing.assert_array_equal(alone.tokens, compiled.tokens[row])
    assert alone.steps[0] == compiled.steps[i]


def test_steps_and_ranks():
  decoder, params, prompt, given, keys, prefill = setup("order, 3 a step")
  run = jax.jit(decode, static_argnums=(0, 5))
  state = run(decoder, params, prompt, given, keys, prefill)
  missing = LENGTH - np.asarray(given).sum(-1)
  np.testing.assert_array_equal(state.steps, -(-missing // 3))
  np.testing.assert_array_equal(
    np.sort(state.rank, -1), np.tile(np.arange(LENGTH), (3, 1))
  )
  order = np.argsort(state.rank, -1)
  np.testing.assert_array_equal(np.argsort(order, -1), state.turn)


@pytest.mark.parametrize("name", ["ar", "order"])
def test_samples_follow_the_model(name):
  """One token a step: the model's own distribution, enumerated (chi-square)."""
  length, draws = 3, 3000
  method, options = METHODS[name]
  obj = tiny.objective(method__name=method, data__length=length, vocab_size=6)
  params = tiny.params(obj, scale=0.5)
  prompt = jnp.zeros((draws, length), jnp.int32).at[:, 0].set(1)
  given = jnp.zeros((draws, length), bool).at[:, 0].set(True)
  keys = row_keys(stream_key(0, DECODE), 0, jnp.arange(draws))
  decoder = Decoder(obj, options)
  state = jax.jit(decode, static_argnums=(0, 5))(
    decoder, params, prompt, given, keys, 0
  )

  values = np.array(list(itertools.product(range(5), repeat=2)))
  texts = np.concatenate([np.ones((25, 1), int), values], axis=1)

  def log_p(position):
    batch = tiny.batch(rows=25, length=length, vocab_size=6)
    batch = batch._replace(tokens=jnp.asarray(texts, jnp.int32))
    order = singletons(jnp.asarray([position] * 25, jnp.int32))
    streams = tiny.streams(obj, batch, order, False)
    nats = obj.nats(params, streams)
    if method == "ar":  # [MASK] is suppressed when sampling
      h, _ = obj.network.hidden(params, streams.tokens, streams.index)
      logits = obj.network.unembed(params, h).astype(jnp.float32)
      total = jax.nn.logsumexp(logits, axis=-1)
      nats = nats - total + jax.nn.logsumexp(logits[..., :-1], axis=-1)
      return -nats[:, :2].sum(-1)
    return -nats[:, 1:].sum(-1)

  # The share of each order is what the decoder drew: its policy is tested elsewhere.
  turn = np.asarray(state.turn)
  expected = np.zeros(25)
  for position in ([0, 1, 2], [0, 2, 1]):
    share = (np.argsort(turn, -1) == position).all(-1).mean()
    expected += share * np.exp(np.asarray(log_p(position)))
  assert expected.sum() == pytest.approx(1, abs=1e-4)
  found = np.bincount(
    np.asarray(state.tokens)[:, 1] * 5 + state.tokens[:, 2], minlength=25
  )

  def chi_square(p):
    return ((found - draws * p) ** 2 / (draws * p)).sum()

  critical = 51.2  # the 0.1% point of chi-square with 24 degrees of freedom
  assert chi_square(expected) < critical
  biased = 0.9 * expected + 0.1 / 25
  assert chi_square(biased) > critical
