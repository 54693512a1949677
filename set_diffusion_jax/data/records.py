"""Records of the shards of a prepared corpus, on a disk or in a bucket.

A record of tokens is the ids of some tokens and the bytes of text that each stands for.
array_record reads gs:// itself, one request for each record, and asks again, for many
minutes, after answers that may pass (429, 5xx, a broken connection).
"""

import collections
import concurrent.futures
import os
import pathlib
import re
import struct
import threading
from collections.abc import Sequence

import grain
import numpy as np

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import Opened
from set_diffusion_jax.storage import places

REQUESTS = 64  # records that are asked for at once, each taking the way to a bucket
_ANSWER = re.compile(r"with a last message of (.*?)\s*; reading gs://", re.DOTALL)
_HEAD = struct.Struct("<IBBxx")  # tokens, bytes of an id, bytes of a size


def encode_record(ids: np.ndarray, sizes: np.ndarray) -> bytes:
  """A record of ids and of the bytes that each stands for, in as few bytes as fit."""
  parts = [array.astype(np.min_scalar_type(array.max())) for array in (ids, sizes)]
  widths = [part.dtype.itemsize for part in parts]
  return _HEAD.pack(len(ids), *widths) + b"".join(
    part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts
  )


def decode_record(record: bytes) -> tuple[np.ndarray, np.ndarray]:
  """The ids of a record and the bytes that each stands for."""
  count, wide, narrow = _HEAD.unpack_from(record)
  ids = np.frombuffer(record, f"<u{wide}", count, _HEAD.size)
  return ids, np.frombuffer(record, f"<u{narrow}", count, _HEAD.size + wide * count)


class Records:
  """The records of the shards of a side, one after another.

  Attributes:
    remote: whether they are in a bucket.

  Args:
    folder: of the prepared corpus.
    shards: their files and numbers of records, as the manifest has them.
    where: names the folder in messages.

  Raises:
    UserError: the first record of a bucket cannot be read.
  """

  def __init__(self, folder: pathlib.Path, shards: Sequence[dict], where: str):
    self._where, self.remote = where, places.is_remote(folder)
    # Kept for as long as the records are read.
    self._opened = None if self.remote else Opened(folder)
    home = os.fspath(folder if self._opened is None else self._opened.path)
    # With the number of records in its name no file is opened before it is read.
    paths = [f"{home}/{shard['file']}[0:{shard['records']}]" for shard in shards]
    self._source = grain.sources.ArrayRecordDataSource(paths)
    # array_record has credentials of its own, which are asked for here, in time.
    if self.remote and len(self):
      self[0]

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> bytes:
    try:
      return self._source[index]
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(f"{self._where}: a shard {_problem(str(error))}") from None


def _problem(text: str) -> str:
  """What an error of array_record says: of the bytes, or of the way to them."""
  if answer := _ANSWER.search(text):
    return f"cannot be read, the store says: {' '.join(answer[1].split())[:120]}"
  reason = text.strip().splitlines()[0][:120]
  if reason.startswith("open() failed"):  # nothing was read
    return f"cannot be read ({reason})"
  return f"is damaged ({reason})"


class Shared:
  """Records that sequences share, each asked for once as long as it is remembered.

  Many threads may read at once; who wants what another has asked for waits for it.

  Args:
    records: to be read.
    most: how many are remembered.
  """

  def __init__(self, records: Records, most: int = 4 * REQUESTS):
    self._records, self._most = records, most
    self._asked: collections.OrderedDict[int, concurrent.futures.Future]
    self._asked = collections.OrderedDict()
    self._lock = threading.Lock()

  def __getitem__(self, index: int) -> bytes:
    with self._lock:
      answer = self._asked.get(index)
      first = answer is None
      if first:
        answer = self._asked[index] = concurrent.futures.Future()
        if len(self._asked) > self._most:
          self._asked.popitem(last=False)
    if first:
      try:
        answer.set_result(self._records[index])
      except BaseException as error:
        with self._lock:
          self._asked.pop(index, None)
        answer.set_exception(error)
    return answer.result()
