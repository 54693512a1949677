"""Settings of a PyTorch directory: its JSON files, tensors and tokenizer must agree."""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from set_diffusion_jax.convert import layout
from set_diffusion_jax.convert.generation import GENERATION, with_generation
from set_diffusion_jax.convert.ids import tokens_of
from set_diffusion_jax.convert.qwen3 import BACKBONE_CONFIG, Backbone
from set_diffusion_jax.convert.settings import Settings, read_settings, with_levels
from set_diffusion_jax.convert.tensors import Tensor, read_json
from set_diffusion_jax.convert.training import Weights
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import names
from set_diffusion_jax.inputs.fields import Fields

_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


class Directory(NamedTuple):
  """What a PyTorch directory says.

  Attributes:
    settings: how its weights are used.
    tensors: by canonical name, without a head that is the embedding.
    published: its `config.json`.
    backbone: the Qwen3 configuration that came with it.
  """

  settings: Settings
  tensors: dict[str, Tensor]
  published: dict
  backbone: dict | None


def read_directory(
  folder: pathlib.Path,
  found: Weights,
  files: Mapping[str, str],
  backbone_config: str | pathlib.Path | None,
) -> Directory:
  """Reads the settings, and checks them against the tensors and the tokenizer.

  Args:
    folder: where `config.json` is.
    found: the tensors.
    files: texts of the tokenizer's files, by name.
    backbone_config: a Qwen3 configuration to be used in place of the one beside it.

  Raises:
    UserError: a file that is missing or damaged, a field that is unknown, or two things
      that disagree.
  """
  file = folder / "config.json"
  if not os.path.lexists(file):
    raise UserError(f"{folder}: has no config.json; the published one is needed")
  values = read_json(names.part(file, folder))
  backbone = None
  if "hf_config" in values:
    fields = Fields(file, values)
    values, around = fields("hf_config", dict), fields("hyperparameters", dict, {})
    fields.finish(())
    inner = around.get("qwen3_config")
    backbone = None if inner is None else Backbone(file, inner)
  beside = folder / BACKBONE_CONFIG
  if backbone_config is None and os.path.lexists(beside):
    backbone_config = names.part(beside, folder)
  if backbone_config is not None:
    path = pathlib.Path(backbone_config)
    backbone = Backbone(path, read_json(path))
  shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
  text, tokens = files.get("tokenizer.json"), None
  if text is not None:
    tokens = tokens_of(text, str(folder / "tokenizer.json"))
  settings = read_settings(file, values, shapes, backbone, tokens)
  settings = with_levels(settings, found.levels)
  generation = folder / GENERATION
  if os.path.lexists(generation):
    fields = Fields(generation, read_json(names.part(generation, folder)))
    settings = with_generation(settings, fields)
  tensors, model = dict(found.tensors), settings.config.model
  if model.backbone == "qwen3" and model.tied:
    head = tensors.pop(_HEAD, None)
    if head is not None and not _same(head, tensors[_EMBEDDING]):
      settings.notes.append(
        f"{_HEAD}: has other values than the embedding and is left out, as "
        "tie_word_embeddings is true; Transformers 4 does the same"
      )
  stored = None if backbone is None else dict(backbone.values)
  return Directory(settings, tensors, values, stored)


def _same(a: Tensor, b: Tensor) -> bool:
  """Whether two tensors have the same bits, compared some rows at a time."""
  if (a.dtype, a.shape) != (b.dtype, b.shape):
    return False
  rows = a.shape[0]
  step = max(1, layout.PIECE_BYTES * rows // max(1, a.nbytes))
  return all(
    np.array_equal(
      *(x.read(start, min(start + step, rows)).view(np.uint8) for x in (a, b))
    )
    for start in range(0, rows, step)
  )
