"""A text does not depend on what else is in its batch: N together equal N alone."""

import numpy as np
import pytest

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.diffusion.draws import TRAIN, stream_key, training_keys
from tests import tiny
from tests.decoding import VOCAB, mixed, model, tokens

LENGTH = 24
FREE = {"stop_at_eos": False}
RULES = {
  "order": ("set", DecodeConfig("order", 2, **FREE)),
  "confidence": ("set", DecodeConfig("confidence", 1, **FREE)),
  "threshold": ("set", DecodeConfig("margin", 1, 0.3, **FREE)),
  "posterior": ("set", DecodeConfig("posterior", 3, **FREE)),
  "any order": ("any_order", DecodeConfig("confidence", 2, **FREE)),
  "any order, posterior": ("any_order", DecodeConfig("posterior", 3, **FREE)),
  "speculative": ("set", DecodeConfig("order", 1, drafts=3, **FREE)),
  "block": ("block", DecodeConfig("order", 1.5, **FREE)),
  "block, posterior": ("block", DecodeConfig("posterior", 2, **FREE)),
  "masked": ("masked", DecodeConfig("order", 2, **FREE)),
  "masked, posterior": ("masked", DecodeConfig("posterior", 2, **FREE)),
  "general": ("general", DecodeConfig(**FREE)),
  "general, levels": ("general", DecodeConfig("posterior", 2, **FREE)),
  "ar": ("ar", DecodeConfig(**FREE)),
}
CHANGES = {
  "block": {"method__block_size": 6},
  "general, levels": {"method__noise": "level"},
}


@pytest.mark.parametrize("name", RULES)
def test_together_equal_alone(name):
  """Texts shorter than in training, as long, and, where a method can, much longer."""
  method, options = RULES[name]
  changes = CHANGES.get(name, CHANGES.get(method, {}))
  one = model(method, LENGTH, **changes)
  longer = (70, 150) if method in ("set", "any_order", "block", "ar") else ()
  longer = () if options.drafts else longer
  texts = mixed(7, LENGTH, 23, *longer, 11, gaps=method != "ar")
  together = tokens(one.generation(texts, 3, options).finish())
  for i, text in enumerate(texts):
    alone = one.generation([text], 3, options, first_row=i).finish()
    assert tokens(alone) == [together[i]], f"text {i}"
  other = tokens(one.generation(texts, 4, options).finish())
  assert other != together


def compare(mine, theirs):
  """That two samples of the same size have one mean, within four standard errors."""
  error = np.hypot(mine.std(), theirs.std()) / np.sqrt(len(mine))
  assert abs(mine.mean() - theirs.mean()) <= 4 * error


@pytest.mark.parametrize("method", ["set", "any_order", "general"])
def test_orders_are_those_of_training(method):
  """Generated texts as long as those of training have its sets, whatever the bucket."""
  rows, length = 400, 40  # not a multiple of what texts are padded to
  one = model(method, length, **({"method__grid": 16} if method == "general" else {}))
  options = DecodeConfig(**FREE)
  texts = [np.full(length, one.objective.mask_id, np.int32)] * rows
  state = one.generation(texts, 0, options).state
  batch = tiny.batch(rows, length, VOCAB)
  keys = training_keys(stream_key(1, TRAIN), 0, batch.row)
  order = one.objective.draw_order(batch, keys.order, True)
  mine = np.asarray(state.interval).max(-1) + 1
  theirs = np.asarray(order.rank).max(-1) + 1
  compare(mine, theirs)
  # How far from their place in the text positions are generated.
  if method != "general":  # whose turns inside a set are drawn anew
    far = lambda turn: np.abs(turn - np.arange(length)).mean(-1)
    compare(far(np.asarray(state.turn)), far(np.argsort(order.position, -1)))


def test_a_short_gap_beside_a_long_one():
  """A gap of 110 tokens beside one of 500: its tokens are those that it has alone."""
  one = model("set", 128)
  short, long = mixed(120, 510)
  together = tokens(one.generation([short, long], 1, RULES["order"][1]).finish())
  alone = tokens(one.generation([short], 1, RULES["order"][1]).finish())
  assert together[:1] == alone


def test_a_last_block_that_arrays_cut_when_alone():
  """It has 4 positions in arrays of 64 and 6 in longer ones: 4 are of the text."""
  one = model("block", LENGTH, method__block_size=6)
  options = DecodeConfig("order", 1.5, **FREE)
  short, long = (np.full(n, one.objective.mask_id, np.int32) for n in (64, 70))
  short[:58] = long[:58] = np.arange(58) % 7
  together = tokens(one.generation([short, long], 1, options).finish())
  alone = tokens(one.generation([short], 1, options).finish())
  assert together[:1] == alone
