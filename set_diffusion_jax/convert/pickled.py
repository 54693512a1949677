"""PyTorch's zip files without PyTorch: tensors and plain containers, nothing else.

A tensor becomes a `Tensor` (where its bytes are), an object of a listed class of plain
data becomes an empty `Skipped`, and any other name is refused; see program.py.
"""

import pathlib
import re
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from set_diffusion_jax.convert import program
from set_diffusion_jax.convert.tensors import WEIGHT_DTYPES, Tensor, row_major
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown
from set_diffusion_jax.inputs.sizes import LARGEST, check_shape, check_view

_LARGEST_PICKLE = 64 * 2**20  # names, shapes and settings; values are elsewhere
_LARGEST_DIRECTORY = 16 * 2**20  # bytes; of some 100,000 storages
# What zipfile raises for damaged, encrypted or unknown archives.
_ERRORS = (
  zipfile.BadZipFile,
  EOFError,
  NotImplementedError,
  RuntimeError,
  ValueError,
  struct.error,
)

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


# What training checkpoints hold beside the weights: times, states of numpy, settings
# and tokenizers. None of it is needed and none of it is built.
_SKIPPED = {
  "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
  "pathlib": ("Path", "PosixPath", "PurePosixPath"),
  "numpy": ("dtype", "ndarray"),
  "numpy.core.multiarray": ("_reconstruct", "scalar"),
  "numpy._core.multiarray": ("_reconstruct", "scalar"),
  "numpy.core.numeric": ("_frombuffer",),
  "numpy._core.numeric": ("_frombuffer",),
  "_codecs": ("encode",),
  "torch": ("device", "Tensor"),
  "torch.nn.parameter": ("Parameter",),
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
# Types that settings name, and values that hold no weights.
_PLAIN_TYPES = (
  "dict list tuple int float str bool bytes bytearray set frozenset complex".split()
)
_TORCH_DTYPES = (
  "float64 float32 bfloat16 float16 int64 int32 int16 int8 uint8 bool".split()
)
# Names that stand for themselves.
_VALUES = {
  **{f"{m} {name}": name for m in ("torch", "torch.storage") for name in _STORAGES},
  **{f"torch {name}": f"torch.{name}" for name in _TORCH_DTYPES},
}


class _Storage(NamedTuple):
  """The bytes behind tensors: a member of the archive."""

  dtype: np.dtype
  offset: int
  elements: int


class Archive:
  """An open PyTorch zip file.

  Raises:
    UserError: it is no such file, damaged, or has two members of one name.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._zip = _open(path)
    self._members: dict[str, zipfile.ZipInfo] = {}
    for info in self._zip.infolist():
      if info.filename in self._members:
        name = shown(info.filename)
        raise UserError(f"{path}: {name} is twice in the archive; must be once")
      self._members[info.filename] = info
    pickles = [name for name in self._members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      found = "no data.pkl" if not pickles else f"{len(pickles)} data.pkl"
      raise UserError(f"{path}: is no PyTorch file, it has {found}")
    self._prefix = pickles[0].removesuffix("data.pkl")
    order = self._prefix + "byteorder"
    if order in self._members and self._content(order, 16) != b"little":
      raise UserError(f"{path}: byteorder must be little")

  def load(self):
    """The pickled object, with `Tensor` where tensors are.

    Raises:
      UserError: damaged, or it asks for something that is not allowed.
    """
    content = self._content(self._prefix + "data.pkl", _LARGEST_PICKLE)
    calls = {
      "torch._utils _rebuild_tensor_v2": self._tensor,
      "torch._utils _rebuild_tensor": self._tensor,
      "torch._utils _rebuild_parameter": _first,
      "torch._utils _rebuild_parameter_with_state": _first,
      "torch._tensor _rebuild_from_type_v2": self._from_type,
      "torch Size": _size,
      "collections OrderedDict": program.ordered,
      "collections defaultdict": lambda *_: {},
    }
    try:
      return program.follow(
        content, program.Names(_VALUES, calls, _is_skipped), self._persistent
      )
    except program.Refused as refused:
      raise UserError(
        f"{self.path}: asks for {refused}, which is refused; only tensors and plain "
        "containers are read"
      ) from None
    except UserError:
      raise
    except Exception as error:  # whatever a damaged or hostile program runs into
      reason = shown(f"{type(error).__name__}: {error}")
      raise UserError(f"{self.path}: the pickle is damaged ({reason})") from None

  def _persistent(self, identity) -> _Storage:
    """The storage of a persistent id; UserError if the archive does not hold it all."""
    plain = isinstance(identity, tuple) and len(identity) == 5
    if not plain or identity[0] != "storage":
      raise UserError(f"{self.path}: a persistent id that is no storage is refused")
    _, kind, key, _, elements = identity
    if not isinstance(kind, str) or kind not in _STORAGES:
      raise UserError(f"{self.path}: a storage of {shown(kind)} is refused")
    if type(elements) is not int or not isinstance(key, str):
      raise UserError(f"{self.path}: storage {shown(key)} is damaged")
    info = self._stored(f"{self._prefix}data/{key}")
    dtype = _STORAGES[kind]
    if info.file_size != elements * dtype.itemsize:
      raise UserError(
        f"{self.path}: storage {shown(key)} has {info.file_size} bytes, "
        f"{shown(str(elements), 40)} of {dtype.name} need {dtype.itemsize} each"
      )
    return _Storage(dtype, self._data_offset(info), elements)

  def _content(self, name: str, largest: int) -> bytes:
    """All bytes of a member; UserError if there are more than `largest`."""
    info = self._stored(name)
    if info.file_size > largest:
      raise UserError(f"{self.path}: {shown(name)} is above {largest} bytes")
    self._data_offset(info)
    try:
      return self._zip.read(name)
    except _ERRORS as error:
      reason = shown(str(error) or type(error).__name__)
      raise UserError(f"{self.path}: {shown(name)} is damaged ({reason})") from None
    except OSError as error:
      raise UserError(f"{self.path}: {error.strerror}") from None

  def _stored(self, name: str) -> zipfile.ZipInfo:
    if name not in self._members:
      raise UserError(f"{self.path}: {shown(name)} is missing in the archive")
    info = self._members[name]
    if info.compress_type != zipfile.ZIP_STORED:
      where = f"{self.path}: {shown(name)}"
      raise UserError(f"{where} is compressed; PyTorch stores it plainly")
    if info.compress_size != info.file_size or info.flag_bits & 1:
      raise UserError(f"{self.path}: {shown(name)} is damaged, or encrypted")
    return info

  def _data_offset(self, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header, name and extra field.

    The local header must say what the directory says: other readers follow the one or
    the other. Sizes of zero there mean that they follow the data.
    """
    where = f"{self.path}: {shown(info.filename)}"
    if not 0 <= info.header_offset <= self.path.stat().st_size:
      raise UserError(f"{where} is damaged: it starts outside of the file")
    with self.path.open("rb") as file:
      file.seek(info.header_offset)
      header = file.read(30)
      if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{where} is damaged")
      method, packed, size, name, extra = struct.unpack("<8xH8xIIHH", header)
      encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
      spelled = file.read(name).decode(encoding, "replace")
    known = {0, 2**32 - 1, info.file_size}
    if method or {packed, size} - known or spelled != info.orig_filename:
      raise UserError(f"{where} differs between the directory and its own header")
    offset = info.header_offset + 30 + name + extra
    if offset + info.file_size > self.path.stat().st_size:
      raise UserError(f"{self.path}: is truncated inside {shown(info.filename)}")
    return offset

  def _tensor(self, storage, offset, shape, strides, *rest) -> Tensor:
    """A tensor of a storage; UserError if it reaches out of it or is larger."""
    where = f"{self.path}: a tensor's description is damaged"
    if not isinstance(storage, _Storage):
      raise UserError(where)
    if any(rest[2:]):  # after requires_grad and hooks: {"neg": True}, other signs
      raise UserError(f"{self.path}: a negated view is refused; save its resolve_neg()")
    shape, strides = check_shape(shape, where), tuple(strides)
    plain = all(type(n) is int and 0 <= n <= LARGEST for n in (offset, *strides))
    if not plain or len(shape) != len(strides):
      raise UserError(where)
    check_view(shape, strides, offset, storage.elements, str(self.path))
    return Tensor(
      self.path,
      storage.dtype,
      shape,
      storage.offset + offset * storage.dtype.itemsize,
      None if strides == row_major(shape) else strides,
    )

  def _from_type(self, function, kind, arguments, state) -> Tensor:
    """A tensor that carries attributes, which are dropped."""
    if getattr(function, "make", None) != self._tensor:
      raise UserError(f"{self.path}: a tensor of another kind is refused")
    return self._tensor(*arguments)


def _open(path: pathlib.Path) -> zipfile.ZipFile:
  try:
    with path.open("rb") as file:
      magic = file.read(4)
      size = _directory_size(file)
    if magic[:1] == b"\x80":
      raise UserError(
        f"{path}: is in PyTorch's format from before 1.6; load and save it again "
        "with a newer PyTorch"
      )
    if size > _LARGEST_DIRECTORY:
      raise UserError(
        f"{path}: its directory has {size} bytes, must have at most "
        f"{_LARGEST_DIRECTORY}"
      )
    return zipfile.ZipFile(path)
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None
  except _ERRORS:
    kind = "is truncated" if magic == b"PK\x03\x04" else "is no PyTorch file"
    raise UserError(f"{path}: {kind}") from None


def _directory_size(file) -> int:
  """Bytes of an archive's directory, as its end says; 0 where there is none."""
  length = file.seek(0, 2)
  file.seek(max(0, length - 2**16 - 100))
  end = file.read()
  found = end.rfind(b"PK\x05\x06")
  if found < 0 or len(end) < found + 16:
    return 0
  size = struct.unpack_from("<I", end, found + 12)[0]
  # Of large archives it stands in a record and a pointer to it before the end.
  if found >= 76 and end[found - 20 : found - 16] == b"PK\x06\x07":
    size = max(size, struct.unpack_from("<Q", end, found - 76 + 40)[0])
  return size


def _is_skipped(module: str, name: str) -> bool:
  """Whether a name is one of plain data that is not needed."""
  if module in ("builtins", "__builtin__"):
    return name in _PLAIN_TYPES
  return name in _SKIPPED.get(module, ()) or bool(_TOKENIZERS.fullmatch(module))


def _first(value, *_):
  return value


def _size(numbers) -> tuple:
  return check_shape(numbers, "torch.Size")
