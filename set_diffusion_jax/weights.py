"""Weights of a checkpoint: reading them, and starting a new model from them."""

import dataclasses
import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from set_diffusion_jax import data, sharding
from set_diffusion_jax.config import Config, MeshConfig
from set_diffusion_jax.convert import orbax
from set_diffusion_jax.convert.layout import parameters as parameters_of
from set_diffusion_jax.convert.located import located
from set_diffusion_jax.convert.meta import read_meta
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import check_link, step_number
from set_diffusion_jax.model import build_network
from set_diffusion_jax.numerics import settled
from set_diffusion_jax.storage import places, workdir
from set_diffusion_jax.storage.checkpoint import Checkpoints, abstract


class Stored(NamedTuple):
  """A checkpoint's weights with what is needed to use them rightly.

  Attributes:
    config: the configuration that they were trained with.
    params: the parameter tree, replicated on all devices.
    tokenizer: text to ids and back.
    step: optimiser steps that they have seen.
    meta: everything that the checkpoint says about itself.
    origin: gs://BUCKET/PATH, of a work directory with its step, or hf://ORG/NAME@COMMIT
      that they come from; None: from this disk.
  """

  config: Config
  params: dict
  tokenizer: data.Tokenizer
  step: int
  meta: dict
  origin: str | None = None


@settled()
def read_weights(
  path: str | pathlib.Path,
  weights: str | None = None,
  mesh: Mesh | None = None,
  backbone_config: str | pathlib.Path | None = None,
) -> Stored:
  """The weights of a checkpoint of any supported format.

  Args:
    path: a work directory, whose last step is taken, or one step's directory; or what
      `convert` reads: a PyTorch-format directory or file. Each may be in a bucket, as
      gs://BUCKET/PATH, where steps are read in place; hf://ORG/NAME[@REVISION] is
      fetched into the hub's cache.
    weights: "ema" or "raw"; None: what the configuration evaluates, and otherwise the
      EMA where there is one.
    mesh: whose devices they are laid out on; None: on all devices, replicated.
    backbone_config: a Qwen3 configuration, as `convert` takes it.

  Raises:
    UserError: there is no checkpoint, or it is damaged.
  """
  mesh = sharding.make_mesh(MeshConfig()) if mesh is None else mesh
  with located(path) as place:
    stored = _read(place.path, weights, mesh, backbone_config)
  return stored if stored.origin else stored._replace(origin=place.origin)


def _read(
  path: pathlib.Path, weights: str | None, mesh: Mesh, backbone_config
) -> Stored:
  remote = places.is_remote(path)  # a work directory or a step
  foreign = os.path.lexists(path / "config.json") and not _is_workdir(path)
  if not remote and (path.is_file() or foreign):
    return _read_foreign(path, weights, mesh, backbone_config)
  if backbone_config is not None:
    right = f"left out: {path} is a work directory, which has its own"
    raise UserError(f"--backbone-config={backbone_config}: must be {right}")
  folder, step = _find(path)
  with Checkpoints(folder) as checkpoints:
    if step not in checkpoints.steps:
      raise UserError(f"{path}: has no checkpoint of step {step}")
    where = folder / str(step)
    if not remote:  # a bucket has no links
      check_link(where, path)
    meta = checkpoints.restore_meta(step)
    read_meta(meta, str(where))
    config = Config.from_dict(meta["config"])
    tokenizer = data.restore_tokenizer(meta["tokenizer"])
    network = build_network(config.model, tokenizer.vocabulary.size)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    layout = sharding.state_shardings(shapes, mesh)
    weights = weights or config.evaluate.weights
    if weights == "ema" and "source" in meta:  # a converted checkpoint
      raise UserError(f"--weights=ema: {path} holds one set of weights; leave it out")
    parameters = parameters_of(config.model, tokenizer.vocabulary.size)
    orbax.Reader(where, weights).check(parameters)  # before any value is read
    name = {"ema": "ema", "raw": "params"}[weights]
    params = checkpoints.restore_weights(step, meta, name, abstract(shapes, layout))
  return Stored(config, params, tokenizer, step, meta, str(where) if remote else None)


def _is_workdir(path: pathlib.Path) -> bool:
  return (path / workdir.CHECKPOINTS).is_dir() or workdir.is_run(path)


def _read_foreign(
  path: pathlib.Path, weights: str | None, mesh: Mesh, backbone_config
) -> Stored:
  """Weights in a PyTorch format, widened to float32."""
  source = open_source(path, weights, backbone_config)
  params = source.tree()
  layout = sharding.state_shardings(params, mesh)
  return Stored(
    source.config,
    sharding.place(params, layout),
    data.restore_tokenizer(source.described),
    source.step or 0,
    {"notes": source.notes},
  )


def _find(path: pathlib.Path) -> tuple[pathlib.Path, int]:
  """The folder of steps, and the step that a path names, or else the last one."""
  inside, step = workdir.names_step(path), step_number(path.name)
  if step is not None and places.exists(path / "state"):
    return path.parent, step
  if inside:
    workdir.read(path.parent.parent)
    return path.parent, step
  workdir.read(path)
  return path / workdir.CHECKPOINTS, workdir.newest_step(path)


@dataclasses.dataclass(frozen=True)
class Graft:
  """What became of each parameter when a model was started from other weights.

  Attributes:
    loaded: taken over as it is.
    partly: taken over in the rows of the vocabulary that both have.
    new: not in the checkpoint; freshly initialised.
    left_out: in the checkpoint, but not in the model.
  """

  loaded: tuple[str, ...]
  partly: tuple[str, ...]
  new: tuple[str, ...]
  left_out: tuple[str, ...]

  def lines(self) -> list[str]:
    """The report, a line for each kind that occurs."""
    rows = [f"{len(self.loaded)} parameters loaded"]
    for kind, names in (
      ("partly (the vocabulary differs)", self.partly),
      ("new", self.new),
      ("left out", self.left_out),
    ):
      if names:
        rows.append(f"{len(names)} {kind}: {', '.join(names)}")
    return rows


def graft(fresh: dict, stored: dict, where: str) -> tuple[dict, Graft]:
  """A model's fresh parameters, replaced by stored ones of the same name.

  Args:
    fresh: the parameter tree of the model.
    stored: that of the checkpoint.
    where: names the checkpoint in an error.

  Raises:
    UserError: a parameter has another shape, beyond the size of the vocabulary, or
      none has the same name.
  """
  mine, theirs = _by_name(fresh), _by_name(stored)
  loaded, partly, result = [], [], dict(mine)
  for name in mine.keys() & theirs.keys():
    old, new = theirs[name], mine[name]
    if old.shape == new.shape:
      loaded.append(name)
      result[name] = old.astype(new.dtype)
      continue
    axis = _VOCABULARY_AXIS.get(name)
    if axis is None or _without(old.shape, axis) != _without(new.shape, axis):
      raise UserError(
        f'init_from = "{where}": {name} has shape {list(old.shape)} there and '
        f"{list(new.shape)} here; model.* must agree with the checkpoint's"
      )
    partly.append(name)
    common = (slice(None),) * axis + (slice(min(old.shape[axis], new.shape[axis])),)
    result[name] = new.at[common].set(old[common].astype(new.dtype))
  if not loaded:
    raise UserError(f'init_from = "{where}": has no parameter of this backbone')
  tree = jax.tree.unflatten(jax.tree.structure(fresh), [result[n] for n in mine])
  report = Graft(
    tuple(sorted(loaded)),
    tuple(sorted(partly)),
    tuple(sorted(mine.keys() - theirs.keys())),
    tuple(sorted(theirs.keys() - mine.keys())),
  )
  return tree, report


_VOCABULARY_AXIS = {"embedding": 0, "head/kernel": 1, "head/bias": 0}


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
  return shape[:axis] + shape[axis + 1 :]


def _by_name(tree: dict) -> dict[str, jax.Array]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): jnp.asarray(leaf) for path, leaf in leaves}
