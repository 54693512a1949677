"""What a published `config.json` says, in this project's terms.

Three kinds of file are read: the Set Diffusion layout (`backbone_config`,
`noise_config`), the older bd3lms and mdlm one (`hidden_dim`, `n_blocks`), and plain
Qwen3. What a file does not say is either an error or a line of the notes; what it says
is used, of no effect, or an error.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from set_diffusion_jax.config import Config
from set_diffusion_jax.convert.dit import LONGEST, dit_backbone, read_older
from set_diffusion_jax.convert.ids import published_ids
from set_diffusion_jax.convert.noise import METHODS, read_method
from set_diffusion_jax.convert.qwen3 import (
  OF_NO_EFFECT,
  Backbone,
  plain_qwen3,
  wrapped_qwen3,
)
from set_diffusion_jax.convert.shapes import Shapes, shape_of
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.fields import Fields

_MODEL_TYPES = {
  "AR": ("ar",),
  "MDLM": ("mdlm",),
  "BD3LM": ("bd3lm",),
  "SetDLM": ("bd3lm", "setdlm"),
}
_OF_NO_EFFECT = (
  *("attn_backend", "backbone_is_decoder_only", "noise_config", "sampler_config"),
  *("block_size", "eval_block_size", "mdlm_loss_scale", "sampling_eps_max"),
  *("sampling_eps_min", "setdlm_eos_last_in_target_order", "tokenizer_name"),
  *("papl_alpha", "papl_tau", "train_on_nelbo"),  # of the training loss
)


class Settings(NamedTuple):
  """How weights are used rightly.

  Attributes:
    config: with model, method, corruption, data.length and decode filled in.
    vocabulary: ids; `size` counts all rows of the embedding.
    used_ids: rows that stand for a token; the others pad the matrix.
    notes: one line for each thing that the source does not say.
  """

  config: Config
  vocabulary: Vocabulary
  used_ids: int
  notes: list[str]


def read_settings(
  path: pathlib.Path,
  values: Mapping,
  shapes: Shapes,
  backbone: Backbone | None = None,
  tokens: int | None = None,
) -> Settings:
  """Settings of a `config.json`.

  Args:
    path: of the file, for messages.
    values: its object.
    shapes: of the tensors, by canonical name.
    backbone: the Qwen3 configuration of a published model that is made of one.
    tokens: 1 + the largest id of the tokenizer, if there is one.

  Raises:
    UserError: a field that is missing, wrong, unknown, or has no counterpart here; or
      one that disagrees with the tensors or the tokenizer.
  """
  fields = Fields(path, values)
  if backbone is not None and not isinstance(backbone.values, Mapping):
    raise UserError(f"{backbone.path}: the Qwen3 configuration must be an object")
  if "backbone_config" in values:
    return _published(fields, shapes, backbone, tokens)
  if backbone is not None:
    raise UserError(
      f"{backbone.path}: is for a published model with backbone_config; {path} has none"
    )
  notes: list[str] = []
  if "hidden_dim" in values:
    return _settings(*read_older(fields, shapes, tokens, notes), notes)
  if values.get("model_type") == "qwen3":
    return _settings(*plain_qwen3(fields, shapes, tokens, notes), notes)
  fields.wrong("model_type", "qwen3, or a published layout with backbone_config")


def _published(fields: Fields, shapes: Shapes, qwen3, tokens) -> Settings:
  notes: list[str] = []
  family = (fields("architectures", list, []) or [None])[0]
  if type(family) is not str or family not in METHODS:
    fields.wrong("architectures", "one of " + ", ".join(METHODS))
  fields.only(
    {
      "architectures": ([family],),
      "model_type": _MODEL_TYPES[family],
      "shift_logits": (False,),
      "time_conditioned_backbone": (False,),
    }
  )
  length, backbone = fields.positive("length", int), fields.group("backbone_config")
  if length > LONGEST:
    fields.wrong("length", f"at most {LONGEST} tokens")
  target = backbone("_target_", str).rpartition(".")[2]
  dit = target == "DIT"
  if dit and qwen3 is not None:
    raise UserError(f"{qwen3.path}: is for a Qwen3 backbone; {fields.path} has a DiT")
  if dit:
    model = dit_backbone(backbone, shapes, causal=family == "AR")
  elif target == "AutoModelFromPreTrained":
    model = wrapped_qwen3(backbone, shapes, qwen3, notes)
  else:
    backbone.wrong("_target_", "a DIT or AutoModelFromPreTrained")
  settings = {"model": model, **read_method(fields, family, length, notes)}
  if fields.get("keep_clean_bos") is None:
    notes.append("keep_clean_bos: not said; sequences are taken to have no given BOS")
  bos = fields("keep_clean_bos", bool, False)
  settings["data"] = {"length": length, "bos": bos}
  for name in ("setdlm_fht_cache_order", "train_on_context"):
    if fields(name, bool, False):
      notes.append(f"{name}: is not followed")
  embedding = "vocab_embed.embedding" if dit else "embed_tokens.weight"
  rows = shape_of(fields.path, shapes, embedding, 2)[0]
  vocabulary, used = published_ids(fields, rows, dit, tokens, notes)
  fields.finish((*_OF_NO_EFFECT, *OF_NO_EFFECT))
  return _settings(settings, vocabulary, used, notes)


def _settings(groups: dict, vocabulary: Vocabulary, used: int, notes) -> Settings:
  """Converted weights are one set of parameters: the directory's raw ones."""
  groups["evaluate"] = {"weights": "raw"}
  groups["data"]["source"] = "none"
  return Settings(Config.from_dict(groups), vocabulary, used, notes)


def with_levels(settings: Settings, levels: tuple[float, float] | None) -> Settings:
  """The settings with a clipped range of noise levels that the weights carry."""
  if levels is None:
    return settings
  values = settings.config.to_dict()
  values["corruption"].update(t_min=levels[0], t_max=levels[1])
  return settings._replace(config=Config.from_dict(values))
