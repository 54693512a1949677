"""The fields of a JSON object from outside: each is used, of no effect, or refused."""

import math
import pathlib
from collections.abc import Iterable, Mapping

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown

LARGEST = 2**31 - 1  # of integers: sizes, ids and positions are int32

_KINDS = {
  bool: "true or false",
  dict: "an object",
  float: "a number",
  int: "an integer",
  list: "a list",
  str: "a text",
}


class Fields:
  """A JSON object that is read field by field.

  A field that is missing or mistyped is an error with its name. `finish` refuses the
  fields that nobody asked for. A field that is null counts as one that is not there.
  """

  def __init__(self, path: pathlib.Path, values: Mapping, prefix: str = ""):
    self.path, self.values, self._prefix = path, values, prefix
    self._asked: set[str] = set()

  def __call__(self, name: str, kind: type, default=None):
    """A field's value; without it, the default, or an error if that is None.

    An integer is a number, but a boolean is no integer, nor is 2.0.
    """
    value = self.get(name)
    if value is None:
      value = default
    if kind is float and type(value) is int and abs(value) < 2**53:
      value = float(value)
    wrong = type(value) is not kind
    if wrong or (kind is float and not math.isfinite(value)):
      self.wrong(name, _KINDS[kind])
    if kind is int and abs(value) > LARGEST:
      self.wrong(name, f"at most {LARGEST}")
    return value

  def get(self, name: str):
    """A field's value as it stands; None: it is null or not there."""
    self._asked.add(name)
    return self.values.get(name)

  def positive(self, name: str, kind: type, default=None):
    """A number's value, which must be above 0."""
    value = self(name, kind, default)
    if value <= 0:
      self.wrong(name, "above 0")
    return value

  def group(self, name: str) -> "Fields":
    """A nested object."""
    return Fields(self.path, self(name, dict), f"{self._prefix}{name}.")

  def only(self, allowed: Mapping[str, tuple]) -> None:
    """Refuses a field that is there and has none of its allowed values."""
    for name, values in allowed.items():
      found = self.get(name)
      # Python has True == 1; here only numbers equal numbers.
      same = [v for v in values if v == found and _is_bool(v) == _is_bool(found)]
      if found is not None and not same:
        self.wrong(name, " or ".join(map(_json, values)) or "left out or null")

  def finish(self, of_no_effect: Iterable[str]) -> None:
    """Refuses the first field that was not asked for and is not of no effect."""
    unknown = self.values.keys() - self._asked - set(of_no_effect)
    for name in self.values:
      if name in unknown and self.values[name] is not None:
        self.wrong(name, "left out: it is not known here, and might change the model")

  def wrong(self, name: str, right: str):
    """Raises: the field's name, its value, what would be right."""
    value = "is missing"
    if name in self.values:
      value = f"= {shown(repr(self.values[name]), 100)}"
    field = shown(name if name.isidentifier() else repr(name), 80)
    raise UserError(f"{self.path}: {self._prefix}{field} {value}; must be {right}")


def _is_bool(value) -> bool:
  return type(value) is bool


def _json(value) -> str:
  """As JSON writes it, if it is a boolean."""
  return str(value).lower() if _is_bool(value) else repr(value)
