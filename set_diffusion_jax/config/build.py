"""From plain values to frozen dataclasses: names and types, one by one."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping

import ml_collections

from set_diffusion_jax.errors import UserError


def required(hint) -> type:
  """`int` of `int | None`."""
  if isinstance(hint, types.UnionType):
    return next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
  return hint


def build(cls, settings: Mapping, prefix: str):
  """A dataclass from a mapping; UserError names a field that is unknown or mistyped."""
  hints = typing.get_type_hints(cls)
  if not isinstance(settings, Mapping | ml_collections.ConfigDict):
    name = prefix.rstrip(".") or "config"
    raise UserError(f"{name} = {settings!r}: must be a group of fields")
  values = {}
  for name in settings:
    check_known(hints, name, prefix)
    value = settings[name]
    if dataclasses.is_dataclass(hints[name]):
      values[name] = build(hints[name], value, f"{prefix}{name}.")
    else:
      values[name] = _typed(f"{prefix}{name}", value, hints[name])
  return cls(**values)


def check_known(hints: Mapping, name: str, prefix: str) -> None:
  """UserError for a name that is no field, with the one that was perhaps meant."""
  if name not in hints:
    near = difflib.get_close_matches(str(name), hints, 1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(hints)}"
    called = f"{prefix}{name}" if name else f"config.{prefix} with no name after it"
    raise UserError(f"{called} is not a field; {hint}")


def _typed(name: str, value, hint):
  wanted = required(hint)
  if value is None and wanted is not hint:
    return None
  if typing.get_origin(wanted) is tuple:
    if not isinstance(value, list | tuple):
      raise UserError(f"{name} = {value!r}: must be a list")
    return tuple(_typed(name, v, typing.get_args(wanted)[0]) for v in value)
  if wanted is float and type(value) is int:
    value = float(value)
  if type(value) is not wanted:
    raise UserError(f"{name} = {value!r}: must be of type {wanted.__name__}")
  if wanted is float and not math.isfinite(value):
    raise UserError(f"{name} = {value!r}: must be finite")
  return value
