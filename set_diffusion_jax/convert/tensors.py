"""Tensors in files: names, shapes and dtypes first, values when asked for."""

import errno
import math
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import bare_name, part, shown
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.inputs.sizes import check_shape, tensor_name
from set_diffusion_jax.storage import places

WEIGHT_DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype(np.float16),
}

# Names of the safetensors format. Other dtypes are refused by name.
SAFETENSORS_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": WEIGHT_DTYPES["float32"],
  "BF16": WEIGHT_DTYPES["bfloat16"],
  "F16": WEIGHT_DTYPES["float16"],
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_LARGEST_HEADER = 100 * 2**20  # the limit of the format's own readers
_HEADER_VALUES = 2**20  # of a header, which has some eight for each tensor
LARGEST_JSON = 256 * 2**20  # bytes


class Tensor(NamedTuple):
  """One array stored in a file.

  Attributes:
    file: where it is, little-endian and uncompressed.
    dtype: of its elements.
    shape: of the array.
    offset: of its first element in the file, in bytes.
    strides: in elements; None: row after row.
  """

  file: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int
  strides: tuple[int, ...] | None = None

  @property
  def nbytes(self) -> int:
    """Of the values, in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The rows from `start` to before `stop`; a scalar has no rows and is read whole.

    Raises:
      UserError: the file ends too early or cannot be read.
    """
    shape, strides = self.shape, self.strides or row_major(self.shape)
    first = 0
    if shape:
      stop = shape[0] if stop is None else stop
      shape, first = (stop - start, *shape[1:]), start * strides[0]
    if math.prod(shape) == 0:
      return np.zeros(shape, self.dtype)
    span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    size = span * self.dtype.itemsize
    try:
      with self.file.open("rb") as file:
        file.seek(self.offset + first * self.dtype.itemsize)
        raw = np.fromfile(file, np.uint8, size)
    except OSError as error:
      raise UserError(f"{self.file}: {error.strerror}") from None
    if len(raw) != size:
      raise UserError(f"{self.file}: is truncated, ends inside a tensor")
    flat = raw.view(self.dtype)
    if strides == row_major(shape):
      return flat.reshape(shape)
    steps = [step * self.dtype.itemsize for step in strides]
    view = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
    return np.ascontiguousarray(view)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Strides, in elements, of an array stored row after row."""
  return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read_json(path: pathlib.Path) -> dict:
  """The object in a JSON file, on a disk or in a bucket.

  Raises:
    UserError: no such file, or it is not a JSON object.
  """
  try:
    remote = places.is_remote(path)
    size = places.size(path) if remote else path.stat().st_size
    if size > LARGEST_JSON:
      raise UserError(f"{path}: has {size} bytes, must have at most {LARGEST_JSON}")
    raw = places.read_bytes(path) if remote else path.read_bytes()
    values = parse_json(raw, str(path))
  except FileNotFoundError:
    raise UserError(f"{path}: {os.strerror(errno.ENOENT)}") from None
  except OSError as error:
    if error.strerror is None:  # of a store
      raise
    raise UserError(f"{path}: {error.strerror}") from None
  if not isinstance(values, dict):
    raise UserError(f"{path}: must hold a JSON object")
  return values


def read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a safetensors file; only its header is read.

  Raises:
    UserError: truncated, damaged, an unknown dtype, or bytes that no tensor or two
      tensors lay claim to.
  """
  header, start, size = _header(path)
  _check_metadata(path, header.pop("__metadata__", {}))
  tensors, ends = {}, []
  for name, entry in header.items():
    tensor_name(name, str(path))
    dtype, shape, (begin, end) = _entry(path, name, entry)
    wanted = math.prod(shape) * dtype.itemsize
    if end - begin != wanted:
      raise UserError(
        f"{path}: {name} = {end - begin} bytes; {dtype.name} {list(shape)} needs "
        f"{wanted}"
      )
    if start + end > size:
      raise UserError(
        f"{path}: is truncated, {name} ends at byte {start + end}, the file at {size}"
      )
    tensors[name] = Tensor(path, dtype, shape, start + begin)
    ends.append((begin, end, name))
  reached = 0
  for begin, end, name in sorted(ends):
    if begin != reached:
      raise UserError(f"{path}: {name} starts at byte {begin}, must be {reached}")
    reached = end
  if start + reached != size:
    extra = size - start - reached
    raise UserError(f"{path}: has {extra} bytes after its last tensor, must have none")
  return tensors


def _header(path: pathlib.Path) -> tuple[dict, int, int]:
  """The header, where the data starts, and the size of the file."""
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      prefix = file.read(8)
      length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
      if length > min(size - 8, _LARGEST_HEADER) or length < 2:
        raise UserError(f"{path}: is truncated or no safetensors file")
      text = file.read(length)
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None
  where = f"{path}: the safetensors header"
  header = parse_json(text, where, values=_HEADER_VALUES)
  if not isinstance(header, dict):
    raise UserError(f"{path}: the safetensors header must be a JSON object")
  return header, 8 + length, size


def _entry(path: pathlib.Path, name: str, entry) -> tuple:
  """Checked dtype, shape and offsets of a header's entry."""
  fields = {"dtype", "shape", "data_offsets"}
  if not isinstance(entry, dict) or entry.keys() != fields:
    raise UserError(f"{path}: the header's entry of {name} is damaged")
  kind, offsets = entry["dtype"], entry["data_offsets"]
  plain = isinstance(offsets, list) and len(offsets) == 2
  if not plain or not all(type(n) is int and n >= 0 for n in offsets):
    raise UserError(f"{path}: the header's entry of {name} is damaged")
  if not isinstance(kind, str) or kind not in SAFETENSORS_DTYPES:
    known = ", ".join(SAFETENSORS_DTYPES)
    raise UserError(f"{path}: {name} has dtype '{shown(kind)}'; must be one of {known}")
  shape = check_shape(
    entry["shape"], f"{path}: the header's entry of {name} is damaged"
  )
  return SAFETENSORS_DTYPES[kind], shape, tuple(offsets)


def _check_metadata(path: pathlib.Path, found: object) -> None:
  """UserError unless the header's notes are texts by name, as the format says."""
  texts = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
  if not texts and found is not None:
    raise UserError(f"{path}: __metadata__ of the header must be texts by name")


def read_shards(
  index: pathlib.Path, read: Callable[[pathlib.Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
  """The tensors that an index file distributes over files beside it.

  Args:
    index: a file with a `weight_map`, name -> file name.
    read: reads the tensors of one file.

  Raises:
    UserError: a file outside the directory, a missing file, or an index and files that
      do not name the same tensors.
  """
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, Mapping) or not weight_map:
    raise UserError(f"{index}: weight_map must name the file of each tensor")
  promised: dict[str, set[str]] = {}
  for name, file in weight_map.items():
    where = f"{index}: weight_map of {shown(name)}"
    promised.setdefault(bare_name(file, where), set()).add(name)
  for file in promised:
    part(index.parent / file, index.parent)
  tensors = {}
  for file in sorted(promised):
    found = read(index.parent / file)
    for name in sorted(promised[file] ^ found.keys()):
      where = "the index" if name in promised[file] else f"{file}"
      raise UserError(f"{index}: {shown(name)} is only in {where}; must be in both")
    tensors.update(found)
  return tensors
