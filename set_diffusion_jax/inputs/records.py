"""JSON from outside: bounded, unambiguous, and refused in one line."""

import collections
import json
import re

from set_diffusion_jax.errors import UserError

DEPTH = 64  # of nested lists and objects
VALUES = 10_000_000  # in one document: a header or a tokenizer has some 100,000
RECORD_VALUES = 1_000_000  # in one of many records
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def parse_json(
  text: str | bytes, where: str, depth: int = DEPTH, values: int = VALUES
) -> object:
  """The value that a JSON text spells out.

  Args:
    text: UTF-8 if it is bytes; a byte-order mark before it is left out.
    where: names it in messages.
    depth: the deepest nesting of lists and objects that is accepted.
    values: the most values that are accepted, counted before any is made.

  Raises:
    UserError: it is no JSON, an object has a key twice, a number is no finite one or
      too long, or it is nested deeper or has more values than that.
  """
  if isinstance(text, bytes):
    try:
      text = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      raise UserError(f"{where}: is not UTF-8 at byte {error.start}") from None
  text = text.removeprefix("\ufeff")
  found = 1 + text.count(",") + text.count("[") + text.count("{")
  if found > values:
    raise UserError(f"{where}: has about {found} values, must have at most {values}")
  try:
    value = json.loads(
      text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_float
    )
  except RecursionError:
    raise UserError(f"{where}: is nested deeper than {depth} levels") from None
  except ValueError as error:
    reason = (str(error) or "damaged").splitlines()[0]
    raise UserError(f"{where}: is not JSON ({reason})") from None
  if text.count("[") + text.count("{") > depth:
    _check_depth(value, where, depth)
  return value


def parse_record(text: str, where: str) -> dict:
  """The object of a line of JSON, of a file that may have millions of them.

  As programs write records, NaN and infinite numbers are let through: what is read of a
  record is text. Nesting is bounded by the parser itself.

  Args:
    text: of the line; a byte-order mark before it is left out.
    where: names it in messages.

  Raises:
    UserError: it is no JSON object, or an object has a key twice, or it is nested too
      deeply, or has more than RECORD_VALUES values.
  """
  text = text.removeprefix("\ufeff").removesuffix("\n")
  if len(text) > 2 * RECORD_VALUES:  # each takes two characters
    outside = _STRING.sub("", text)
    found = sum(map(outside.count, ",[{"))
    if found > RECORD_VALUES:
      right = f"must have at most {RECORD_VALUES}"
      raise UserError(f"{where}: has about {found} values, {right}")
  try:
    value = _RECORDS.decode(text)
  except RecursionError:
    raise UserError(f"{where}: is nested too deeply") from None
  except ValueError as error:
    reason = (getattr(error, "msg", None) or str(error)).removesuffix(" at")
    if "integer string conversion" in reason:
      reason = "an integer has more than 4,300 digits"
    place = f" at character {error.pos}" if hasattr(error, "pos") else ""
    raise UserError(f"{where}: is not JSON ({reason}{place})") from None
  if not isinstance(value, dict):
    raise UserError(f"{where}: must be a JSON object")
  return value


def _object(pairs: list[tuple[str, object]]) -> dict:
  found = dict(pairs)
  if len(found) < len(pairs):
    counts = collections.Counter(name for name, _ in pairs)
    twice = max(counts, key=counts.get)
    raise ValueError(f"the key {twice[:40]!r} is there twice")
  return found


def _no_number(name: str):
  raise ValueError(f"{name} is no JSON number")


def _float(digits: str) -> float:
  value = float(digits)
  if value in (float("inf"), float("-inf")):
    raise ValueError(f"the number {digits[:20]} is too large")
  return value


def _check_depth(value: object, where: str, depth: int) -> None:
  """UserError for a value that is nested too deeply; no recursion of its own."""
  level = [value]
  for _ in range(depth):
    inner: list = []
    for item in level:
      if isinstance(item, dict):
        inner.extend(v for v in item.values() if isinstance(v, dict | list))
      elif isinstance(item, list):
        inner.extend(v for v in item if isinstance(v, dict | list))
    if not inner:
      return
    level = inner
  raise UserError(f"{where}: is nested deeper than {depth} levels")


# Made once: to make one takes longer than to read a short record.
_RECORDS = json.JSONDecoder(object_pairs_hook=_object)
