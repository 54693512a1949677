"""Speculative decoding through `Generation`: the text of one token a step, sooner."""

import dataclasses

import pytest

from tests.decoding import GREEDY, mixed, model, tokens

LENGTHS = (24, 40, 64, 100, 128)


def texts(length):
  """Of all lengths up to that of training, continued and with gaps."""
  gaps = mixed(length, length - 1, 5)
  return [*gaps, *mixed(length, length // 2 + 1, 7, gaps=False, seed=1)]


def generate(length, **options):
  """Under a uniform order a penalty counts the drafts before a position like text."""
  if length == 40:
    options["repetition_penalty"] = 1.7
  chosen = model("any_order" if length == 40 else "set", length)
  options = dataclasses.replace(GREEDY, **options)
  return chosen.generation(texts(length), 3, options).finish()


@pytest.fixture(scope="module")
def plain():
  """What one token a step generates, for each training length that is asked for."""
  found = {}

  def of(length):
    if length not in found:
      found[length] = generate(length)
    return found[length]

  return of


@pytest.mark.parametrize("drafts", range(1, 9))
@pytest.mark.parametrize("length", LENGTHS)
def test_speculation_generates_what_one_token_a_step_does(plain, length, drafts):
  """Token for token where nothing is random, whatever the training length."""
  fast, slow = generate(length, drafts=drafts), plain(length)
  assert tokens(fast) == tokens(slow)
  for ours, theirs in zip(fast, slow, strict=True):
    # A round of two passes commits at least two tokens, where there are so many.
    assert ours["steps"] <= 2 * -(-theirs["steps"] // 2)
