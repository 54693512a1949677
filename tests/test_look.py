"""The two halves of a decoding step, used by hand: look, and commit."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.decode import Decoder, decode, step
from set_diffusion_jax.decode.choose import choose
from set_diffusion_jax.decode.commit import commit
from set_diffusion_jax.decode.look import look
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.diffusion.draws import decoding_keys
from set_diffusion_jax.diffusion.index import noisy_stream
from set_diffusion_jax.diffusion.order import one_set
from set_diffusion_jax.likelihood.loss import PIECE_ELEMENTS
from tests import tiny
from tests.test_decode import (
  GAPS,
  LENGTH,
  VOCAB,
  begin,
  continuations,
  prepare,
  setup,
  steps,
)

TEXTS = [*continuations(), *GAPS]


@pytest.mark.parametrize("name", ["order", "any order", "general"])
def test_a_forced_text_has_its_likelihood(name):
  """Whatever is committed by hand, under any order: as one pass over the whole text."""
  decoder, params, task = setup(name, TEXTS)
  obj, there = decoder.objective, task.given | task.wanted
  rng = np.random.default_rng(0)
  text = jnp.asarray(rng.integers(0, 8, there.shape), jnp.int32)
  text = jnp.where(task.given, task.tokens, text)

  @jax.jit
  def force(state):
    state, place, logits = look(decoder, decoder.ready(params), state)
    at = jnp.minimum(place, LENGTH - 1)
    token = jnp.take_along_axis(text, at, axis=-1)
    missing = state.wanted & ~state.committed
    open_ = jnp.take_along_axis(missing, at, axis=-1) & (place < LENGTH)
    log_p = jax.nn.log_softmax(logits)
    log_p = jnp.take_along_axis(log_p, token[..., None], axis=-1)[..., 0]
    nats = -jnp.where(open_, log_p, 0).sum(-1)
    return commit(decoder, state, place, token, jnp.exp(log_p), open_), nats

  state, total = begin(decoder, params, task), 0.0
  while (state.wanted & ~state.committed).any():
    state, nats = force(state)
    total += nats
  np.testing.assert_array_equal(jnp.where(there, state.tokens, 0), text * there)
  batch = Batch(text, there, task.given, jnp.arange(len(text)))
  streams = tiny.streams(obj, batch, task.order, False)
  each = tiny.nats(obj, params, streams)
  expected = jnp.where(streams.counted, each, 0).sum(-1)
  np.testing.assert_allclose(total, expected, rtol=1e-5)


MASKED = {
  "whole text": DecodeConfig("confidence", 2, stop_at_eos=False),
  "order": DecodeConfig("order", 1.5, window=4, stop_at_eos=False),
  "confidence": DecodeConfig("confidence", 2, 0.3, window=3, stop_at_eos=False),
  "margin": DecodeConfig("margin", 1, window=4, aligned=True, stop_at_eos=False),
  "posterior": DecodeConfig("posterior", 2, window=4, stop_at_eos=False),
  "processors": DecodeConfig(
    window=5, repetition_penalty=1.5, top_k=3, minimum_length=4, forbidden=(1,)
  ),
}


def masked(options, texts=TEXTS, length=LENGTH, vocab_size=VOCAB):
  obj = tiny.objective(vocab_size, method__name="masked", data__length=length)
  task, widest = prepare(obj, texts, length)
  return Decoder(obj, options, widest), tiny.params(obj), task


def first_window(options, wanted, committed) -> list[int]:
  """The open positions of the first window that is not complete."""
  open_ = np.flatnonzero(wanted & ~committed).tolist()
  if options.window is None:
    return open_
  start = 0 if options.aligned else int(wanted.argmax())
  number = lambda i: (i - start) // options.window
  return [i for i in open_ if number(i) == number(open_[0])]


def commitments(options, state, row, candidates, found) -> list[int]:
  """Which candidates the rule commits, from what was chosen at every position."""
  _, confidence, margin, uniform = (x[row] for x in found)
  total = options.window or int(state.wanted[row].sum())
  each, done = options.tokens_per_step, int(state.since[row])
  count = math.ceil(total / each)
  if options.commit == "posterior":
    return [i for i in candidates if uniform[i] * max(count - done, 1) < 1]
  left = [round(Fraction(total * (count - i), count)) for i in (done, done + 1)]
  best = left[0] - left[1] if done < count else math.ceil(each)
  score = {"order": -state.turn[row], "margin": margin}.get(options.commit, confidence)
  ranked = sorted(candidates, key=lambda i: -score[i])
  sure = [i for i in candidates if confidence[i] >= (options.threshold or 2)]
  return sorted({*ranked[:best], *sure})


@pytest.mark.parametrize("name", MASKED)
def test_masked_steps_equal_those_with_every_logit(name):
  """Candidates, tokens and commitments, from all positions of the text unembedded."""
  options = MASKED[name]
  decoder, params, task = masked(options)
  network = decoder.objective.network
  place = jnp.broadcast_to(jnp.arange(LENGTH), task.tokens.shape)
  index = noisy_stream(one_set(*place.shape), place >= 0, LENGTH)

  @jax.jit
  def with_every_logit(state):
    keys = decoding_keys(state.key, state.steps)
    h, _ = network.hidden(params, state.tokens, index)
    logits = decoder.logits(params, state, h, place)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (LENGTH,)))
    return *choose(options, logits, place, keys.token), draw(keys.reveal)

  every = list(steps(decoder, params, begin(decoder, params, task)))
  on_host = lambda state: jax.device_get(state.replace(key=None))
  for before, after in itertools.pairwise(every):
    going = np.asarray(decoder.unfinished(before))
    state, after = on_host(before), on_host(after)
    found = [np.asarray(x) for x in with_every_logit(before)]
    for row in range(len(TEXTS)):
      new = []
      if going[row]:
        missing = first_window(options, state.wanted[row], state.committed[row])
        new = commitments(options, state, row, missing, found)
      written = np.flatnonzero(after.committed[row] & ~state.committed[row])
      assert written.tolist() == new
      np.testing.assert_array_equal(after.tokens[row][new], found[0][row][new])
      np.testing.assert_allclose(after.confidence[row][new], found[1][row][new], 1e-5)


@pytest.mark.parametrize("name, changes", [("masked", {}), ("order", {"drafts": 4})])
def test_pieces_change_nothing(name, changes, monkeypatch):
  """Also where the last piece is smaller, and candidates see different texts."""
  changes |= {"repetition_penalty": 1.5, "top_p": 0.9}
  decoder, params, task = setup(name, TEXTS, **changes)
  start = begin(decoder, params, task)
  run = lambda: jax.jit(lambda params, state: decode(decoder, params, state, 100))
  whole = run()(params, start)
  monkeypatch.setitem(PIECE_ELEMENTS, "cpu", 3 * len(TEXTS) * VOCAB)
  pieces = run()(params, start)
  sizes = set()
  take = lambda logits, place: sizes.add(logits.shape[1]) or place
  jax.eval_shape(lambda x: look(decoder, decoder.ready(params), x, take), start)
  assert sizes == {1}  # slot by slot, so many at a time
  for field in ("tokens", "rank", "steps"):
    np.testing.assert_array_equal(getattr(pieces, field), getattr(whole, field))
  np.testing.assert_allclose(pieces.confidence, whole.confidence, rtol=1e-5)


@pytest.mark.parametrize("window", [4, None])
def test_a_masked_step_never_holds_every_logit(window, monkeypatch):
  """Of a window its own logits; of the whole text, those of a piece."""
  rows, length, vocab_size = 4, 64, 2048
  monkeypatch.setitem(PIECE_ELEMENTS, "cpu", rows * vocab_size * 4)
  options = DecodeConfig("confidence", 1, window=window)
  texts = [(1, *[-1] * (length - 1))] * rows
  decoder, params, task = masked(options, texts, length, vocab_size)
  state = begin(decoder, params, task)
  compiled = jax.jit(lambda params, state: step(decoder, params, state))
  found = compiled.lower(params, state).compile().memory_analysis()
  assert found.temp_size_in_bytes < 4 * rows * length * vocab_size
