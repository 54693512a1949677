"""Orbax checkpoints: self-contained steps of a work directory.

checkpoints/STEP/state   parameters, EMA, optimiser state, step, noise range, root key
checkpoints/STEP/data    position of the data iterator
checkpoints/STEP/meta    format version, configuration, tokenizer, code, checksums
damaged/STEP             a step that could not be restored, moved aside

Files are written in the background. On a disk they are renamed into place at once; in
a bucket, mounted or not, where no folder can be renamed, a step counts from the marker
that is written last. So a step is whole or not there; checksums of all values tell
what has changed since.
"""

import contextlib
import logging
import pathlib
import time
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from set_diffusion_jax.errors import NonFiniteError, Preempted, UserError
from set_diffusion_jax.inputs.paths import Opened
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.jobs.phases import here
from set_diffusion_jax.storage import event_loops, folders, places, refusals, steps
from set_diffusion_jax.storage.checksums import checksums
from set_diffusion_jax.storage.saved import (
  FORMAT_VERSION,
  DamagedError,
  SavedStep,
  agreed,
)

_METRIC = "nats_per_token"
# Arrays are stored in parts of at most this size, so that a part of a large parameter
# can be read without all of it.
_CHUNK = ocp.SaveArgs(chunk_byte_size=64 * 2**20)


class Restored(NamedTuple):
  """A step as it was saved.

  Attributes:
    step: optimiser steps taken.
    state: a TrainState.
    meta: see `Checkpoints.save`.
    news: a line for each newer step that is damaged.
  """

  step: int
  state: object
  meta: dict
  news: list[str]


class _Failures(logging.Filter):
  """Hears of what fails in the threads in which Orbax saves.

  Orbax raises it once all processes have come to the end of the save; they never do
  where others wait for what this one has not written.
  """

  def __init__(self):
    super().__init__()
    self.first: BaseException | None = None

  def filter(self, record: logging.LogRecord) -> bool:
    """Takes notice of a record; it is logged as it is."""
    if record.threadName == "async_save" and record.exc_info and self.first is None:
      self.first = record.exc_info[1]
    return True


class Checkpoints:
  """The checkpoints of one work directory.

  Reading needs no more than the folder and changes nothing in it: a run may be saving
  there. As a context, with `keep_latest`, it saves: asynchronously, the `keep_latest`
  newest steps and the `keep_best` best evaluated ones are kept.
  """

  def __init__(
    self, folder: pathlib.Path, keep_latest: int | None = None, keep_best: int = 0
  ):
    self.folder = places.absolute(folder)
    self._keep = keep_latest, keep_best
    self._failures, self._loops = _Failures(), contextlib.ExitStack()
    self._opened: Opened | None = None
    self._manager: ocp.CheckpointManager | None = None

  def __enter__(self) -> "Checkpoints":
    latest, best = self._keep
    if latest is None:
      return self
    ranked = policies.BestN(
      get_metric_fn=lambda metrics: metrics[_METRIC],
      reverse=True,
      n=best,
      keep_checkpoints_without_metrics=False,
    )
    keep = [policies.LatestN(latest), ranked]
    folder, mode = self.folder, ocp.options.AtomicityMode.AUTO
    if not processes.from_first(lambda: places.renames(folder)):
      mode = ocp.options.AtomicityMode.COMMIT_FILE
    processes.from_first(lambda: steps.mark(folder))
    if not places.is_remote(folder):
      folder.parent.mkdir(parents=True, exist_ok=True)
      self._opened = Opened(folder.parent)  # Orbax looks for its files by patterns
      folder = self._opened.path / folder.name
    self._loops.enter_context(event_loops.orderly())
    # Before any that holds records back.
    logging.getLogger("absl").filters.insert(0, self._failures)
    self._manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        # Saving is decided by the training loop alone.
        save_decision_policy=policies.FixedIntervalPolicy(1),
        cleanup_tmp_directories=True,
        atomicity_options=ocp.options.AtomicityOptions(mode=mode),
      ),
    )
    return self

  def __exit__(self, kind, *exception) -> None:
    # What ends only this process must not wait for a save that others take part in.
    agreed = kind is None or issubclass(kind, Preempted | NonFiniteError)
    try:
      if self._manager is not None and (agreed or jax.process_count() == 1):
        with here.phase("save"):
          self._wait()
          self._manager.close()
    finally:
      logging.getLogger("absl").removeFilter(self._failures)
      self._loops.close()

  @property
  def steps(self) -> list[int]:
    """Finished checkpoints, ascending."""
    return steps.numbers(self.folder)

  def save(self, step: int, state, data, meta: dict, nats_per_token: float | None):
    """Starts saving a step; returns before it is on disk.

    Args:
      step: optimiser steps taken.
      state: a TrainState; its buffers may be donated afterwards.
      data: a grain iterator whose state is the same in every process.
      meta: plain JSON values.
      nats_per_token: of an evaluation at this very step, if there was one.
    """
    self._wait()
    metrics = None if nats_per_token is None else {_METRIC: nats_per_token}
    sums = jax.device_get(checksums(state))
    described = {
      "format_version": FORMAT_VERSION,
      **meta,
      "checksums": {name: int(value) for name, value in sums.items()},
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state, jax.tree.map(lambda _: _CHUNK, state)),
        data=ocp.args.JsonSave(data.get_state()),
        meta=ocp.args.JsonSave(described),
      ),
      metrics=metrics,
    )

  def check(self) -> None:
    """Raises what this process has met while it saved in the background."""
    if self._failures.first is not None and jax.process_count() > 1:
      raise self._failures.first

  def _wait(self) -> None:
    """Waits for the end of a save, of which others may be kept by a fault here."""
    while jax.process_count() > 1 and self._manager.is_saving_in_progress():
      self.check()
      time.sleep(0.002)
    self._manager.wait_until_finished()

  def restore(self, step: int, state, data):
    """The state of a step, laid out as the abstract `state`; `data` moves along.

    Neither the mesh nor the number of processes need be those that saved it.

    Raises:
      DamagedError: it holds other values than were saved, or they cannot be decoded.
      UserError: it could not be read, though it may be whole.
    """
    restored, _, position = self._load(step, state)
    self._move(data, step, position)
    return restored

  def _load(self, step: int, state):
    """State, meta and data position of a whole step; the errors of `restore`."""
    saved = self._saved(step)

    def read():
      meta = saved.meta()
      args = ocp.args.StandardRestore(state)
      restored = saved.read("state", ocp.StandardCheckpointHandler(), args)
      position = saved.read("data", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
      return restored, meta, position

    restored, meta, position = agreed(read)
    saved.check(meta, restored, "")
    return restored, meta, position

  def restore_newest(self, state, data) -> Restored | None:
    """The newest step that is whole; None where there is no step at all.

    A damaged step is moved aside, to be looked at, once an older one is found whole.

    Raises:
      UserError: every step is damaged, one could not be read though it may be whole,
        or another format version wrote it.
    """
    damaged: dict[int, str] = {}
    for step in processes.from_first(self._newest_first):
      try:
        restored, meta, position = self._load(step, state)
      except DamagedError as error:
        damaged[step] = str(error)
        continue
      self._move(data, step, position)
      news = processes.from_first(lambda: self._set_aside(damaged))
      return Restored(step, restored, meta, news)
    if damaged:
      last = damaged[max(damaged)]
      raise UserError(f"{last}; no other step is whole, give a new --workdir")
    return None

  def _newest_first(self) -> list[int]:
    with refusals.explained(str(self.folder)):
      return self.steps[::-1]

  def _move(self, data, step: int, position) -> None:
    """Moves `data` to the position of a step; UserError if it is none there."""
    try:
      data.set_state(position)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
      raise UserError(
        f"{self.folder / str(step) / 'data'}: is no position in this data ({error!r}); "
        "remove the step to go on from an older one"
      ) from error

  def _set_aside(self, damaged: dict[int, str]) -> list[str]:
    """Moves steps out of the folder; what is to be said about it."""
    news, aside = [], self.folder.parent / "damaged"
    for step, line in damaged.items():
      places.make_folder(aside)
      number = sum(name.startswith(f"{step}") for name in places.names(aside))
      target = aside / (f"{step}.{number}" if number else f"{step}")
      folders.move(self.folder / str(step), target)
      news.append(f"WARNING: {line}; moved to {target}, an older step is used")
    return news

  def restore_meta(self, step: int) -> dict:
    """The `meta` of a step; UserError if another format version wrote it.

    Otherwise the errors of `restore`.
    """
    return self._saved(step).meta()

  def restore_weights(self, step: int, meta: dict, name: str, params) -> dict:
    """Only `params` or `ema` of a step, laid out as the abstract `params`.

    Args:
      step: optimiser steps taken.
      meta: of `restore_meta`.
      name: "params" or "ema".
      params: abstract arrays.

    Raises:
      UserError: as of `restore`.
    """
    partial = {name: params}
    args = ocp.args.PyTreeRestore(
      item=partial,
      restore_args=ocp.checkpoint_utils.construct_restore_args(partial),
      partial_restore=True,
    )
    saved = self._saved(step)
    read = lambda: saved.read("state", ocp.PyTreeCheckpointHandler(), args)
    weights = agreed(read)[name]
    saved.check(meta, weights, f"{name}/")
    return weights

  def _saved(self, step: int) -> SavedStep:
    return SavedStep(self.folder / str(step))


def abstract(tree, shardings):
  """Shapes, dtypes and shardings of a tree, for `restore`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )
