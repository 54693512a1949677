"""The cached, compiled decoder against forward passes without a cache."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.decode import Decoder, Task, decode
from set_diffusion_jax.decode.loop import _between, _first
from set_diffusion_jax.index import TokenIndex
from set_diffusion_jax.rng import DECODE, row_keys, split_rows, stream_key
from tests import tiny

LENGTH, VOCAB = 10, 12
FREE = {"stop_at_eos": False}
METHODS = {
  "ar": ("ar", DecodeConfig(**FREE)),
  "order": ("set", DecodeConfig("order", 1, **FREE)),
  "order, 3 a step": ("set", DecodeConfig("order", 3, **FREE)),
  "order, 1.5 a step": ("set", DecodeConfig("order", 1.5, **FREE)),
  "any order": ("any_order", DecodeConfig("order", 1, **FREE)),
  "confidence": ("set", DecodeConfig("confidence", 1, window=4, **FREE)),
  "confidence, 2 a step": ("set", DecodeConfig("confidence", 2, window=4, **FREE)),
  "margin": ("set", DecodeConfig("margin", 1, window=4, **FREE)),
  "threshold": ("set", DecodeConfig("confidence", 1, 0.3, window=4, **FREE)),
  "greedy": (
    "set",
    DecodeConfig("confidence", 2, window=3, temperature=0.0, **FREE),
  ),
  "qwen3": ("set", DecodeConfig("order", 2, **FREE)),
  "adaln": ("set", DecodeConfig("confidence", 1, window=4, **FREE)),
  "block": ("block", DecodeConfig("confidence", 1, **FREE)),
  "block, posterior": ("block", DecodeConfig("posterior", 1, **FREE)),
  "block, qwen3": ("block", DecodeConfig("order", 2, **FREE)),
  "masked": ("masked", DecodeConfig("confidence", 2, **FREE)),
  "masked, window": ("masked", DecodeConfig("order", 1, window=4, **FREE)),
  "general": ("general", DecodeConfig("order", 1, **FREE)),
  "general, levels": ("general, levels", DecodeConfig("confidence", 1, **FREE)),
}
QWEN3 = {"model__backbone": "qwen3", "model__kv_heads": 1, "model__tied": True}
MODELS = {
  "qwen3": QWEN3,
  "block, qwen3": QWEN3,
  "adaln": {"model__adaln": True},
}
PROMPTS = ((1, 2, 3), (4,), (5, 6, 7, 8, 0, 1))
# Gaps between given tokens, as (token or -1).
GAPS = ((1, -1, -1, 4, 5, -1, 7, 8), (-1, 2, -1, -1, -1, -1, -1, 3, 3, 3))


def objective(name, length=LENGTH, vocab_size=VOCAB):
  method = METHODS[name][0]
  changes = dict(MODELS.get(name, {}))
  if method == "general, levels":
    method, changes["method__noise"] = "general", "level"
  if method == "general":
    changes["method__grid"] = 4
  if method == "block":
    changes["method__block_size"] = 5 if length == LENGTH else length
  return tiny.objective(
    method__name=method, data__length=length, vocab_size=vocab_size, **changes
  )


def prepare(obj, texts, length=LENGTH, seed=0):
  """The task of texts with gaps (-1), and the widest set of the drawn orders."""
  tokens = np.full((len(texts), length), obj.mask_id, np.int32)
  there = np.zeros(tokens.shape, bool)
  for i, row in enumerate(texts):
    row = np.asarray(row)
    tokens[i, : len(row)] = np.where(row < 0, obj.mask_id, row)
    there[i, : len(row)] = True
  given = there & (tokens != obj.mask_id)
  keys = row_keys(stream_key(seed, DECODE), 0, jnp.arange(len(texts)))
  order_keys, keys = split_rows(keys)
  rows = jnp.arange(len(texts))
  batch = Batch(*map(jnp.asarray, (tokens, there, given)), rows)
  order = obj.draw_order(batch, order_keys, False)
  widest = max(int(np.bincount(row).max()) for row in np.asarray(order.rank))
  method = obj.config.method
  widest = {"block": method.block_size, "masked": length}.get(method.name, widest)
  widest = 1 if obj.one_at_a_time else widest
  task = Task(*map(jnp.asarray, (tokens, given, there & ~given)), order, keys)
  return task, widest


def continuations(prompts=PROMPTS, length=LENGTH):
  return [(*row, *[-1] * (length - len(row))) for row in prompts]


def setup(name, texts=None, length=LENGTH, late=0, **changes):
  obj = objective(name, length)
  task, widest = prepare(obj, texts or continuations(length=length), length)
  options = dataclasses.replace(METHODS[name][1], **changes)
  return Decoder(obj, options, widest, late), tiny.params(obj), task


def begin(decoder, params, task):
  return _begin(decoder, params, task, int(task.given.sum(-1).max()))


_begin = jax.jit(Decoder.start, static_argnums=(0, 3))
_step = jax.jit(Decoder.step, static_argnums=0)
_run = jax.jit(decode, static_argnums=0)


def steps(decoder, params, state):
  """The states of a plain Python loop, the first and the last included."""
  yield state
  while decoder.unfinished(state).any():
    state = _step(decoder, params, state)
    yield state


@functools.partial(jax.jit, static_argnums=0)
def looked_at(decoder, params, state):
  """The logits that a step computes, and the text positions that they are for."""
  fresh = _first(state.fresh, state.rank, decoder.fresh)
  if decoder.objective.one_stream:
    place, fed = fresh + 1, fresh[:, :0]
  else:
    place = fed = decoder._candidates(state)
  h, _ = decoder._feed(params, state, fresh, fed)
  return place, decoder.objective.network.unembed(params, h)


@functools.partial(jax.jit, static_argnums=0)
def uncached(obj, params, tokens, index):
  h, _ = obj.network.hidden(params, tokens, index)
  return obj.network.unembed(params, h)


def expected_logits(decoder, params, state, row, position):
  """Logits of one candidate from a single pass over all that it may see.

  The pass is laid out from the definition of the method: final tokens as a clean stream
  by rank, then the candidate's own set (or the candidate alone) as a noisy stream.
  """
  obj = decoder.objective
  length = state.tokens.shape[1]
  committed, rank, tokens, late, wanted = (
    np.asarray(x)[row]
    for x in (state.committed, state.rank, state.tokens, state.late, state.wanted)
  )
  if obj.one_stream:
    streams = [(list(range(position)), list(range(position)))]
  else:
    final, noisy = committed & ~late, [position]
    if not decoder.singletons:
      mine = (rank == rank[position]) & (wanted | committed)
      noisy = np.flatnonzero(mine).tolist()
      final &= rank < rank[position]
    if decoder.single_set:
      noisy = list(range(length))
    order = np.flatnonzero(final)
    clean = order[np.argsort(rank[order], kind="stable")].tolist()
    streams = [(clean, rank[clean].tolist()), (noisy, [10**6] * len(noisy))]
  fill = lambda x, by: [*x, *[by] * (length - len(x))]
  place = np.array([p for stream, _ in streams for p in fill(stream, 0)])
  ranks = np.array([r for _, stream in streams for r in fill(stream, 2 * 10**6)])
  valid = np.array([i < len(x) for x, _ in streams for i in range(length)])
  slots = (jnp.asarray(x[None], jnp.int32) for x in (place, ranks))
  index = TokenIndex(*slots, jnp.asarray(valid[None]), clean=length, reach=length)
  fed = jnp.asarray(tokens[place][None], jnp.int32)
  logits = uncached(obj, params, fed, index)[0]
  if obj.one_stream:
    return logits[position - 1]
  return logits[length + noisy.index(position)]


def check_step(decoder, params, before):
  """All logits of a step, each against a pass over what had been committed."""
  going = np.array(decoder.unfinished(before))
  if not decoder.singletons:
    before, waits = decoder._next_set(before)
    going &= ~np.asarray(waits)
  place, logits = looked_at(decoder, params, before)
  for b, column in np.ndindex(place.shape):
    position = int(place[b, column])
    wanted = position < LENGTH and before.wanted[b, position] and going[b]
    if not wanted or before.committed[b, position]:
      continue
    expected = expected_logits(decoder, params, before, b, position)
    np.testing.assert_allclose(logits[b, column], expected, atol=3e-5)


@pytest.mark.parametrize("name", METHODS)
def test_cached_equals_uncached(name):
  """Logits of every step against a forward pass over all committed tokens."""
  decoder, params, task = setup(name)
  for state in steps(decoder, params, begin(decoder, params, task)):
    check_step(decoder, params, state)
  kept = np.where(task.given, task.tokens, 0)
  np.testing.assert_array_equal(np.where(task.given, state.tokens, 0), kept)
  assert (np.asarray(state.tokens) != decoder.objective.mask_id).all()


GAPPED = [
  ("order", "first"),
  ("order", "passed"),
  ("confidence, 2 a step", "passed"),
  ("threshold", "passed"),
  ("qwen3", "first"),
  ("block", "first"),
  ("masked", "first"),
  ("general, levels", "first"),
]


@pytest.mark.parametrize("name, promotion", GAPPED)
def test_infilling_is_exact_too(name, promotion):
  late = LENGTH if promotion == "passed" else 0
  decoder, params, task = setup(name, GAPS, late=late, promotion=promotion)
  for state in steps(decoder, params, begin(decoder, params, task)):
    check_step(decoder, params, state)
  filled = np.asarray(state.tokens)
  for row, text in enumerate(GAPS):
    text = np.array(text)
    found = filled[row, : len(text)]
    np.testing.assert_array_equal(found[text >= 0], text[text >= 0])
    assert (found != decoder.objective.mask_id).all()


LOOPED = "ar|order, 3 a step|threshold|greedy|block, posterior|masked, window|general"


@pytest.mark.parametrize("name", LOOPED.split("|"))
def test_while_loop_equals_python_loop_and_singles(name):
  """Also where other rows have gaps, are shorter, or are padding altogether."""
  texts = continuations() if name == "ar" else [*continuations(), *GAPS]
  decoder, params, task = setup(name, texts)
  start = begin(decoder, params, task)
  compiled = _run(decoder, params, start, 100)
  *_, last = steps(decoder, params, start)
  np.testing.assert_array_equal(compiled.tokens, last.tokens)
  np.testing.assert_array_equal(compiled.rank, last.rank)
  for i in range(len(texts)):
    alone = jax.tree.map(lambda x, i=i: x[i : i + 1], task)
    single = _run(decoder, params, begin(decoder, params, alone), 100)
    np.testing.assert_array_equal(single.tokens[0], compiled.tokens[i])
    assert single.steps[0] == compiled.steps[i]


@pytest.mark.parametrize("name, each", [("order, 3 a step", 3), ("masked", 2)])
def test_steps_and_ranks(name, each):
  decoder, params, task = setup(name)
  state = _run(decoder, params, begin(decoder, params, task), 100)
  missing = np.asarray(task.wanted).sum(-1)
  np.testing.assert_array_equal(state.steps, -(-missing // each))
  if decoder.singletons:
    np.testing.assert_array_equal(
      np.sort(state.rank, -1), np.tile(np.arange(LENGTH), (len(missing), 1))
    )
    by_rank = np.argsort(np.argsort(state.rank, -1), -1)
    np.testing.assert_array_equal(by_rank, state.turn)


def test_a_threshold_takes_fewer_steps():
  slow, params, task = setup("confidence")
  fast, _, _ = setup("threshold")
  first = begin(slow, params, task)
  many = _run(slow, params, first, 100).steps.sum()
  few = _run(fast, params, begin(fast, params, task), 100).steps.sum()
  assert few < many


def test_the_budget_is_spread_evenly():
  """round(t N) - round(t' N) tokens at step i of ceil(N / tokens_per_step)."""
  for total in range(1, 30):
    for each in (1.0, 1.5, 2.0, 3.7):
      count = math.ceil(total / each)
      t = [1 - i / count for i in range(count + 1)]
      expected = [round(a * total) - round(b * total) for a, b in itertools.pairwise(t)]
      found = [
        int(_between(jnp.int32(total), jnp.int32(i), count)) for i in range(count)
      ]
      assert sum(found) == total
      if count & (count - 1) == 0:  # where binary fractions are exact
        assert found == expected
      assert max(found) <= math.ceil(each)


def test_text_beyond_the_training_length():
  """The oldest tokens are dropped: logits as if they had been masked out since then."""
  decoder, params, task = setup("order")
  obj = tiny.objective(method__name="set", data__length=6, vocab_size=VOCAB)
  decoder = dataclasses.replace(decoder, objective=obj)
  for state in steps(decoder, params, begin(decoder, params, task)):
    assert (np.asarray(state.cached).sum(-1) + decoder.fresh <= 6 + 1).all()
    held = np.asarray(state.cached)
    ranks = np.where(held, state.rank, 99)
    newest = np.where(state.fresh | ~np.asarray(state.committed), -1, state.rank).max(
      -1
    )
    for row in range(len(held)):  # what is left is the latest, without a hole
      kept = np.sort(ranks[row][held[row]])
      assert kept.tolist() == list(
        range(int(newest[row]) + 1 - len(kept), newest[row] + 1)
      )
  assert (np.asarray(state.tokens) != obj.mask_id).all()


@pytest.mark.parametrize("name", ["ar", "order", "block", "masked"])
def test_samples_follow_the_model(name):
  """One token a step: the distribution that the method defines, enumerated.

  Each next token is drawn given those before it, in the order that the decoder drew; in
  a block or a masked text that order is random, and the others are seen as masks.
  """
  length, draws, values = 3, 4000, 5
  obj = objective(name, length, vocab_size=values + 1)
  params = tiny.params(obj, scale=0.5)
  task, widest = prepare(obj, [(1, -1, -1)] * draws, length)
  options = DecodeConfig("order", 1, stop_at_eos=False)
  decoder = Decoder(obj, options, widest)
  state = _run(decoder, params, begin(decoder, params, task), 100)

  def after(known):
    """p(token at each missing position | the known ones), {position: [values]}."""
    tokens = np.full((1, length), obj.mask_id, np.int32)
    given = np.zeros((1, length), bool)
    for position, token in known.items():
      tokens[0, position], given[0, position] = token, True
    one = jax.tree.map(lambda x: x[:1], task)
    one = one.replace(
      tokens=jnp.asarray(tokens), given=jnp.asarray(given), wanted=jnp.asarray(~given)
    )
    place, logits = looked_at(decoder, params, _begin(decoder, params, one, 2))
    shares = jax.nn.softmax(logits[0, :, :values].astype(jnp.float32), axis=-1)
    return {
      int(p): np.asarray(share)
      for p, share in zip(place[0], shares, strict=True)
      if p < length and not given[0, int(p)]
    }

  shares = np.zeros((values, values))
  turn = np.asarray(state.turn)
  early = (turn[:, 1] < turn[:, 2]).mean()
  for first, second, share in ((1, 2, early), (2, 1, 1 - early)):
    if share == 0:
      continue
    turns = np.array([[0, 1, 2] if first == 1 else [0, 2, 1]])
    if obj.one_at_a_time and not obj.one_stream:
      row = int((np.argsort(turn, -1) == turns).all(-1).argmax())
      task = jax.tree.map(lambda x, row=row: jnp.roll(x, -row, axis=0), task)
    ahead = after({0: 1})[first]
    for a in range(values):
      then = after({0: 1, first: a})[second]
      for b in range(values):
        cell = (a, b) if first == 1 else (b, a)
        shares[cell] += share * ahead[a] * then[b]
  assert shares.sum() == pytest.approx(1, abs=1e-4)
  tokens = np.asarray(state.tokens)
  found = np.zeros((values, values))
  np.add.at(found, (tokens[:, 1], tokens[:, 2]), 1)

  def chi_square(p):
    return ((found - draws * p) ** 2 / (draws * p)).sum()

  critical = 51.2  # the 0.1% point of chi-square with 24 degrees of freedom
  assert chi_square(shares) < critical
  assert chi_square(0.85 * shares + 0.15 / values**2) > critical


def test_posterior_sampling_reveals_as_the_schedule_says():
  """With the linear schedule on n steps each token is revealed at a uniform step."""
  obj = tiny.objective(method__name="masked", data__length=4, vocab_size=VOCAB)
  draws = 3000
  task, widest = prepare(obj, [(-1, -1, -1, -1)] * draws, 4)
  decoder = Decoder(obj, DecodeConfig("posterior", 1, stop_at_eos=False), widest)
  params = tiny.params(obj)
  when = np.full((draws, 4), -1)
  states = list(steps(decoder, params, begin(decoder, params, task)))
  for i, (before, after) in enumerate(itertools.pairwise(states)):
    when[np.asarray(after.committed & ~before.committed)] = i
  assert (np.bincount(when.ravel(), minlength=4) > 0).all() and when.max() == 3
  found = np.bincount(when.ravel(), minlength=4)
  expected = draws * 4 / 4
  assert ((found - expected) ** 2 / expected).sum() < 16.3  # 0.1%, 3 degrees
