"""Checks annotations of functions, but not of dataclass fields.

JAX fills the fields of pytree dataclasses with placeholders of its own.
"""

from beartype import beartype


def functions_only(function):
  return function if function.__name__ == "__init__" else beartype(function)
