"""Weights to convert, whatever their format: parameters that can be read in pieces."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from set_diffusion_jax.config import Config
from set_diffusion_jax.convert import layout, orbax
from set_diffusion_jax.convert.directory import read_directory
from set_diffusion_jax.convert.generation import GENERATION
from set_diffusion_jax.convert.layout import Parameter, Piece
from set_diffusion_jax.convert.meta import TOKENIZER_FILES, figures, read_meta
from set_diffusion_jax.convert.pickled import Archive
from set_diffusion_jax.convert.tensors import (
  Tensor,
  read_safetensors,
  read_shards,
)
from set_diffusion_jax.convert.tokenizer_files import kind as kind_of
from set_diffusion_jax.convert.tokenizer_files import read_pieces
from set_diffusion_jax.convert.training import (
  Weights,
  read_pickled,
  state_dict,
  weights,
)
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import names, sizes
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.storage import places, steps, workdir

PICKLED = (".bin", ".ckpt", ".pt", ".pth")
TENSOR_FILES = (".safetensors", *PICKLED)
_LONGEST_ROW = 2**20  # of a metrics file


@dataclasses.dataclass(frozen=True)
class Source:
  """Weights with what is needed to use them rightly.

  Attributes:
    path: a directory or file.
    origin: what others can find it by: that path, or a place in a bucket or on the hub.
    format: "orbax" or "pytorch".
    config: how they are used; what they were trained with as far as it is known.
    vocabulary: ids; `size` counts the rows of the embedding.
    used_ids: rows that stand for a token.
    kind: "ema" or "raw"; None: the source does not say.
    step: optimiser steps, if known.
    parameters: all of them.
    dtypes: stored, by path.
    reader: an `orbax.Reader`, or tensors by canonical name.
    buffers: published arrays that are no parameters, by canonical name.
    published: the published `config.json`, as it was, if there was one.
    qwen3: the plain Qwen3 configuration that came with it.
    files: text files that travel along, by name.
    tokenizer: its kind, as `data.restore_tokenizer` knows it.
    evaluation: figures of these weights, if the source has some.
    notes: what the source did not say, and what was left out.
    weights_from: the source's own account of where they come from.
    versions: of what computed them, as `version.versions` names it, if known.
  """

  path: pathlib.Path
  origin: str
  format: str
  config: Config
  vocabulary: Vocabulary
  used_ids: int
  kind: str | None
  step: int | None
  parameters: list[Parameter]
  dtypes: dict[str, np.dtype]
  reader: orbax.Reader | dict[str, Tensor]
  buffers: dict[str, np.ndarray]
  published: dict | None
  qwen3: dict | None
  files: dict[str, str]
  tokenizer: str
  evaluation: dict | None
  notes: list[str]
  weights_from: dict | None
  versions: dict[str, str]

  def read(self, parameter: Parameter, piece: Piece) -> np.ndarray:
    """A piece of a parameter, in the layout of this project."""
    if isinstance(self.reader, orbax.Reader):
      return self.reader.read(parameter, piece)
    tensor = self.reader[parameter.tensor_name(piece.layer)]
    return parameter.from_rows(tensor.read(piece.start, piece.stop), piece)

  @property
  def described(self) -> dict:
    """What `data.restore_tokenizer` makes the tokenizer of."""
    ids = dataclasses.asdict(self.vocabulary)
    described = {"name": self.tokenizer, **ids, "used_ids": self.used_ids}
    return {**described, "files": self.files}

  def tree(self) -> dict:
    """The whole parameter tree, widened to float32."""
    tree: dict = {}
    for parameter in self.parameters:
      values = np.empty(parameter.shape, np.float32)
      for piece in parameter.pieces():
        values[parameter.index(piece)] = self.read(parameter, piece)
      *groups, name = parameter.path.split("/")
      node = tree
      for group in groups:
        node = node.setdefault(group, {})
      node[name] = values
    return tree


def open_source(
  path: pathlib.Path,
  kind: str | None = None,
  backbone_config: str | pathlib.Path | None = None,
  origin: str | None = None,
) -> Source:
  """Weights of any supported format, detected.

  Args:
    path: a work directory or its `checkpoints/STEP`, on a disk or in a bucket; a
      PyTorch-format directory, or a file of tensors with its `config.json` beside it.
    kind: "ema" or "raw"; None: EMA where there is a choice.
    backbone_config: a Qwen3 configuration of Transformers, for a published directory
      that names its Qwen3 by a name that is not known here.
    origin: where the path was fetched from; None: it was on this disk.

  Raises:
    UserError: not a checkpoint, damaged, or not a model that this project has.
  """
  try:
    if not places.is_remote(path):
      path.stat()
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or "is no name of a file"
    reason = reason[:1].lower() + reason[1:]
    raise UserError(f"{names.shown(str(path), 400)}: {reason}") from None
  step = _step(path)
  if step is None:
    found = _pytorch(path, kind, backbone_config)
  elif backbone_config is not None:
    right = f"left out: {path} is a work directory, which has its own"
    raise UserError(f"--backbone-config={backbone_config}: must be {right}")
  else:
    found = _orbax(step, kind)
  if origin is None:
    return found
  inside = found.path.relative_to(path).parts
  return dataclasses.replace(found, origin="/".join([origin, *inside]))


def check_outside(source: Source, destination: pathlib.Path) -> None:
  """UserError if a destination would be taken for a part of the source."""
  if source.format == "pytorch" or places.is_remote(source.path):
    return  # its files have names of their own, or are on no disk
  place, own = map(os.path.realpath, (destination, source.path.parent))
  if names.is_inside(place, own):
    raise UserError(f"{destination}: is inside of {own}; give another directory")


def _step(path: pathlib.Path) -> pathlib.Path | None:
  """The directory of an Orbax step, if the path is one or holds some."""
  remote = places.is_remote(path)
  if workdir.names_step(path):
    if not remote and path.is_dir() and not steps.finished(path):
      raise UserError(f"{path}: has no finished checkpoint of step {path.name}")
    return path
  folder = path / workdir.CHECKPOINTS
  if not remote and not folder.is_dir():
    return None
  step = folder / str(workdir.newest_step(path))
  if not remote:  # a bucket has no links
    names.check_link(step, path)
  return step


def _orbax(step: pathlib.Path, kind: str | None) -> Source:
  reader = orbax.Reader(step, kind)
  meta = read_meta(reader.meta, str(step))
  parameters = layout.parameters(meta.config.model, meta.vocabulary.size)
  dtypes = reader.check(parameters)
  return Source(
    path=step,
    origin=str(step),
    format="orbax",
    config=meta.config,
    vocabulary=meta.vocabulary,
    used_ids=meta.used_ids,
    kind=reader.kind or meta.weights,
    step=int(step.name),
    parameters=parameters,
    dtypes=dtypes,
    reader=reader,
    buffers=meta.buffers,
    published=meta.published,
    qwen3=meta.qwen3,
    files=meta.files,
    tokenizer=meta.tokenizer,
    evaluation=meta.evaluation or _evaluation(step),
    notes=meta.notes,
    weights_from=meta.weights_from,
    versions=meta.versions,
  )


def _evaluation(step: pathlib.Path) -> dict | None:
  """The held-out figures that training wrote at this step."""
  file, prefix = step.parent.parent / "metrics.jsonl", "validation/"
  if not places.exists(file):
    return None
  if places.is_remote(file):
    opened = io.BytesIO(places.read_bytes(file))
  else:
    opened = names.part(file, file.parent).open("rb")
  with opened as lines:
    while line := lines.readline(_LONGEST_ROW):
      try:
        row = parse_json(line, str(file), depth=4, values=_LONGEST_ROW)
      except UserError:  # a last line that was cut short by a kill, for one
        continue
      if isinstance(row, dict) and row.get("step") == int(step.name):
        found = {n: value for n, value in row.items() if n.startswith(prefix)}
        if found:
          found = {n.removeprefix(prefix): value for n, value in found.items()}
          return figures(found, str(file))
  return None


def _pytorch(path: pathlib.Path, kind: str | None, backbone_config) -> Source:
  folder = path if path.is_dir() else path.parent
  found = _weights(path, kind)
  files = {
    name: _text(names.part(folder / name, folder))
    for name in (*TOKENIZER_FILES, GENERATION)
    if os.path.lexists(folder / name)
  }
  files |= read_pieces(folder)
  directory = read_directory(folder, found, files, backbone_config)
  settings, tensors = directory.settings, directory.tensors
  notes = [*settings.notes, *(f"{name}: is left out" for name in found.dropped)]
  parameters = layout.parameters(settings.config.model, settings.vocabulary.size)
  buffers = _take_buffers(path, tensors, settings.config)
  dtypes = _check_tensors(path, tensors, parameters)
  return Source(
    path=path,
    origin=str(path),
    format="pytorch",
    config=settings.config,
    vocabulary=settings.vocabulary,
    used_ids=settings.used_ids,
    kind=found.kind,
    step=None,
    parameters=parameters,
    dtypes=dtypes,
    reader=tensors,
    buffers=buffers,
    published=directory.published,
    qwen3=directory.backbone,
    files=files,
    tokenizer=kind_of(files),
    evaluation=None,
    notes=notes,
    weights_from=None,
    versions={},
  )


def _weights(path: pathlib.Path, kind: str | None) -> Weights:
  if not path.is_dir():
    names.part(path, path)  # the user has named it: a link may lead anywhere
    if path.suffix in PICKLED:
      return read_pickled(path, kind)
    if path.suffix != ".safetensors":
      right = ", ".join(TENSOR_FILES)
      raise UserError(f"{path}: must be a directory, or a file ending in {right}")
    return _only_weights(path, read_safetensors(path), kind)
  for name in ("model.safetensors", "pytorch_model.bin"):
    file, index = path / name, path / f"{name}.index.json"
    if os.path.lexists(file):
      return _weights(names.part(file, path), kind)
    if os.path.lexists(index):
      read = read_safetensors if name.endswith("safetensors") else _state_dict
      names.part(index, path)
      return _only_weights(path, read_shards(index, read), kind)
  raise UserError(
    f"{path}: is no work directory and holds no model.safetensors, "
    "pytorch_model.bin or index of either"
  )


def _state_dict(path: pathlib.Path) -> Mapping[str, Tensor]:
  return state_dict(path, Archive(path).load())


def _only_weights(path, tensors: Mapping[str, Tensor], kind: str | None) -> Weights:
  if kind is not None:
    raise UserError(
      f"{path}: --weights={kind}: holds one set of weights and does not say which; "
      "leave --weights out"
    )
  return weights(path, tensors, None)


def _take_buffers(path, tensors: dict[str, Tensor], config: Config) -> dict:
  """Removes the rotary frequencies, checked to be those that are used here."""
  tensor = tensors.pop(layout.FREQUENCIES, None)
  if tensor is None or config.model.backbone != "dit":
    return {}
  where = f"{path}: {layout.FREQUENCIES}"
  if tensor.shape != (config.model.head_width // 2,):
    right = [config.model.head_width // 2]
    raise UserError(f"{where} is {list(tensor.shape)}; must be {right}")
  orbax.weight_dtype(where, tensor.dtype)
  values = tensor.read()
  layout.check_frequencies(values, config.model, str(path))
  return {layout.FREQUENCIES: values}


def _check_tensors(
  path: pathlib.Path, tensors: Mapping[str, Tensor], parameters: list[Parameter]
) -> dict[str, np.dtype]:
  """The dtype of each parameter; UserError for a wrong name, shape or dtype."""
  wanted = sum(p.layers or 1 for p in parameters)
  if wanted > 100 * len(tensors) + 100:  # and too many to be named one by one
    raise UserError(f"{path}: has {len(tensors)} tensors, {wanted} are needed")
  layout.same_names(path, set(tensors), {n for p in parameters for n in p.names()})
  sizes.check_files(tensors.values())
  dtypes = {}
  for parameter in parameters:
    for name in parameter.names():
      tensor, wanted = tensors[name], parameter.tensor_shape
      if tensor.shape != wanted:
        raise UserError(
          f"{path}: {name} is {list(tensor.shape)}, must be {list(wanted)}"
        )
      dtype = orbax.weight_dtype(f"{path}: {name}", tensor.dtype)
      if dtypes.setdefault(parameter.path, dtype) != dtype:
        first = dtypes[parameter.path].name
        raise UserError(
          f"{path}: {name} is {dtype.name}, must be {first} as layer 0 is"
        )
  return dtypes


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
