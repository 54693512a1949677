"""Weights to convert, whatever their format: parameters that can be read in pieces."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from set_diffusion_jax import workdir
from set_diffusion_jax.config import Config
from set_diffusion_jax.convert import layout, orbax
from set_diffusion_jax.convert.directory import read_directory
from set_diffusion_jax.convert.generation import GENERATION
from set_diffusion_jax.convert.layout import Parameter, Piece
from set_diffusion_jax.convert.pickled import Archive
from set_diffusion_jax.convert.tensors import (
  WEIGHT_DTYPES,
  Tensor,
  read_safetensors,
  read_shards,
)
from set_diffusion_jax.convert.tokenizer_files import kind as kind_of
from set_diffusion_jax.convert.tokenizer_files import read_pieces
from set_diffusion_jax.convert.training import Weights, read_pickled, weights
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.training.metrics import read_metrics

PICKLED = (".bin", ".ckpt", ".pt", ".pth")
# Travel as text, both ways.
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "chat_template.jinja",
)


@dataclasses.dataclass(frozen=True)
class Source:
  """Weights with what is needed to use them rightly.

  Attributes:
    path: a directory or file.
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
) -> Source:
  """Weights of any supported format, detected.

  Args:
    path: a work directory, its `checkpoints/STEP`, a PyTorch-format directory, or a
      file of tensors with its `config.json` beside it.
    kind: "ema" or "raw"; None: EMA where there is a choice.
    backbone_config: a Qwen3 configuration of Transformers, for a published directory
      that names its Qwen3 by a name that is not known here.

  Raises:
    UserError: not a checkpoint, damaged, or not a model that this project has.
  """
  if not path.exists():
    raise UserError(f"{path}: no such file or directory")
  step = _step(path)
  if step is None:
    return _pytorch(path, kind, backbone_config)
  if backbone_config is not None:
    right = f"left out: {path} is a work directory, which has its own"
    raise UserError(f"--backbone-config={backbone_config}: must be {right}")
  return _orbax(step, kind)


def _step(path: pathlib.Path) -> pathlib.Path | None:
  """The directory of an Orbax step, if the path is one or holds some."""
  if path.parent.name == workdir.CHECKPOINTS and path.name.isdigit():
    return path
  folder = path / workdir.CHECKPOINTS
  if not folder.is_dir():
    return None
  steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
  if not steps:
    raise UserError(f"{path}: has no checkpoint yet")
  return folder / str(max(steps))


def _orbax(step: pathlib.Path, kind: str | None) -> Source:
  reader = orbax.Reader(step, kind)
  meta = reader.meta
  try:
    config = Config.from_dict(_as_trained(meta))
    tokenizer = meta["tokenizer"]
    ids = {name: int(tokenizer[name]) for name in Vocabulary.__dataclass_fields__}
    vocabulary = Vocabulary(**ids)
  except (KeyError, TypeError, ValueError):
    raise UserError(f"{step}: its meta names no configuration or tokenizer") from None
  parameters = layout.parameters(config.model, vocabulary.size)
  named = {parameter.path: parameter for parameter in parameters}
  _same_names(step, reader.paths, set(named))
  dtypes = {}
  for path, parameter in named.items():
    if reader.shape(path) != parameter.shape:
      found = list(reader.shape(path))
      raise UserError(f"{step}: {path} is {found}, must be {list(parameter.shape)}")
    dtypes[path] = orbax.weight_dtype(f"{step}: {path}", reader.dtype(path))
  source = meta.get("source") or {}
  return Source(
    path=step,
    format="orbax",
    config=config,
    vocabulary=vocabulary,
    used_ids=tokenizer.get("used_ids", vocabulary.size),
    kind=reader.kind or source.get("weights"),
    step=int(step.name),
    parameters=parameters,
    dtypes=dtypes,
    reader=reader,
    buffers=_stored_buffers(meta.get("buffers") or {}),
    published=meta.get("published"),
    qwen3=meta.get("qwen3"),
    files={**(tokenizer.get("files") or {}), **(meta.get("files") or {})},
    tokenizer=tokenizer["name"],
    evaluation=meta.get("evaluation") or _evaluation(step),
    notes=list(source.get("notes") or ()),
    weights_from=meta.get("weights_from"),
    versions=meta.get("versions") or {},
  )


def _as_trained(meta: Mapping) -> dict:
  """The configuration with the range of noise levels that training ended with."""
  config, mask = meta["config"], (meta.get("schedule") or {}).get("mask")
  if mask is None:
    return config
  levels = {"t_min": mask["t_min"], "t_max": mask["t_max"]}
  return {**config, "corruption": {**config["corruption"], **levels}}


def _stored_buffers(stored: Mapping) -> dict[str, np.ndarray]:
  return {
    name: np.frombuffer(
      bytes.fromhex(entry["bytes"]), WEIGHT_DTYPES[entry["dtype"]]
    ).reshape(entry["shape"])
    for name, entry in stored.items()
  }


def _evaluation(step: pathlib.Path) -> dict | None:
  """The held-out figures that training wrote at this step."""
  prefix = "validation/"
  for row in read_metrics(step.parent.parent / "metrics.jsonl"):
    figures = {name: value for name, value in row.items() if name.startswith(prefix)}
    if row.get("step") == int(step.name) and figures:
      return {name.removeprefix(prefix): value for name, value in figures.items()}
  return None


def _pytorch(path: pathlib.Path, kind: str | None, backbone_config) -> Source:
  folder = path if path.is_dir() else path.parent
  found = _weights(path, kind)
  files = {
    name: _text(folder / name)
    for name in (*TOKENIZER_FILES, GENERATION)
    if (folder / name).is_file()
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
  if path.is_file():
    if path.suffix in PICKLED:
      return read_pickled(path, kind)
    if path.suffix != ".safetensors":
      right = ", ".join((".safetensors", *PICKLED))
      raise UserError(f"{path}: must be a directory, or a file ending in {right}")
    return _only_weights(path, read_safetensors(path), kind)
  for name in ("model.safetensors", "pytorch_model.bin"):
    file, index = path / name, path / f"{name}.index.json"
    if file.exists():
      return _weights(file, kind)
    if index.exists():
      read = read_safetensors if name.endswith("safetensors") else _state_dict
      return _only_weights(path, read_shards(index, read), kind)
  raise UserError(
    f"{path}: is no work directory and holds no model.safetensors, "
    "pytorch_model.bin or index of either"
  )


def _state_dict(path: pathlib.Path) -> Mapping[str, Tensor]:
  found = Archive(path).load()
  if not isinstance(found, Mapping):
    raise UserError(f"{path}: must hold a dict, holds a {type(found).__name__}")
  return found


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
  values = tensor.read()
  right = layout.inverse_frequencies(config.model.head_width, config.model.rotary_base)
  exact = tensor.dtype == np.float32
  tolerance = 1e-6 if exact else 1e-2
  if values.shape != right.shape or not np.allclose(
    values.astype(np.float32), right, rtol=tolerance, atol=0
  ):
    raise UserError(
      f"{path}: {layout.FREQUENCIES} is {list(values.shape)} [{_few(values)}]; must be "
      f"{list(right.shape)} [{_few(right)}]: base {config.model.rotary_base:g}, "
      f"{config.model.heads} heads"
    )
  orbax.weight_dtype(f"{path}: {layout.FREQUENCIES}", tensor.dtype)
  return {layout.FREQUENCIES: values}


def _few(values: np.ndarray) -> str:
  return ", ".join(f"{value:.6g}" for value in values.ravel()[:3].astype(float))


def _check_tensors(
  path: pathlib.Path, tensors: Mapping[str, Tensor], parameters: list[Parameter]
) -> dict[str, np.dtype]:
  """The dtype of each parameter; UserError for a wrong name, shape or dtype."""
  _same_names(path, set(tensors), {n for p in parameters for n in p.names()})
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


def _same_names(path: pathlib.Path, found: set[str], wanted: set[str]) -> None:
  """UserError that names one tensor too many or too few."""
  missing, extra = sorted(wanted - found), sorted(found - wanted)
  if missing:
    more = f" and {len(missing) - 1} more" if missing[1:] else ""
    raise UserError(f"{path}: {missing[0]} is missing{more}")
  if extra:
    more = f" and {len(extra) - 1} more" if extra[1:] else ""
    raise UserError(f"{path}: {extra[0]}{more}: is no parameter of this model")


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
