"""What the processes of one run tell each other outside of compiled programs.

Every function here is called by all processes at the same point. With one process
each is the obvious thing.
"""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from set_diffusion_jax.errors import AgreedError, UserError

T = TypeVar("T")


def is_first() -> bool:
  """Whether this process writes what is written once."""
  return jax.process_index() == 0


def gather_numbers(numbers: Sequence[float]) -> np.ndarray:
  """Equally many numbers of every process: float32 [processes, numbers]."""
  mine = np.asarray(numbers, np.float32)
  if jax.process_count() == 1:
    return mine[None]
  return np.asarray(multihost_utils.process_allgather(mine))


def gather(value) -> list:
  """A JSON value of every process, in their order."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(text), np.int32))
  room = 1 << int(sizes.max()).bit_length()  # few different sizes to compile for
  rows = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
  return [
    json.loads(row[:size].tobytes().decode())
    for row, size in zip(np.asarray(rows), sizes, strict=True)
  ]


def together(act: Callable[[], T]) -> T:
  """What `act` returns here; where it is the user's mistake for one, it is for all.

  Raises:
    AgreedError: `act` raised a UserError in some process.
  """
  if jax.process_count() == 1:
    return act()
  result, error = None, None
  try:
    result = act()
  except UserError as mistake:
    error = str(mistake)
  errors = gather(error)
  for process, line in enumerate(errors):
    if line is not None:
      same = all(other == line for other in errors)
      raise AgreedError(line if same else f"process {process}: {line}")
  return result


def from_first(act: Callable[[], T]) -> T:
  """The JSON value that `act` returns in process 0; the others do not run it.

  Raises:
    AgreedError: `act` raised a UserError.
  """
  return gather(together(lambda: act() if is_first() else None))[0]


def check_same(facts: dict) -> None:
  """AgreedError in every process unless all of them have the same facts.

  Args:
    facts: JSON values by name.
  """
  rows = gather(facts)
  for name in {name: None for row in rows for name in row}:  # of all: all must fail
    first = rows[0].get(name)
    for process, row in enumerate(rows):
      if row.get(name) != first:
        raise AgreedError(
          f"{name} = {first!r} in process 0, {row.get(name)!r} in process {process}: "
          "must be the same in all processes"
        )
