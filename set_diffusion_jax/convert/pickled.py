"""PyTorch's zip files without PyTorch: tensors and plain containers, nothing else.

A pickle is a program. Here every name that it asks for is looked up in the tables
below, and none of them runs code of the file or of an installed package: a tensor
becomes a `Tensor` (where its bytes are), an object of a listed class of plain data
becomes an empty `Skipped`, and any other name is refused.
"""

import collections
import io
import pathlib
import pickle
import pickletools
import re
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from set_diffusion_jax.convert.tensors import WEIGHT_DTYPES, Tensor, row_major
from set_diffusion_jax.errors import UserError

_LARGEST_PICKLE = 64 * 2**20  # names, shapes and settings; values are elsewhere

_STORAGES = {
  "DoubleStorage": np.dtype(np.float64),
  "FloatStorage": WEIGHT_DTYPES["float32"],
  "BFloat16Storage": WEIGHT_DTYPES["bfloat16"],
  "HalfStorage": WEIGHT_DTYPES["float16"],
  "LongStorage": np.dtype(np.int64),
  "IntStorage": np.dtype(np.int32),
  "ShortStorage": np.dtype(np.int16),
  "CharStorage": np.dtype(np.int8),
  "ByteStorage": np.dtype(np.uint8),
  "BoolStorage": np.dtype(np.bool_),
}


class Skipped:
  """Stands where a listed object of plain data was; it holds nothing."""

  def __new__(cls, *arguments, **keywords):
    return object.__new__(cls)

  def __init__(self, *arguments, **keywords):
    pass

  def __setstate__(self, state):
    pass

  def __setitem__(self, key, value):
    pass

  def append(self, value):
    """Takes an element, as a pickle gives it, and drops it."""

  def extend(self, values):
    """Takes elements and drops them."""


# What training checkpoints hold beside the weights: times, states of numpy, settings
# and tokenizers. None of it is needed and none of it is built.
_SKIPPED = {
  "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
  "pathlib": ("Path", "PosixPath", "PurePosixPath"),
  "numpy": ("dtype", "ndarray"),
  "numpy.core.multiarray": ("_reconstruct", "scalar"),
  "numpy._core.multiarray": ("_reconstruct", "scalar"),
  "_codecs": ("encode",),
  "torch": ("device",),
  "typing": ("Any",),
  "omegaconf.base": ("ContainerMetadata", "Metadata"),
  "omegaconf.dictconfig": ("DictConfig",),
  "omegaconf.listconfig": ("ListConfig",),
  "omegaconf.nodes": (
    "AnyNode",
    "BooleanNode",
    "FloatNode",
    "IntegerNode",
    "StringNode",
  ),
}
_TOKENIZERS = re.compile(
  r"tokenizers(\..+)?|transformers\.(models\.\w+\.)?tokenization_\w+"
)
_BUILTINS = {"set": set, "frozenset": frozenset, "complex": complex}
# Types that settings name without making one.
_NAMED_TYPES = ("dict", "list", "tuple", "int", "float", "str", "bool", "bytes")
_TORCH_DTYPES = (
  "float64 float32 bfloat16 float16 int64 int32 int16 int8 uint8 bool".split()
)


class _Storage(NamedTuple):
  """The bytes behind tensors: a member of the archive."""

  dtype: np.dtype
  offset: int
  elements: int


class Archive:
  """An open PyTorch zip file."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._zip = _open(path)
    self._members = {info.filename: info for info in self._zip.infolist()}
    pickles = [name for name in self._members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise UserError(f"{path}: is no PyTorch file, it has no data.pkl")
    self._prefix = pickles[0].removesuffix("data.pkl")
    order = self._prefix + "byteorder"
    if order in self._members:
      little = self._stored(order).file_size == len("little")
      if not little or self._zip.read(order) != b"little":
        raise UserError(f"{path}: byteorder must be little")

  def load(self):
    """The pickled object, with `Tensor` where tensors are.

    Raises:
      UserError: damaged, or it asks for something that is not allowed.
    """
    name = self._prefix + "data.pkl"
    self._stored(name)
    if self._members[name].file_size > _LARGEST_PICKLE:
      raise UserError(f"{self.path}: data.pkl is above {_LARGEST_PICKLE} bytes")
    try:
      program = self._zip.read(name)
      _check_sizes(program)
      return _Reader(io.BytesIO(program), self).load()
    except UserError:
      raise
    except Exception as error:  # whatever a damaged or hostile program runs into
      reason = f"{type(error).__name__}: {error}".splitlines()[0]
      raise UserError(f"{self.path}: the pickle is damaged ({reason})") from None

  def storage(self, kind, key, elements) -> _Storage:
    """A persistent id's storage; UserError if the archive does not hold it all."""
    info = self._stored(f"{self._prefix}data/{key}")
    if kind not in _STORAGES or type(elements) is not int:
      raise UserError(f"{self.path}: storage {key} is damaged")
    dtype = _STORAGES[kind]
    if info.file_size != elements * dtype.itemsize:
      raise UserError(
        f"{self.path}: storage {key} has {info.file_size} bytes, {elements} of "
        f"{dtype.name} need {elements * dtype.itemsize}"
      )
    return _Storage(dtype, self._data_offset(info), elements)

  def _stored(self, name: str) -> zipfile.ZipInfo:
    if name not in self._members:
      raise UserError(f"{self.path}: {name} is missing in the archive")
    info = self._members[name]
    if info.compress_type != zipfile.ZIP_STORED:
      raise UserError(f"{self.path}: {name} is compressed; PyTorch stores it plainly")
    return info

  def _data_offset(self, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header, name and extra field."""
    with self.path.open("rb") as file:
      file.seek(info.header_offset)
      header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
      raise UserError(f"{self.path}: {info.filename} is damaged")
    name, extra = struct.unpack("<HH", header[26:30])
    offset = info.header_offset + 30 + name + extra
    if offset + info.file_size > self.path.stat().st_size:
      raise UserError(f"{self.path}: is truncated inside {info.filename}")
    return offset


def _check_sizes(program: bytes) -> None:
  """ValueError for a program that asks for memory that its own length cannot justify.

  The interpreter makes room for a number in the memo, or for a string's length, before
  it looks whether there are that many.
  """
  for operation, argument, _ in pickletools.genops(program):
    if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(program):
      raise ValueError(f"memo {argument} in {len(program)} bytes")


def _open(path: pathlib.Path) -> zipfile.ZipFile:
  try:
    with path.open("rb") as file:
      magic = file.read(4)
    if magic[:1] == b"\x80":
      raise UserError(
        f"{path}: is in PyTorch's format from before 1.6; load and save it again "
        "with a newer PyTorch"
      )
    return zipfile.ZipFile(path)
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None
  except (zipfile.BadZipFile, ValueError, struct.error):
    kind = "is truncated" if magic == b"PK\x03\x04" else "is no PyTorch file"
    raise UserError(f"{path}: {kind}") from None


class _Reader(pickle.Unpickler):
  """Follows a pickle with the tables of this module only."""

  def __init__(self, file, archive: Archive):
    super().__init__(file, encoding="utf-8")
    self._archive = archive
    self._rebuilders = {
      ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
      ("torch._utils", "_rebuild_tensor"): self._tensor,
      ("torch._utils", "_rebuild_parameter"): _first,
      ("torch._utils", "_rebuild_parameter_with_state"): _first,
      ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
      ("torch", "Size"): tuple,
      ("torch", "Tensor"): Skipped,
      ("torch.nn.parameter", "Parameter"): Skipped,
      ("collections", "OrderedDict"): collections.OrderedDict,
      ("collections", "defaultdict"): _empty_dict,
    }

  def find_class(self, module: str, name: str):
    """What a name stands for; UserError for every name that is not listed."""
    if (module, name) in self._rebuilders:
      return self._rebuilders[module, name]
    if module in ("torch", "torch.storage") and name in _STORAGES:
      return name
    if module == "torch" and name in _TORCH_DTYPES:
      return f"torch.{name}"
    if name in _SKIPPED.get(module, ()) or _TOKENIZERS.fullmatch(module):
      return Skipped
    if module in ("builtins", "__builtin__"):
      if name in _BUILTINS:
        return _BUILTINS[name]
      if name in _NAMED_TYPES:
        return Skipped
    raise UserError(
      f"{self._archive.path}: asks for {module}.{name}, which is refused; only tensors "
      "and plain containers are read"
    )

  def persistent_load(self, identity):
    """The storage of a persistent id."""
    kind, *rest = identity
    if kind != "storage" or len(rest) != 4:
      raise UserError(f"{self._archive.path}: persistent id {kind!r} is refused")
    storage, key, _, elements = rest
    return self._archive.storage(storage, key, elements)

  def _tensor(self, storage, offset, shape, strides, *_) -> Tensor:
    """A tensor of a storage; UserError if it reaches out of it."""
    shape, strides = tuple(shape), tuple(strides)
    numbers = (offset, *shape, *strides)
    plain = all(type(n) is int and n >= 0 for n in numbers)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or not plain:
      raise UserError(f"{self._archive.path}: a tensor's description is damaged")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.elements:
      raise UserError(f"{self._archive.path}: a tensor reaches out of its storage")
    return Tensor(
      self._archive.path,
      storage.dtype,
      shape,
      storage.offset + offset * storage.dtype.itemsize,
      None if strides == row_major(shape) else strides,
    )

  def _from_type(self, function, kind, arguments, state) -> Tensor:
    """A tensor that carries attributes, which are dropped."""
    if function != self._tensor:
      raise UserError(f"{self._archive.path}: a tensor of another kind is refused")
    return self._tensor(*arguments)


def _first(value, *_):
  return value


def _empty_dict(*_) -> dict:
  return {}
