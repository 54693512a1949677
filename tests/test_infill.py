"""Infilling never changes nor drops what was given, whatever is asked for besides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import data
from set_diffusion_jax.api import Model
from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.decode import Stops
from tests import tiny
from tests.decoding import SMALL

LENGTH, V = 48, data.ByteTokenizer.vocabulary
LETTERS = "abcdefgh"
# Only ASCII and EOS, so that every token is a character.
ASCII = tuple(i for i in range(128, V.size) if i != V.eos)
OPTIONS = DecodeConfig(
  forbidden=ASCII,
  repetition_penalty=1.3,
  repetition_context="both",
  length_penalty=1.05,
  minimum_length=2,
)
METHODS = {
  "any_order": ({}, {"commit": "confidence", "tokens_per_step": 2.0}),
  "set": ({}, {"commit": "margin", "promotion": "passed"}),
  "masked": ({}, {"commit": "confidence", "threshold": 0.2}),
  "block": ({"method__block_size": 6}, {"tokens_per_step": 2.0}),
  "general": ({"method__noise": "level"}, {"commit": "posterior"}),
}
STOPS = (
  None,
  Stops(strings=("a", "bc", "\n"), pattern="[d-z]"),
  Stops(repeats=2, confidence=(1, 2.0)),
)


def text_with_gaps(rng) -> str:
  """Letters and gaps by turns; it may begin and end with either."""
  parts, size = [], int(rng.integers(6, LENGTH))
  gap = bool(rng.integers(2))
  while size > 0:
    run = int(min(rng.integers(1, 8), size))
    letters = "".join(rng.choice(list(LETTERS), run))
    parts.append(f"[MASK:{run}]" if gap else letters)
    size, gap = size - run, not gap
  text = "".join(parts)
  return text if "MASK" in text else f"{text[:-1]}[MASK]"


@pytest.mark.parametrize("method", METHODS)
def test_given_text_stays_as_it_is(method):
  """Random gaps; models that like any token, or EOS, or one letter above all."""
  changes, decode = METHODS[method]
  obj = tiny.objective(
    V.size, method__name=method, data__length=LENGTH, **SMALL, **changes
  )
  plain = tiny.params(obj, scale=0.3)
  options = dataclasses.replace(OPTIONS, **decode)
  rng = np.random.default_rng(len(method))
  texts = [text_with_gaps(rng) for _ in range(24)]
  ended = set()
  for liked in (None, V.eos, ord("a")):
    params = jax.tree.map(jnp.copy, plain)
    if liked is not None:
      params["head"]["bias"] = params["head"]["bias"].at[liked].add(40.0)
    model = Model(obj.config, params, data.ByteTokenizer(), 0)
    for stops in STOPS:
      for text, row in zip(texts, model.infill(texts, 1, options, stops), strict=True):
        ended.add(row["ended_by"])
        check(model, text, row)
  assert {"length", "eos", "low confidence"} <= ended
  assert any(reason.startswith("stop ") for reason in ended)


def check(model, text, row):
  """A result against its template."""
  (template,) = model.templates([text])
  found, given = np.array(row["tokens"]), template != V.mask
  last = np.flatnonzero(given)[-1]
  assert len(found) > last and len(found) <= len(template)
  kept = given[: len(found)]
  np.testing.assert_array_equal(found[kept], template[: len(found)][kept])
  filled = found[: last + 1][~given[: last + 1]]
  assert (filled < 128).all(), "EOS before given text"
  if row["ended_by"] == "length":
    assert len(found) == len(template)


def test_where_only_eos_is_left_nothing_is_dropped():
  """Nothing else can fill the gap then; it does not end the text."""
  obj = tiny.objective(V.size, method__name="set", data__length=LENGTH, **SMALL)
  model = Model(obj.config, tiny.params(obj), data.ByteTokenizer(), 0)
  every = tuple(i for i in range(V.size) if i not in (V.eos, V.mask))
  text = "ab[MASK:3]cd[MASK:4]"
  (row,) = model.infill([text], options=DecodeConfig(forbidden=every))
  eos = V.eos
  assert row["tokens"] == [V.bos, *b"ab", eos, eos, eos, *b"cd", eos]
  assert row["ended_by"] == "eos"


def test_a_stop_string_does_not_join_gaps():
  """Each gap is filled with "a": "aa" is found in neither, and not across them."""
  obj = tiny.objective(V.size, method__name="set", data__length=LENGTH, **SMALL)
  params = jax.tree.map(jnp.copy, tiny.params(obj, scale=0.1))
  params["head"]["bias"] = params["head"]["bias"].at[ord("a")].add(40.0)
  model = Model(obj.config, params, data.ByteTokenizer(), 0)
  for text, stop, expected in (
    ("x[MASK]y[MASK]", "aa", "xaya"),
    ("x[MASK:3]y[MASK]z", "a", "xaaayaz"),
    ("x[MASK:3]y[MASK:4]", "aa", "xaaay"),
    ("[MASK:3]y[MASK:4]", "ya", "aaayaaaa"),
  ):
    (row,) = model.infill([text], stops=Stops((stop,)))
    assert row["text"] == expected
