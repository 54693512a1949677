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
from set_diffusion_jax.decode import Decoder, Task, decode, step
from set_diffusion_jax.decode.look import look
from set_diffusion_jax.decode.rules import between
from set_diffusion_jax.decode.slots import first_slots, line, places
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.diffusion.draws import DECODE, row_keys, split_rows, stream_key
from set_diffusion_jax.diffusion.index import TokenIndex
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
  "in turn": (
    "set",
    DecodeConfig("confidence", 1, 0.3, 4, candidates="order", **FREE),
  ),
  "drawn": ("set", DecodeConfig("confidence", 3, None, 4, fresh_order="drawn", **FREE)),
  "posterior": ("set", DecodeConfig("posterior", 2, **FREE)),
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


def setup(name, texts=None, length=LENGTH, **changes):
  obj = objective(name, length)
  task, widest = prepare(obj, texts or continuations(length=length), length)
  options = dataclasses.replace(METHODS[name][1], **changes)
  return Decoder(obj, options, widest), tiny.params(obj), task


def begin(decoder, params, task):
  return _begin(decoder, params, task, int(task.given.sum(-1).max()))


_begin = jax.jit(Decoder.start, static_argnums=(0, 3))
_step = jax.jit(
  lambda decoder, params, state: step(decoder, decoder.ready(params), state),
  static_argnums=0,
)
_run = jax.jit(decode, static_argnums=0)
_unfinished = jax.jit(Decoder.unfinished, static_argnums=0)


def steps(decoder, params, state):
  """The states of a plain Python loop, the first and the last included."""
  yield state
  while _unfinished(decoder, state).any():
    state = _step(decoder, params, state)
    yield state


_look = jax.jit(
  lambda decoder, params, state: look(decoder, decoder.ready(params), state)[1:],
  static_argnums=0,
)


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
  committed, rank, tokens, waiting, wanted = (
    np.asarray(x)[row]
    for x in (state.committed, state.rank, state.tokens, state.waiting, state.wanted)
  )
  if obj.one_stream:
    streams = [(list(range(position)), list(range(position)))]
  else:
    final, noisy = committed & ~waiting, [position]
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
  logits = np.asarray(uncached(obj, params, fed, index))[0]
  if obj.one_stream:
    return logits[position - 1]
  return logits[length + noisy.index(position)]


def check_step(decoder, params, before):
  """All logits of a step, each against a pass over what had been committed."""
  going = np.array(_unfinished(decoder, before))
  place, logits = map(np.asarray, _look(decoder, params, before))
  open_ = np.asarray(before.wanted) & ~np.asarray(before.committed)
  for b, column in np.ndindex(place.shape):
    position = int(place[b, column])
    wanted = position < LENGTH and open_[b, position] and going[b]
    if not wanted:
      continue
    expected = expected_logits(decoder, params, before, b, position).copy()
    expected[decoder.objective.mask_id] = -np.inf  # it is never generated
    np.testing.assert_allclose(logits[b, column], expected, atol=3e-5)


# The random orders below, and other tests, go through the others as well.
QUICK = (
  "ar",
  "order, 1.5 a step",
  "adaln",
  "block, qwen3",
  "masked, window",
  "general",
)
EVERY = [
  pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
  for name in METHODS
]


@pytest.mark.parametrize("name", EVERY)
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
  ("drawn", "passed"),
  ("in turn", "passed"),
  ("qwen3", "first"),
  ("block", "first"),
  ("masked", "first"),
  ("general, levels", "first"),
]


@pytest.mark.parametrize("name, promotion", GAPPED)
def test_infilling_is_exact_too(name, promotion):
  decoder, params, task = setup(name, GAPS, promotion=promotion)
  for state in steps(decoder, params, begin(decoder, params, task)):
    check_step(decoder, params, state)
  filled = np.asarray(state.tokens)
  for row, text in enumerate(GAPS):
    text = np.array(text)
    found = filled[row, : len(text)]
    np.testing.assert_array_equal(found[text >= 0], text[text >= 0])
    assert (found != decoder.objective.mask_id).all()


RANDOM = [
  ("order", {"tokens_per_step": 1.5}),
  ("any order", {"commit": "margin", "window": 3, "threshold": 0.4}),
  ("threshold", {"window": LENGTH, "promotion": "passed", "fresh_order": "drawn"}),
  ("in turn", {"window": 2, "promotion": "passed"}),
  ("general", {}),
  ("general, levels", {"tokens_per_step": 1.5}),
]


@pytest.mark.parametrize("name, changes", RANDOM)
def test_cached_equals_uncached_for_random_orders(name, changes):
  """Any permutation, cut into any sets; texts of any length with gaps anywhere."""
  rng = np.random.default_rng(0)
  texts = []
  for _ in range(12):
    text = rng.integers(0, VOCAB - 3, rng.integers(1, LENGTH + 1))
    text[rng.random(len(text)) < rng.uniform(0.3, 1)] = -1
    text[rng.integers(len(text))] = -1  # something is wanted
    texts.append(tuple(text.tolist()))
  decoder, params, task = setup(name, texts, **changes)
  position = np.argsort(rng.random(task.tokens.shape), -1)
  there = np.asarray(task.given | task.wanted)
  if not decoder.singletons:  # what is not there is in no set of what is
    late = ~np.take_along_axis(there, position, -1)
    position = np.take_along_axis(position, np.argsort(late, -1, kind="stable"), -1)
  starts = rng.random(position.shape) < 0.5
  starts |= np.arange(LENGTH) == there.sum(-1, keepdims=True)
  starts[:, 0] = False
  rank = np.broadcast_to(np.arange(LENGTH), position.shape)
  rank = rank if decoder.singletons else np.cumsum(starts, -1)
  order = type(task.order)(*(jnp.asarray(x, jnp.int32) for x in (position, rank)))
  widest = max(int(np.bincount(row).max()) for row in rank)
  decoder, task = dataclasses.replace(decoder, widest=widest), task.replace(order=order)
  for state in steps(decoder, params, begin(decoder, params, task)):
    check_step(decoder, params, state)
  assert (np.asarray(state.tokens)[there] != decoder.objective.mask_id).all()


LOOPED = "ar|threshold|block, posterior|masked, window"


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


@pytest.mark.parametrize("name", ["order", "threshold", "block", "masked", "general"])
def test_nothing_leaks_from_other_rows_padding_or_empty_slots(name):
  """Bit for bit: other texts beside it, other ids in padding, rubbish in the cache."""
  texts = [*GAPS, *continuations()]
  decoder, params, task = setup(name, texts)
  start = begin(decoder, params, task)
  clean = _run(decoder, params, start, 100)
  there = task.given | task.wanted
  padded = task.replace(tokens=jnp.where(there, task.tokens, 3))
  first = jnp.arange(len(texts))[:, None] == 0
  others = task.replace(tokens=jnp.where(first, task.tokens, (task.tokens + 1) % 8))
  rubbish = lambda x, empty: jnp.where(empty, 1e3, x)
  empty = ~start.cached[:, None]
  dirty = start
  if not decoder.single_set:
    layers = [
      (rubbish(k, empty[:, :, None]), rubbish(v, empty[..., None]))
      for k, v in start.layers
    ]
    dirty = start.replace(layers=layers)
  for state, rows in (
    (begin(decoder, params, padded), slice(None)),
    (begin(decoder, params, others), slice(0, 1)),
    (dirty, slice(None)),
  ):
    found = _run(decoder, params, state, 100)
    for value in ("tokens", "confidence", "steps"):
      np.testing.assert_array_equal(
        getattr(found, value)[rows], getattr(clean, value)[rows]
      )
    if rows == slice(0, 1):
      assert (found.tokens[1:] != clean.tokens[1:]).any()


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


_between = jax.jit(between)


def test_the_budget_is_spread_evenly():
  """round(t N) - round(t' N) tokens at step i of ceil(N / tokens_per_step)."""
  for total in range(1, 30):
    for each in (1.0, 1.5, 2.0, 3.7):
      count = math.ceil(total / each)
      t = [1 - i / count for i in range(count + 1)]
      expected = [round(a * total) - round(b * total) for a, b in itertools.pairwise(t)]
      done = jnp.arange(30)
      found = _between(jnp.full_like(done, total), done, jnp.full_like(done, count))
      found = np.asarray(found)[:count].tolist()
      assert sum(found) == total
      if count & (count - 1) == 0:  # where binary fractions are exact
        assert found == expected
      assert max(found) <= math.ceil(each)


@pytest.mark.parametrize("seed", range(5))
def test_slots_are_as_if_sorted(seed):
  rng = np.random.default_rng(seed)
  mask = rng.random((4, 9)) < [[0.0], [0.3], [0.7], [1.0]]
  turn = np.array([rng.permutation(9) for _ in range(4)], np.int32)
  score = rng.integers(0, 3, (4, 9)).astype(np.float32)
  for by in (None, turn):
    key = np.broadcast_to(np.arange(9), mask.shape) if by is None else by
    expected = [
      [i for i in np.argsort(k) if m[i]] for k, m in zip(key, mask, strict=True)
    ]
    where = line(jnp.asarray(mask), None if by is None else jnp.asarray(by))
    slots = first_slots(jnp.asarray(mask), None if by is None else jnp.asarray(by), 4)
    for row, positions in enumerate(expected):
      assert np.asarray(where)[row][positions].tolist() == [*range(len(positions))]
      padded = [*positions, 9, 9, 9, 9][:4]
      assert slots[row].tolist() == padded
  order = np.argsort(-score, axis=-1, kind="stable")
  found = np.asarray(places(jnp.asarray(score)))
  np.testing.assert_array_equal(np.take_along_axis(found, order, -1), [[*range(9)]] * 4)


def test_blocks_beyond_the_training_length():
  """Each complete block is read once; of those that were read the latest are held."""
  decoder, params, task = setup("block")
  obj = tiny.objective(
    method__name="block", method__block_size=2, data__length=6, vocab_size=VOCAB
  )
  rank = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32) // 2, task.tokens.shape)
  task = task.replace(order=task.order._replace(rank=rank))
  decoder = dataclasses.replace(decoder, objective=obj, widest=2)
  every = list(steps(decoder, params, begin(decoder, params, task)))
  np.testing.assert_array_equal(every[-1].steps, task.wanted.sum(-1))
  for state in every:
    held, read = np.asarray(state.cached), 2 * np.asarray(state.next_rank)
    assert (held.sum(-1) <= 6).all()
    for row, end in zip(held, read, strict=True):
      assert np.flatnonzero(row).tolist() == [*range(end - row.sum(), end)]
  assert (np.asarray(every[-1].tokens) != obj.mask_id).all()


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
