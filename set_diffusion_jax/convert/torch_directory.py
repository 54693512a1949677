"""Writing safetensors: every byte has its place from the start, in any order."""

import json
import math
import os
import pathlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from set_diffusion_jax.convert.tensors import SAFETENSORS_DTYPES

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
# The format's own writer puts wider elements first.
_WIDTH = {"F64": 0, "I64": 0, "F32": 1, "I32": 1, "F16": 2, "BF16": 2}


class Planned(NamedTuple):
  """A tensor to be written."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    """Of its values."""
    return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
  """Writes rows of tensors in any order, into one file or shards with an index.

  Args:
    folder: an existing directory.
    tensors: everything that will be written.
    shard_size: bytes of values in a shard; a larger tensor gets one of its own.
  """

  def __init__(self, folder: pathlib.Path, tensors: Iterable[Planned], shard_size: int):
    shards = _shards(sorted(tensors, key=lambda tensor: tensor.name), shard_size)
    self._files, self._places = [], {}
    names = shard_names(len(shards))
    self._planned = {t.name: t for shard in shards for t in shard}
    self._left = {name: t.nbytes for name, t in self._planned.items()}
    try:
      for name, shard in zip(names, shards, strict=True):
        file = (folder / name).open("wb")
        self._files.append(file)
        self._lay_out(file, shard)
      if len(names) > 1:
        total = sum(t.nbytes for t in self._planned.values())
        where = {t.name: n for n, s in zip(names, shards, strict=True) for t in s}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)
    except BaseException:
      self._close()
      raise

  def _lay_out(self, file, shard: list[Planned]) -> None:
    """Writes a shard's header and remembers where each tensor starts."""
    order = sorted(shard, key=lambda t: (_WIDTH.get(_NAMES[t.dtype], 3), t.name))
    header: dict = {"__metadata__": {"format": "pt"}}
    reached, starts = 0, {}
    for tensor in order:
      starts[tensor.name] = reached
      reached += tensor.nbytes
      header[tensor.name] = {
        "dtype": _NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [starts[tensor.name], reached],
      }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    file.flush()
    base = 8 + len(text)
    for name, start in starts.items():
      self._places[name] = file.fileno(), base + start

  def write(self, name: str, start: int, rows: np.ndarray) -> None:
    """Writes rows of a tensor, from row `start` on.

    Raises:
      OSError: the disk is full or fails.
    """
    tensor = self._planned[name]
    row = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    descriptor, place = self._places[name]
    raw = memoryview(np.ascontiguousarray(rows).view(np.uint8).reshape(-1))
    self._left[name] -= len(raw)
    done = 0
    while done < len(raw):
      done += os.pwrite(descriptor, raw[done:], place + start * row + done)

  def __enter__(self) -> "SafetensorsWriter":
    return self

  def __exit__(self, kind, *exception) -> None:
    if kind is None:
      incomplete = [name for name, left in self._left.items() if left]
      if incomplete:
        raise ValueError(f"{incomplete[0]}: not all rows were written")
      for file in self._files:
        os.fsync(file.fileno())
    self._close()

  def _close(self) -> None:
    for file in self._files:
      file.close()


def shard_names(count: int) -> list[str]:
  """File names as Transformers gives them."""
  if count == 1:
    return ["model.safetensors"]
  return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _shards(tensors: list[Planned], size: int) -> list[list[Planned]]:
  """Cuts the list where a shard would grow above `size` bytes."""
  shards, filled = [[]], 0
  for tensor in tensors:
    if shards[-1] and filled + tensor.nbytes > size:
      shards.append([])
      filled = 0
    shards[-1].append(tensor)
    filled += tensor.nbytes
  return shards
