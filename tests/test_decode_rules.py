"""Samples of every commit rule against the distribution that it induces, enumerated."""

import dataclasses
import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.decode import Decoder, decode
from set_diffusion_jax.decode.speculate import accept, draw, replacement
from set_diffusion_jax.diffusion.order import (
  grid_sets,
  groups,
  position_offset,
  step_sets,
)
from tests import tiny
from tests.test_decode import begin, expected_logits, prepare

VALUES, LENGTH = 3, 4
TEXT = (1, *[-1] * (LENGTH - 1))
# Turns of the text positions; of posterior sampling also the steps that they fall in.
TURN = (0, 2, 1, 3)
STEPS = (0, 1, 1, 2)
MASK = VALUES + 2

FREE = {"stop_at_eos": False, "forbidden": tuple(range(VALUES, MASK))}
RULES = {
  "ar": ("ar", DecodeConfig(**FREE)),
  "ar, top-k": ("ar", DecodeConfig(top_k=2, temperature=0.8, **FREE)),
  "order": ("set", DecodeConfig("order", 1, **FREE)),
  "order, nucleus": ("set", DecodeConfig(top_p=0.8, temperature=2.5, **FREE)),
  "order, 2 a step": ("set", DecodeConfig("order", 2, **FREE)),
  "speculative, 2 drafts": ("set", DecodeConfig("order", 1, drafts=2, **FREE)),
  "speculative, 5 drafts": ("set", DecodeConfig("order", 1, drafts=5, **FREE)),
  "speculative, processors": (
    "set",
    DecodeConfig(drafts=2, temperature=1.3, top_k=2, repetition_penalty=2.0, **FREE),
  ),
  "confidence": ("set", DecodeConfig("confidence", 1, window=2, **FREE)),
  "confidence, 2 a step": ("set", DecodeConfig("confidence", 2, window=3, **FREE)),
  "margin": ("set", DecodeConfig("margin", 1, window=3, **FREE)),
  "threshold": ("set", DecodeConfig("confidence", 1, 0.5, window=3, **FREE)),
  "posterior": ("set", DecodeConfig("posterior", 2, **FREE)),
  "block": ("block", DecodeConfig("order", 1, **FREE)),
  "block, confidence": ("block", DecodeConfig("confidence", 1, **FREE)),
  "block, posterior": ("block", DecodeConfig("posterior", 1, **FREE)),
  "masked, confidence": ("masked", DecodeConfig("confidence", 1, **FREE)),
  "masked, 2 a step": ("masked", DecodeConfig("order", 2, **FREE)),
  "masked, posterior": ("masked", DecodeConfig("posterior", 1.5, **FREE)),
}


def decoder_of(name):
  method, options = RULES[name]
  block = {"method__block_size": 2} if method == "block" else {}
  obj = tiny.objective(
    vocab_size=MASK + 1, method__name=method, data__length=LENGTH, **block
  )
  return obj, options


QUICK = ("ar, top-k", "order, nucleus", "speculative, processors", "threshold")
QUICK = (*QUICK, "posterior", "block, posterior", "masked, posterior")
EVERY = [
  pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
  for name in RULES
]


ROWS, SEEDS = 4000, 5


@pytest.mark.parametrize("name", EVERY)
def test_samples_follow_the_rule(name):
  """Joint frequencies of all positions, under five models and five seeds, and one more.

  To the last model all tokens are alike: any two draws that share a key show. (There
  is no such model where only the likeliest are drawn: of equal ones all stay.)
  """
  obj, options = decoder_of(name)
  models = [tiny.params(obj, seed, scale=0.5) for seed in range(SEEDS)]
  if options.top_k is None:
    models.append(jax.tree.map(jnp.zeros_like, models[0]))
  for seed, params in enumerate(models):
    decoder, found = sampled(obj, options, params, seed)
    share = Enumeration(decoder, params).share
    assert share.sum() == pytest.approx(1, abs=1e-4)
    value, critical = chi_square(found, share)
    assert value < critical, f"seed {seed}"
    mixed = 0.85 * share + 0.15 * np.full_like(share, 1 / share.size)
    value, critical = chi_square(found, mixed)
    assert value > critical or seed == SEEDS


def sampled(obj, options, params, seed):
  """The decoder, and how often it generates each text."""
  task, widest = prepare(obj, [TEXT] * ROWS, LENGTH, seed)
  if obj.has_drawn_orders:
    order = np.argsort(TURN)
    posterior = options.commit == "posterior"
    rank = np.array(STEPS)[order] if posterior else range(LENGTH)
    both = (np.tile(np.asarray(x, np.int32), (ROWS, 1)) for x in (order, rank))
    task = task.replace(order=type(task.order)(*map(jnp.asarray, both)))
    widest = int(max(np.bincount(STEPS))) if posterior else 1
  decoder = Decoder(obj, options, widest)
  state = _run(decoder, params, begin(decoder, params, task))
  found = np.zeros([VALUES] * (LENGTH - 1))
  np.add.at(found, tuple(np.asarray(state.tokens).T[1:]), 1)
  return decoder, found


def chi_square(found, share):
  """The statistic, cells that are expected less than five times being one, and a bound.

  It is exceeded less than once in a thousand times.
  """
  expected = ROWS * share
  rare = expected < 5
  pooled = lambda x: np.append(x[~rare], x[rare].sum())
  mine, theirs = pooled(found), pooled(expected)
  full = theirs > 0
  assert (mine[~full] == 0).all()
  value = ((mine[full] - theirs[full]) ** 2 / theirs[full]).sum()
  degrees = full.sum() - 1
  return value, degrees + 4.5 * math.sqrt(2 * degrees)


_run = jax.jit(
  lambda decoder, params, state: decode(decoder, params, state, 100), static_argnums=0
)


class Enumeration:
  """The probability of each text [VALUES] * (LENGTH - 1) under a decoder's rule.

  A plain recursion over what can be committed; every probability is from a pass without
  a cache over all that is committed. Where the decoder draws a random order inside a
  set, all of them are enumerated.
  """

  def __init__(self, decoder, params):
    self.decoder, self.params, self.options = decoder, params, decoder.decode
    self.singles = decoder.objective.one_at_a_time
    method = decoder.objective.config.method.name
    self.sets = [0, 0, 1, 1] if method == "block" else [0] * LENGTH
    self.in_turn = self.singles and self.options.commit in ("order", "posterior")
    self.share = np.zeros([VALUES] * (LENGTH - 1))
    self.seen = {}
    turns = [TURN]
    if not self.singles and self.options.commit == "order":
      turns = list(itertools.permutations(range(LENGTH)))
    for turn in turns:
      self.go_on(((0, 1),), 1 / len(turns), turn, 0)

  def go_on(self, known, weight, turn, done):
    """Adds up what follows from (position, token) pairs in the order of their ranks."""
    missing = [p for p in range(LENGTH) if p not in dict(known)]
    if not missing:
      text = dict(known)
      self.share[tuple(text[p] for p in range(1, LENGTH))] += weight
      return
    places = self.candidates(missing, turn)
    shares = [self.probabilities(known, p) for p in places]
    for tokens in itertools.product(range(VALUES), repeat=len(places)):
      chance = weight * math.prod(s[1][t] for s, t in zip(shares, tokens, strict=True))
      if chance == 0:
        continue
      sure = [s[0][t] for s, t in zip(shares, tokens, strict=True)]
      margin = [np.sort(s[0])[-1] - np.sort(s[0])[-2] for s in shares]
      for chosen, odds in self.commits(places, sure, margin, turn, done):
        new = [(p, t) for p, t in zip(places, tokens, strict=True) if p in chosen]
        if self.in_turn:
          new.sort(key=lambda pair: turn[pair[0]])
        ended = not self.singles and set(chosen) == set(places)
        self.go_on((*known, *new), chance * odds, turn, 0 if ended else done + 1)

  def candidates(self, missing, turn):
    if not self.singles:
      current = min(self.sets[p] for p in missing)
      return [p for p in missing if self.sets[p] == current]
    if self.decoder.objective.one_stream:
      return missing[:1]
    if self.in_turn:
      return sorted(missing, key=turn.__getitem__)
    return [p for p in missing if p < missing[0] + self.options.window]

  def commits(self, places, sure, margin, turn, done):
    """(positions, probability) of what a step can commit of its candidates."""
    options = self.options
    if self.decoder.objective.one_stream or options.drafts:
      yield places[:1], 1  # speculative decoding must not differ from this
      return
    total = LENGTH - 1 if len(set(self.sets)) == 1 else LENGTH // 2
    steps = math.ceil(total / options.tokens_per_step)
    if options.commit == "posterior" and self.singles:
      first = min(STEPS[p] for p in places)
      yield [p for p in places if STEPS[p] == first], 1
    elif options.commit == "posterior":
      odds = 1 / max(steps - done, 1)
      for size in range(len(places) + 1):
        for chosen in itertools.combinations(places, size):
          yield chosen, odds**size * (1 - odds) ** (len(places) - size)
    else:
      t = [1 - i / steps for i in range(steps + 1)] + [0]
      count = round(t[done] * total) - round(t[done + 1] * total)
      score = {"order": [-turn[p] for p in places], "margin": margin}
      score = score.get(options.commit, sure)
      best = sorted(range(len(places)), key=lambda i: -score[i])[:count]
      over = [i for i in range(len(places)) if sure[i] >= (options.threshold or 2)]
      yield [places[i] for i in sorted({*best, *over})], 1

  def probabilities(self, known, place):
    """p(token | known) before and after truncation."""
    if (known, place) not in self.seen:
      logits = self.logits(known, place)
      plain = softmax(logits)
      scaled = softmax(logits / self.options.temperature)
      kept, likeliest = np.ones(VALUES, bool), np.argsort(-scaled)
      if self.options.top_k:
        kept[likeliest[self.options.top_k :]] = False
      if self.options.top_p:
        ahead = np.cumsum(scaled[likeliest]) - scaled[likeliest]
        kept[likeliest[ahead >= self.options.top_p]] = False
      truncated = np.where(kept, scaled, 0) / scaled[kept].sum()
      self.seen[known, place] = plain, truncated
    return self.seen[known, place]

  def logits(self, known, place):
    tokens, committed = np.full(LENGTH, MASK, np.int32), np.zeros(LENGTH, bool)
    rank = np.array(range(LENGTH) if self.singles else self.sets)
    for number, (position, token) in enumerate(known):
      tokens[position], committed[position] = token, True
      if self.singles:
        rank[position] = number
    row = {"committed": committed, "rank": rank, "tokens": tokens}
    row |= {"waiting": np.zeros(LENGTH, bool), "wanted": np.arange(LENGTH) > 0}
    state = types.SimpleNamespace(**{name: x[None] for name, x in row.items()})
    logits = expected_logits(self.decoder, self.params, state, 0, place)
    logits = np.array(logits, np.float64)[:VALUES]
    penalty = self.options.repetition_penalty
    occurs = np.isin(range(VALUES), [t for p, t in known if p < place])
    return np.where(
      occurs, np.where(logits > 0, logits / penalty, logits * penalty), logits
    )


def softmax(x):
  share = np.exp(x - x.max())
  return share / share.sum()


@pytest.mark.parametrize("drafts, penalty", [(1, 1.0), (3, 1.7)])
def test_speculation_changes_nothing_where_nothing_is_random(drafts, penalty):
  """The same tokens and ranks under any order, also with gaps; fewer steps."""
  obj = tiny.objective(method__name="any_order", data__length=10)
  params = tiny.params(obj)
  texts = [(1, -1, -1, 4, 5, -1, 7, 8), (2,) + (-1,) * 9, (-1,) * 10, (3, 1, -1)]
  options = DecodeConfig(temperature=0.0, repetition_penalty=penalty, stop_at_eos=False)
  task, _ = prepare(obj, texts, 10, seed=3)
  plain = Decoder(obj, options)
  fast = Decoder(obj, dataclasses.replace(options, drafts=drafts))
  slow = _run(plain, params, begin(plain, params, task))
  state = _run(fast, params, begin(fast, params, task))
  np.testing.assert_array_equal(state.tokens, slow.tokens)
  there = np.asarray(slow.committed)
  np.testing.assert_array_equal(
    np.where(there, state.rank, 0), np.where(there, slow.rank, 0)
  )
  np.testing.assert_allclose(state.confidence, slow.confidence, atol=2e-5)
  rounds = -(-np.asarray(task.wanted).sum(-1) // 2)  # a round commits two at least
  assert (np.asarray(state.steps) <= 2 * rounds).all()


def test_rejection_sampling_is_exact():
  """Drafts of q, accepted or replaced, follow p: for q equal, close, disjoint to p."""
  p = np.array([0.5, 0.3, 0.2, 0.0])
  rows = 20_000
  for q in (p, [0.2, 0.3, 0.5, 0.0], [0.0, 0.0, 0.1, 0.9], [0.0, 0.0, 0.0, 1.0]):
    p_all = jnp.tile(jnp.asarray(p, jnp.float32), (rows, 2, 1))
    q_all = jnp.tile(jnp.asarray(q, jnp.float32), (rows, 1, 1))
    keys = jax.random.split(jax.random.key(0), (3, rows))
    token = draw(keys[0], q_all)
    kept = accept(keys[1], p_all[:, :1], q_all, token)
    other = draw(keys[2], replacement(p_all, q_all, kept.sum(-1) * 0)[:, None])
    final = np.where(kept, token, other)[:, 0]
    found, expected = np.bincount(final, minlength=4), rows * p
    assert found[3] == 0
    assert ((found - expected)[:3] ** 2 / expected[:3]).sum() < 13.8  # 0.1%, 2 degrees
    overlap = np.minimum(p, q).sum()
    assert abs(float(kept.mean()) - overlap) < 0.02


def test_posterior_of_sets_reveals_as_the_schedule_says():
  """From t to s < t with probability (alpha_s - alpha_t) / (1 - alpha_t)."""
  obj = tiny.objective(method__name="set", data__length=6, method__max_set_size=3.0)
  schedule = position_offset(obj.config.method, 6)
  rows, steps = 20_000, 5
  there = jnp.ones((rows, 6), bool)
  group = groups(there, jnp.zeros_like(there))
  keys = jax.random.split(jax.random.key(1), rows)
  order = step_sets(schedule, steps, keys, group)
  finer = grid_sets(schedule, 10**6, keys, group)
  np.testing.assert_array_equal(order.position, finer.position)
  edge = jnp.broadcast_to(1 - jnp.arange(steps + 1)[:, None] / steps, (steps + 1, 6))
  alpha = np.asarray(schedule.alpha(edge))
  masked = np.ones((rows, 6), bool)
  times = np.zeros((rows, 6), int)  # the step of each position, from the draws
  draws = jax.vmap(lambda key: jax.random.exponential(key, (6,)))(keys)
  times = np.floor(np.asarray(schedule.reveal_time(draws)) * steps).astype(int)
  rank = np.take_along_axis(
    np.asarray(order.rank), np.argsort(np.asarray(order.position), -1), -1
  )
  same_set = rank[:, :, None] == rank[:, None]
  np.testing.assert_array_equal(same_set, times[:, :, None] == times[:, None])
  for step in range(steps):
    still = (masked & (times >= step)).sum(0)
    revealed = (times == step).sum(0)
    left = 1 - alpha[step]
    odds = np.where(
      left > 0, (alpha[step + 1] - alpha[step]) / np.maximum(left, 1e-9), 0
    )
    error = np.abs(revealed - still * odds)
    assert (error <= 4.5 * np.sqrt(still * odds * (1 - odds)) + 1e-3).all()
