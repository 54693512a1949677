"""What the shapes of named tensors say about a model."""

import pathlib
import re
from collections.abc import Mapping

from set_diffusion_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]  # by canonical name


def count_layers(shapes: Shapes) -> int:
  """Blocks that the canonical names mention."""
  found = (re.match(r"(?:layers|blocks)\.(\d+)\.", name) for name in shapes)
  return len({match[1] for match in found if match})


def shape_of(path: pathlib.Path, shapes: Shapes, name: str, axes: int):
  """The shape of a tensor that must be there, with so many axes above 0.

  Args:
    path: of the configuration, for messages.
    shapes: of the tensors.
    name: canonical.
    axes: how many it must have.

  Raises:
    UserError: it is missing or has other axes.
  """
  found = shapes.get(name, ())
  if len(found) != axes or 0 in found:
    right = f"a tensor of {axes} axes is needed"
    said = f"is {list(shapes[name])}" if name in shapes else "is missing"
    raise UserError(f"{path.parent}: {name} {said}; {right}")
  return found
