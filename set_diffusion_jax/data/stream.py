"""Documents tokenized and joined while training, for corpora too large to prepare.

Each process takes every n-th document of a permutation, so that what a step holds
depends on the number of processes, other than with prepared tokens.
"""

import collections
import copy
import hashlib
from collections.abc import Sequence

import grain
import numpy as np

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data.blocks import Frame
from set_diffusion_jax.data.records import REQUESTS
from set_diffusion_jax.data.sources import finished
from set_diffusion_jax.data.tokenizer import Tokenizer, cpus
from set_diffusion_jax.errors import UserError


class Stream:
  """Training sequences cut from documents that are tokenized on the way.

  Attributes:
    documents: at random access; they are shuffled anew in each epoch.
    notes: see `Blocks`; documents are joined, so that nothing is cut off.

  Args:
    documents: see above.
    config: says where documents end.
    tokenizer: of their text.
    frame: of the sequences.
    remote: whether each document is a request to a bucket.
  """

  notes: tuple[str, ...] = ()

  def __init__(
    self,
    documents: Sequence[str],
    config: DataConfig,
    tokenizer: Tokenizer,
    frame: Frame,
    remote: bool = False,
  ):
    self.documents, self._remote = documents, remote
    self._config, self._tokenizer, self._frame = config, tokenizer, frame

  def iterator(
    self, batch_size: int, seed: int, process: int, processes: int
  ) -> grain.DatasetIterator:
    """An endless iterator over this process's part of each global batch.

    Its state is plain JSON, good at every step, and for as many processes only.
    """
    documents = grain.MapDataset.source(self.documents).seed(seed).shuffle().repeat()
    # A thread a CPU: with more, tokenizers wait for one another. But where documents
    # come from a bucket, it is for them that most threads wait.
    threads = max(cpus(), REQUESTS) if self._remote else cpus()
    ahead = max(threads, 16 * cpus())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    ids = documents[process::processes].map(self._encode).to_iter_dataset(options)
    runs = _Joined(ids, self._frame.width, (process, processes))
    runs = runs.batch(batch_size // processes, drop_remainder=True)
    return iter(runs.map(lambda runs: self._frame.fill(runs, [0] * len(runs))))

  def _encode(self, document: str) -> np.ndarray:
    (text,) = finished(self._config, [document])
    ids = self._tokenizer.encode(text)
    if not self._config.ends_documents:
      return ids
    return np.append(ids, np.int32(self._tokenizer.vocabulary.eos))

  @property
  def digest(self) -> str:
    """SHA-256 of all that sequences are made of, if the documents have a digest."""
    parts = (tuple(self._frame), self._config.ends_documents, self.documents.digest)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Joined(grain.IterDataset):
  """The runs of `width` ids of documents that follow one another without an end."""

  def __init__(self, documents: grain.IterDataset, width: int, share: tuple[int, int]):
    super().__init__(documents)
    self._documents, self._width, self._share = documents, width, share

  def __iter__(self) -> "_JoinedIterator":
    return _JoinedIterator(iter(self._documents), self._width, self._share)

  def __str__(self) -> str:
    return f"Joined({self._width})"


class _JoinedIterator(grain.DatasetIterator):
  """Joins and cuts; its state can be written as JSON at every step.

  The state is where the parent was before the first document that is not used up, and
  how many ids of it were used. (grain's ConcatThenSplit restores wrongly from JSON.)
  """

  def __init__(self, parent: grain.DatasetIterator, width: int, share: tuple[int, int]):
    super().__init__(parent)
    self._from, self._width, self._share = parent, width, list(share)
    # Documents that are not used up: (state of the parent before it, ids left).
    self._open: collections.deque = collections.deque()
    self._used = 0  # ids of the first one
    self._ready = 0  # ids that are left

  def _take_document(self) -> None:
    before = copy.deepcopy(self._from.get_state())
    ids = next(self._from)
    self._open.append((before, ids))
    self._ready += len(ids)

  def __next__(self) -> np.ndarray:
    while self._ready < self._width:
      self._take_document()
    run, missing = [], self._width
    while missing:
      ids = self._open[0][1]
      part = ids[self._used : self._used + missing]
      run.append(part)
      missing -= len(part)
      self._used += len(part)
      if self._used == len(ids):
        self._open.popleft()
        self._used = 0
    self._ready -= self._width
    return np.concatenate(run)

  def get_state(self) -> dict:
    before = self._open[0][0] if self._open else self._from.get_state()
    return {"parent": before, "used": self._used, "share": self._share}

  def set_state(self, state: dict) -> None:
    if state["share"] != self._share:
      raise UserError(
        f"data.streaming: the run had {state['share'][1]} processes, now there are "
        f"{self._share[1]}; only prepared tokens go on with another number"
      )
    self._from.set_state(state["parent"])
    self._open.clear()
    self._used = self._ready = 0
    if state["used"]:
      self._take_document()
      self._used = state["used"]
      self._ready -= self._used
