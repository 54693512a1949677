"""Every value on its way: read, cast, checked, handed on, a piece at a time."""

from collections.abc import Callable

import numpy as np

from set_diffusion_jax.convert.layout import Parameter, Piece
from set_diffusion_jax.convert.source import Source
from set_diffusion_jax.convert.tensors import WEIGHT_DTYPES
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage.checksums import of_piece
from set_diffusion_jax.training.metrics import Progress


class Cast:
  """A source's values in the dtype they are written in, checked to be finite."""

  def __init__(self, source: Source, dtype: str | None):
    self.wanted = dtype
    self._source = source
    self._dtype = None if dtype is None else WEIGHT_DTYPES[dtype]

  def settings(self, published: dict | None) -> dict | None:
    """A published `config.json`, with the dtype of the written parameters."""
    names = {"torch_dtype", "dtype"} & (published or {}).keys()
    if self.wanted is None or not names:
      return published
    return {**published, **dict.fromkeys(names, self.wanted)}

  def dtype(self, path: str) -> np.dtype:
    """Of a written parameter."""
    return self._source.dtypes[path] if self._dtype is None else self._dtype

  def array(self, values: np.ndarray) -> np.ndarray:
    """The values as they are written."""
    if self._dtype is None:
      return values
    with np.errstate(over="ignore"):
      return values.astype(self._dtype)

  def checked(
    self, stored: np.ndarray, parameter: Parameter, piece: Piece
  ) -> np.ndarray:
    """A piece as written; UserError for NaN, infinity or what the dtype cannot hold."""
    values = self.array(stored)
    if not np.isfinite(values).all():
      flat = int(np.flatnonzero(~np.isfinite(values.ravel()))[0])
      name = parameter.tensor_name(piece.layer)
      if self._source.format == "orbax":
        name = parameter.path
      value = stored.ravel()[flat]
      right = "must be finite"
      if np.isfinite(value):
        right = f"is beyond {values.dtype.name}; choose another --dtype"
      raise UserError(f"{self._source.path}: {name} holds {value}; {right}")
    return values


def transfer(source: Source, cast: Cast, start: Callable, write: Callable) -> None:
  """Hands every piece of every parameter on, one at a time.

  Raises:
    UserError: a value is not finite, or a parameter is not what was saved.
  """
  with Progress(len(source.parameters), label="convert", unit="parameter") as progress:
    for parameter in source.parameters:
      start(parameter, cast.dtype(parameter.path))
      total = 0
      for piece in parameter.pieces():
        stored = source.read(parameter, piece)
        if source.format == "orbax":
          total += of_piece(stored, parameter.index(piece))
        write(parameter, piece, cast.checked(stored, parameter, piece))
      if source.format == "orbax":
        source.reader.check_sum(parameter.path, total % 2**32)
      progress.advance()
