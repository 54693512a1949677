"""JSON from outside: what is read, and the one line for what is not."""

import json

import pytest

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.records import DEPTH, parse_json


@pytest.mark.parametrize(
  "value", [None, 1, 1.5, "\u2028", [], {"a": [1, {"b": None}]}, [[]] * 100]
)
def test_json_is_read_as_it_is(value):
  text = json.dumps(value, ensure_ascii=False)
  for spelling in (text, text.encode(), b"\xef\xbb\xbf" + text.encode()):
    assert parse_json(spelling, "a file") == value


def test_the_deepest_nesting():
  nested = "[" * DEPTH + "]" * DEPTH
  assert parse_json(nested, "a file")
  with pytest.raises(UserError, match=f"a file: is nested deeper than {DEPTH}"):
    parse_json(f"[{nested}]", "a file")


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("[" * 100_000, "deeper"),
    ("[" * 100_000 + "]" * 100_000, "deeper"),
    ("{" + '"a":{' * 2000 + "}" * 2001, "deeper"),
    ("7" * 5000, "is not JSON"),
    ("NaN", "NaN is no JSON number"),
    ("-Infinity", "no JSON number"),
    ("1e999", "too large"),
    ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
    ("", "is not JSON"),
    (b"\xff\xfe{}", "is not UTF-8 at byte 0"),
    ("[" + "0," * 50 + "0]", "about 52 values, must have at most 50"),
  ],
)
def test_what_is_refused(text, reason):
  with pytest.raises(UserError, match=reason) as caught:
    parse_json(text, "a file", values=50 if reason.startswith("about") else 10**6)
  assert str(caught.value).startswith("a file: ")
  assert "\n" not in str(caught.value)
