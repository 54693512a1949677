"""Sizes that a file claims: checked against what it holds before memory is taken."""

import math
from collections.abc import Iterable, Sequence

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown

AXES = 16  # of one array
LARGEST = 2**63 - 1  # of an axis, and of all elements together
LONGEST_NAME = 1000  # characters of a tensor's name


def check_shape(shape: object, where: str) -> tuple[int, ...]:
  """The shape of an array as a tuple.

  Raises:
    UserError: it is not a list of at most AXES whole numbers from 0 on, or has more
      elements than any file could.
  """
  plain = isinstance(shape, list | tuple) and len(shape) <= AXES
  if not plain or not all(type(n) is int and 0 <= n <= LARGEST for n in shape):
    raise UserError(
      f"{where}: its shape must be a list of at most {AXES} numbers from 0 on"
    )
  if math.prod(max(n, 1) for n in shape) > LARGEST:
    raise UserError(f"{where}: its shape has too many elements, {list(shape)}")
  return tuple(shape)


def check_view(
  shape: Sequence[int], strides: Sequence[int], offset: int, elements: int, where: str
) -> None:
  """UserError unless a strided view lies in its storage and is no larger than it.

  Args:
    shape: of the view.
    strides: of each axis, in elements.
    offset: of its first element.
    elements: of the storage.
    where: names the view in messages.
  """
  if math.prod(shape) == 0:
    return
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if last >= elements:
    raise UserError(f"{where}: a tensor reaches out of its storage")
  size = math.prod(shape)
  if size > elements:
    raise UserError(
      f"{where}: a tensor of {size} elements lies in a storage of {elements}"
    )


def tensor_name(name: object, where: str) -> str:
  """The name of a tensor itself; UserError if it is not a line of readable text."""
  if not isinstance(name, str) or len(name) > LONGEST_NAME or not name.isprintable():
    raise UserError(
      f"{where}: tensor '{shown(name)}': its name must be a readable text of at most "
      f"{LONGEST_NAME} characters"
    )
  return name


def check_files(tensors: Iterable) -> None:
  """UserError if the tensors of a file have more bytes than it.

  Tensors may share a storage, and would be as many times that storage once written.

  Args:
    tensors: with the attributes `file`, a path, and `nbytes`.
  """
  claimed: dict = {}
  for tensor in tensors:
    claimed[tensor.file] = claimed.get(tensor.file, 0) + tensor.nbytes
  for file, size in claimed.items():
    there = file.stat().st_size
    if size > there:
      raise UserError(f"{file}: has tensors of {size} bytes, and {there} bytes in all")
