"""Orbax to PyTorch: a directory that the published code loads unchanged."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from set_diffusion_jax.config import Config
from set_diffusion_jax.convert import layout
from set_diffusion_jax.convert.generation import GENERATION, generation_config
from set_diffusion_jax.convert.layout import Parameter, Piece
from set_diffusion_jax.convert.published import (
  model_card,
  published_config,
  qwen3_config,
  write_json,
)
from set_diffusion_jax.convert.qwen3 import BACKBONE_CONFIG, Backbone
from set_diffusion_jax.convert.settings import read_settings
from set_diffusion_jax.convert.source import Source
from set_diffusion_jax.convert.tensors import WEIGHT_DTYPES
from set_diffusion_jax.convert.tokenizer_files import write_file
from set_diffusion_jax.convert.torch_directory import Planned, SafetensorsWriter
from set_diffusion_jax.convert.transfer import Cast, transfer
from set_diffusion_jax.errors import UserError


def write_pytorch(
  source: Source,
  cast: Cast,
  fresh: pathlib.Path,
  shard_size: int,
  evaluation: Mapping | None,
) -> None:
  """Writes weights, settings, tokenizer files and a model card."""
  names = sorted({cast.dtype(p.path).name for p in source.parameters})
  dtype = names[0] if len(names) == 1 else "float32"
  values, qwen3 = _settings(source, cast, dtype)
  buffers = {name: cast.array(array) for name, array in _buffers(source, dtype).items()}
  backbone = source.config.model.backbone

  def name_of(parameter: Parameter, layer: int | None) -> str:
    return layout.published(parameter.tensor_name(layer), backbone)

  def write(parameter: Parameter, piece: Piece, values: np.ndarray) -> None:
    rows = parameter.to_rows(values, piece)
    writer.write(name_of(parameter, piece.layer), piece.start, rows)

  planned = [
    Planned(layout.published(name, backbone), cast.dtype(p.path), p.tensor_shape)
    for p in source.parameters
    for name in p.names()
  ]
  for name, array in buffers.items():
    planned.append(Planned(layout.published(name, backbone), array.dtype, array.shape))
  with SafetensorsWriter(fresh, planned, shard_size) as writer:
    transfer(source, cast, lambda *_: None, write)
    for name, array in buffers.items():
      writer.write(layout.published(name, backbone), 0, array)
  (fresh / "config.json").write_text(write_json(values))
  if qwen3 is not None:
    (fresh / BACKBONE_CONFIG).write_text(write_json(qwen3))
  files = dict(source.files)
  here = source.published is None  # trained here, so that no file came with them
  if here and source.config.method.record.published == "SetDLM":
    files[GENERATION] = write_json(generation_config(source.config, source.vocabulary))
  for name, text in files.items():
    write_file(fresh, name, text)
  card = model_card(source, ", ".join(names), evaluation or source.evaluation)
  name = "backslashreplace"  # a path in it need not be UTF-8
  (fresh / "README.md").write_text(card, encoding="utf-8", errors=name)


def _buffers(source: Source, dtype: str) -> dict[str, np.ndarray]:
  """What the published DiT stores beside its parameters."""
  model = source.config.model
  if source.buffers or model.backbone != "dit":
    return source.buffers
  frequencies = layout.inverse_frequencies(model.head_width, model.rotary_base)
  return {layout.FREQUENCIES: frequencies.astype(WEIGHT_DTYPES[dtype])}


def _settings(source: Source, cast: Cast, dtype: str) -> tuple[dict, dict | None]:
  """`config.json`, as it was where it still holds, and Qwen3's own beside it."""
  if source.published is not None and _still_holds(source):
    return cast.settings(source.published), cast.settings(source.qwen3)
  config, vocabulary = source.config, source.vocabulary
  values = published_config(config, vocabulary, dtype, source.used_ids)
  if config.model.backbone == "dit":
    return values, None
  return values, qwen3_config(config.model, vocabulary, config.data.length, dtype)


def _still_holds(source: Source) -> bool:
  """Whether the stored published settings mean what the configuration says."""
  shapes = {name: p.tensor_shape for p in source.parameters for name in p.names()}
  if "backbone_config" not in source.published:
    return False
  backbone = None if source.qwen3 is None else Backbone(source.path, source.qwen3)
  try:
    read = read_settings(source.path, source.published, shapes, backbone)
  except UserError:
    return False
  same = _identity(read.config) == _identity(source.config)
  return same and read.vocabulary == source.vocabulary


def _identity(config: Config) -> tuple:
  """What the published settings express: not how it is computed or trained."""
  model = dataclasses.replace(config.model, dtype="float32", remat="none")
  data = (config.data.length, config.data.bos)
  return model, config.method, data, config.corruption.schedule
