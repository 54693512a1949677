"""Orbax checkpoints: self-contained steps of a work directory.

checkpoints/STEP/state   parameters, EMA, optimiser state, step, noise range, root key
checkpoints/STEP/data    position of the data iterator
checkpoints/STEP/meta    format version, configuration, tokenizer, code version
"""

import pathlib

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from set_diffusion_jax.errors import UserError

FORMAT_VERSION = 2
_METRIC = "nats_per_token"
# Arrays are stored in parts of at most this size, so that a part of a large parameter
# can be read without all of it.
_CHUNK = ocp.SaveArgs(chunk_byte_size=64 * 2**20)


class Checkpoints:
  """The checkpoints of one work directory; saving is asynchronous.

  The `keep_latest` newest steps and the `keep_best` best evaluated ones are kept.
  Without `keep_latest` the directory is only read: a run may be saving in it.
  """

  def __init__(
    self, folder: pathlib.Path, keep_latest: int | None = None, keep_best: int = 0
  ):
    read_only = keep_latest is None
    best = policies.BestN(
      get_metric_fn=lambda metrics: metrics[_METRIC],
      reverse=True,
      n=keep_best,
      keep_checkpoints_without_metrics=False,
    )
    keep = [policies.LatestN(keep_latest), best]
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        # Saving is decided by the training loop alone.
        save_decision_policy=policies.FixedIntervalPolicy(1),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  @property
  def steps(self) -> list[int]:
    """Finished checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state, data, meta: dict, nats_per_token: float | None):
    """Starts saving a step; returns before it is on disk.

    Args:
      step: optimiser steps taken.
      state: a TrainState; its buffers may be donated afterwards.
      data: a grain iterator.
      meta: plain JSON values.
      nats_per_token: of an evaluation at this very step, if there was one.
    """
    metrics = None if nats_per_token is None else {_METRIC: nats_per_token}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state, jax.tree.map(lambda _: _CHUNK, state)),
        data=grain.checkpoint.CheckpointSave(data),
        meta=ocp.args.JsonSave({"format_version": FORMAT_VERSION, **meta}),
      ),
      metrics=metrics,
    )

  def restore(self, step: int, state, data):
    """The state of a step, laid out as the abstract `state`; `data` moves along."""
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(state),
      data=grain.checkpoint.CheckpointRestore(data),
    )
    return self._restore(step, args).state

  def _restore(self, step: int, args):
    """What Orbax restores; UserError where the step is damaged."""
    try:
      return self._manager.restore(step, args=args)
    except (KeyError, ValueError, OSError, TypeError) as error:
      reason = str(error).strip().splitlines()[0][:160] if str(error) else repr(error)
      raise UserError(
        f"{self._manager.directory}/{step}: is damaged or incomplete ({reason})"
      ) from error

  def restore_meta(self, step: int) -> dict:
    """The `meta` of a step; UserError if another format version wrote it."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = self._restore(step, args).meta
    if meta.get("format_version") != FORMAT_VERSION:
      raise UserError(
        f"checkpoint step {step}: format version {meta.get('format_version')}, "
        f"this code reads {FORMAT_VERSION}"
      )
    return meta

  def restore_weights(self, step: int, name: str, params) -> dict:
    """Only `params` or `ema` of a step, laid out as the abstract `params`."""
    partial = {name: params}
    args = ocp.args.PyTreeRestore(
      item=partial,
      restore_args=ocp.checkpoint_utils.construct_restore_args(partial),
      partial_restore=True,
    )
    return self._restore(step, ocp.args.Composite(state=args)).state[name]


def abstract(tree, shardings):
  """Shapes, dtypes and shardings of a tree, for `restore`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )
