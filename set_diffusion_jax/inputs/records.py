"""JSON from outside: bounded, unambiguous, and refused in one line."""

import collections
import json

from set_diffusion_jax.errors import UserError

DEPTH = 64  # of nested lists and objects
VALUES = 10_000_000  # in one document: a header or a tokenizer has some 100,000


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
