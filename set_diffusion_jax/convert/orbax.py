"""Reading this project's checkpoints a part of a parameter at a time.

Orbax restores whole arrays. What it stores is one tensorstore (zarr) array for each
parameter in a key-value store (OCDBT) and small JSON files; that layout is read here
directly, and written by `orbax_writer`.
"""

import itertools
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorstore as ts

from set_diffusion_jax.convert.layout import Parameter, Piece, same_names
from set_diffusion_jax.convert.tensors import WEIGHT_DTYPES, read_json
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import check_tree, shown
from set_diffusion_jax.inputs.paths import Opened
from set_diffusion_jax.storage import places, refusals
from set_diffusion_jax.storage.saved import check_version

TREE = "_METADATA"
# A step's parameters may take so many times the bytes of its files, as zeros shrink to
# next to nothing, and in any case these bytes.
_MOST_ZEROS, _SMALL = 100, 64 * 2**20
# What tensorstore raises for damaged files, bad descriptions and full disks.
ERRORS = (ValueError, OSError, RuntimeError, NotImplementedError)


class Reader:
  """The parameters of a checkpoint's `state`, under "params" or "ema".

  Raises:
    UserError: damaged, of another format version, or with links out of the step.
  """

  def __init__(self, step: pathlib.Path, kind: str | None):
    self._step, self._state = step, step / "state"
    if places.is_remote(step):
      self._bytes, self._folder = places.total_size(step), self._state
    else:
      self._bytes = check_tree(step)
      try:
        self._opened = Opened(self._state)
      except OSError as error:
        raise UserError(f"{self._state}: {error.strerror}") from None
      self._folder = self._opened.path
    self.meta = read_json(step / "meta" / "metadata")
    check_version(self.meta, str(step))
    try:
      tree = read_json(self._state / TREE)
    except UserError as error:
      raise UserError(f"{step}: is damaged or incomplete ({error})") from None
    self._driver = "zarr3" if tree.get("use_zarr3") else "zarr"
    self._ocdbt = bool(tree.get("use_ocdbt"))
    stored = _paths(self._state / TREE, tree)
    both = {path[0] for path in stored}
    kind = kind or ("ema" if "ema" in both else "raw")
    root = {"ema": "ema", "raw": "params"}[kind]
    if root not in both:
      raise UserError(f"{step}: has no {kind} weights; give --weights=raw")
    self.kind, self._root = kind if "ema" in both else None, root
    self._names = {
      "/".join(path[1:]): ".".join(path) for path in stored if path[0] == root
    }
    self._open_name, self._open_array = None, None  # the parameter being read

  @property
  def paths(self) -> set[str]:
    """Of the parameters, as "blocks/qkv/kernel"."""
    return set(self._names)

  def check(self, parameters: Sequence[Parameter]) -> dict[str, np.dtype]:
    """The stored dtype of each parameter; nothing but descriptions is read.

    Raises:
      UserError: the step has other parameters or shapes, or describes more values than
        its files can hold.
    """
    same_names(self._step, self.paths, {parameter.path for parameter in parameters})
    dtypes, claimed = {}, 0
    for parameter in parameters:
      path, wanted = parameter.path, parameter.shape
      array = self._array(path)
      if tuple(array.shape) != wanted:
        found = list(array.shape)
        raise UserError(f"{self._step}: {path} is {found}, must be {list(wanted)}")
      dtypes[path] = weight_dtype(f"{self._step}: {path}", array.dtype.numpy_dtype)
      chunk = array.chunk_layout.read_chunk.shape
      if any(c > max(1, n) for c, n in zip(chunk, wanted, strict=True)):
        raise UserError(f"{self._step}: {path} is stored in parts of {list(chunk)}")
      claimed += math.prod(wanted) * dtypes[path].itemsize
    if claimed > _MOST_ZEROS * self._bytes + _SMALL:
      raise UserError(
        f"{self._step}: describes parameters of {claimed} bytes in files of "
        f"{self._bytes}"
      )
    return dtypes

  def read(self, parameter: Parameter, piece: Piece) -> np.ndarray:
    """A piece of a parameter; UserError if its bytes are damaged or missing.

    Stored chunks are decoded one after another, and kept while the parameter is read if
    they do not follow its pieces, as those of training do not: that is once the
    parameter in memory and one compressed chunk.
    """
    if self._open_name != parameter.path:
      self._open_name, self._open_array = None, None
      array = self._array(parameter.path)
      chunk = array.chunk_layout.read_chunk.shape
      follows = tuple(chunk) == parameter.piece_shape
      # With room for what the cache itself needs, or chunks would be decoded again.
      size = int(np.prod(array.shape)) * array.dtype.numpy_dtype.itemsize
      kept = 0 if follows else size + size // 16 + 2**20
      self._open_array = self._array(parameter.path, kept)
      self._open_name = parameter.path
    array = self._open_array
    try:
      return _read_by_chunks(array, parameter.index(piece))
    except ERRORS as error:
      raise self._wrong(parameter.path, error, "is damaged") from None

  def check_sum(self, path: str, found: int) -> None:
    """UserError if a parameter, read whole, has not the checksum that was saved.

    Args:
      path: of the parameter.
      found: `checksums.of_piece` of all its pieces, summed modulo 2^32.
    """
    sums = self.meta.get("checksums")
    if sums is None:  # converted by a version that wrote none
      return
    if not isinstance(sums, dict) or sums.get(f"{self._root}/{path}") != found:
      raise UserError(f"{self._state}: {path}: is damaged, it is not what was saved")

  def _array(self, path: str, kept: int = 0) -> ts.TensorStore:
    """An open array that keeps up to `kept` decoded bytes."""
    spec = {
      "driver": self._driver,
      "kvstore": kvstore(self._folder, self._names[path], self._ocdbt),
      "fill_missing_data_reads": False,
      "context": {"cache_pool": {"total_bytes_limit": kept}},
    }
    try:
      return ts.open(spec, read=True).result()
    except ERRORS as error:
      raise self._wrong(path, error, "cannot be read") from None

  def _wrong(self, path: str, error: Exception, what: str) -> UserError:
    """What an error of tensorstore says of a parameter, or of a store."""
    if places.is_remote(self._step) and (refusal := refusals.refusal(error)):
      return UserError(f"{self._step}: {refusal}")
    return UserError(f"{self._state}: {path}: {what} ({reason(error)})")


def _read_by_chunks(array: ts.TensorStore, index: tuple[slice, ...]) -> np.ndarray:
  """A box of an array, one stored chunk at a time."""
  shape, chunk = array.shape, array.chunk_layout.read_chunk.shape
  index = (*index, *(slice(None) for _ in shape[len(index) :]))
  box = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
  values = np.empty([stop - start for start, stop in box], array.dtype.numpy_dtype)
  firsts = (
    range(start - start % step, stop, step)
    for (start, stop), step in zip(box, chunk, strict=True)
  )
  for corner in itertools.product(*firsts):
    inside = [
      (max(start, first), min(stop, first + step))
      for (start, stop), first, step in zip(box, corner, chunk, strict=True)
    ]
    here = tuple(slice(low, high) for low, high in inside)
    there = tuple(
      slice(low - start, high - start)
      for (low, high), (start, _) in zip(inside, box, strict=True)
    )
    values[there] = array[here].read().result()
  return values


def _paths(file: pathlib.Path, tree: Mapping) -> list[tuple[str, ...]]:
  try:
    entries = tree["tree_metadata"].values()
    keys = [[key["key"] for key in entry["key_metadata"]] for entry in entries]
  except (KeyError, TypeError, AttributeError):
    raise UserError(f"{file}: is damaged, it names no parameters") from None
  for path in keys:
    for key in path:
      if type(key) not in (str, int) or "/" in str(key):
        raise UserError(f"{file}: '{shown(key)}' is no name of a parameter")
  return [tuple(map(str, path)) for path in keys if path]


def kvstore(state: pathlib.Path, name: str, ocdbt: bool) -> dict:
  """A parameter in a folder, given by a path and not by a URL, which is no literal."""
  base = {"driver": "file", "path": f"{state}/"}
  if places.is_remote(state):
    bucket, path = places.bucket_and_name(state)
    base = {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
  if ocdbt:
    return {"driver": "ocdbt", "base": base, "path": f"{name}/"}
  return {**base, "path": f"{base['path']}{name}/"}


def reason(error: BaseException) -> str:
  """A library's error in few words: the system's own where there is one."""
  text = getattr(error, "strerror", None) or str(error) or type(error).__name__
  system = re.search(r"OS error (\d+)", text)
  if system:
    return os.strerror(int(system[1]))
  return text.splitlines()[0].split(" [")[0][:200]


def weight_dtype(name: str, dtype: np.dtype) -> np.dtype:
  """The dtype itself; UserError if weights cannot have it."""
  if dtype not in WEIGHT_DTYPES.values():
    known = ", ".join(WEIGHT_DTYPES)
    raise UserError(f"{name} has dtype {dtype.name}; must be one of {known}")
  return dtype
