"""Files of other projects, written by hand: safetensors and PyTorch's zip format."""

import collections
import io
import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}
STORAGES = {
  "float32": "FloatStorage",
  "bfloat16": "BFloat16Storage",
  "float16": "HalfStorage",
  "int64": "LongStorage",
}


def cast(array, dtype):
  return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def safetensors_bytes(tensors, **changed):
  """The whole file; `changed` replaces entries of the header."""
  header, data = {}, b""
  for name, array in tensors.items():
    raw = array.tobytes()
    header[name] = {
      "dtype": DTYPES[array.dtype.name],
      "shape": list(array.shape),
      "data_offsets": [len(data), len(data) + len(raw)],
    }
    data += raw
  header.update(changed)
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


class Name:
  """Pickled as a global that need not exist."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  """Pickled as a call of a global, a REDUCE."""

  def __init__(self, name, *arguments):
    self.name, self.arguments = name, arguments


class Strided:
  """A view of a stored array: offset, shape and strides in elements."""

  def __init__(self, base, offset, shape, strides):
    self.base, self.offset, self.shape, self.strides = base, offset, shape, strides


class _Storage:
  def __init__(self, array):
    self.array = array


class _Pickler(pickle._Pickler):
  def __init__(self, file):
    super().__init__(file, protocol=2)
    self.arrays = []

  def persistent_id(self, value):
    if not isinstance(value, _Storage):
      return None
    keys = [id(array) for array in self.arrays]
    if id(value.array) not in keys:
      self.arrays.append(value.array)
      keys.append(id(value.array))
    kind = Name("torch", STORAGES[value.array.dtype.name])
    key = str(keys.index(id(value.array)))
    return ("storage", kind, key, "cpu", value.array.size)

  def save(self, value, save_persistent_id=True):
    if isinstance(value, Name):
      self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
    elif isinstance(value, Call):
      self.save(value.name)
      self.save(value.arguments)
      self.write(b"R")
    elif isinstance(value, np.ndarray):
      strides = tuple(step // value.itemsize for step in value.strides)
      self.save(Strided(value, 0, value.shape, strides))
    elif isinstance(value, Strided):
      rebuild = Name("torch._utils", "_rebuild_tensor_v2")
      hooks = collections.OrderedDict()
      storage = _Storage(value.base)
      self.save(
        Call(rebuild, storage, value.offset, value.shape, value.strides, False, hooks)
      )
    else:
      super().save(value, save_persistent_id)


def torch_bytes(
  value, compression=zipfile.ZIP_STORED, prefix="archive", edit=lambda program: program
):
  """A file as torch.save writes it; numpy arrays become tensors.

  `edit` changes the bytes of the pickle.
  """
  program = io.BytesIO()
  pickler = _Pickler(program)
  pickler.dump(value)
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", compression) as archive:
    archive.writestr(f"{prefix}/data.pkl", edit(program.getvalue()))
    archive.writestr(f"{prefix}/byteorder", "little")
    for key, array in enumerate(pickler.arrays):
      archive.writestr(f"{prefix}/data/{key}", array.tobytes())
    archive.writestr(f"{prefix}/version", "3\n")
  return out.getvalue()
