"""What a published `config.json` says, in this project's terms.

Three kinds of file are read: the Set Diffusion layout (`backbone_config`,
`noise_config`), the older bd3lms and mdlm one (`hidden_dim`, `n_blocks`), and plain
Qwen3. What a file does not say is either an error or a line of the notes.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from set_diffusion_jax.config import Config
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError

METHODS = {"AR": "ar", "MDLM": "masked", "BD3LM": "block", "SetDLM": "set"}
DIT_EPSILON, DIT_BASE = 1e-5, 10_000.0
QWEN3_EPSILON, QWEN3_BASE = 1e-6, 1e6

_LEVEL_SCHEDULES = {
  "LinearNoise": "linear",
  "CosineNoise": "cosine",
  "LogarithmicNoise": "log",
}

_KINDS = {
  bool: "true or false",
  dict: "an object",
  float: "a number",
  int: "an integer",
  list: "a list",
  str: "a text",
}

Shapes = Mapping[str, tuple[int, ...]]


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


class Fields:
  """A JSON object whose missing and mistyped fields are errors with their names."""

  def __init__(self, path: pathlib.Path, values: Mapping, prefix: str = ""):
    self.path, self.values, self._prefix = path, values, prefix

  def __call__(self, name: str, kind: type, default=None):
    """A field's value; without it, the default, or an error if that is None."""
    value = self.values.get(name)
    if value is None:
      value = default
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:
      self.wrong(name, _KINDS[kind])
    return value

  def group(self, name: str) -> "Fields":
    """A nested object."""
    return Fields(self.path, self(name, dict), f"{self._prefix}{name}.")

  def wrong(self, name: str, right: str):
    """Raises: the field's name, its value, what would be right."""
    value = "is missing" if name not in self.values else f"= {self.values[name]!r}"
    raise UserError(f"{self.path}: {self._prefix}{name} {value}; must be {right}")


def read_settings(path: pathlib.Path, values: Mapping, shapes: Shapes, qwen3=None):
  """Settings of a `config.json`.

  Args:
    path: of the file, for messages.
    values: its object.
    shapes: of the tensors, by canonical name.
    qwen3: the plain Qwen3 configuration that lies beside it, if one does.

  Raises:
    UserError: a field that is missing, wrong, or has no counterpart here.
  """
  fields = Fields(path, values)
  if "backbone_config" in values:
    return _published(fields, shapes, qwen3)
  if "hidden_dim" in values:
    return _older(fields, shapes)
  if values.get("model_type") == "qwen3":
    return _plain_qwen3(fields, shapes)
  fields.wrong("model_type", "qwen3, or a published layout with backbone_config")


def _published(fields: Fields, shapes: Shapes, qwen3: Mapping | None) -> Settings:
  notes: list[str] = []
  family = (fields("architectures", list, []) or [None])[0]
  if family not in METHODS:
    fields.wrong("architectures", "one of " + ", ".join(METHODS))
  length, backbone = fields("length", int), fields.group("backbone_config")
  target = backbone("_target_", str).rpartition(".")[2]
  dit = "DIT" in target
  if dit:
    model = _dit_model(backbone, shapes, "hidden_size", "num_layers")
    if (family == "AR") != backbone("causal_attention", bool, False):
      backbone.wrong("causal_attention", f"{json_bool(family == 'AR')} for {family}")
  elif target == "AutoModelFromPreTrained":
    model = _qwen3_model(fields, shapes, qwen3, notes)
    wanted = backbone("num_layers", int, model["layers"])
    if wanted not in (-1, model["layers"]):
      backbone.wrong("num_layers", f"{model['layers']}, as the tensors have")
  else:
    backbone.wrong("_target_", "a DIT or AutoModelFromPreTrained")
  settings = {"model": model, **_method(fields, family, length, notes)}
  if fields.values.get("keep_clean_bos") is None:
    notes.append("keep_clean_bos: not said; sequences are taken to have no given BOS")
  bos = fields("keep_clean_bos", bool, False)
  settings["data"] = {"length": length, "bos": bos}
  vocabulary, used = _vocabulary(fields, shapes, dit, notes)
  return _settings(settings, vocabulary, used, notes)


def _settings(settings: dict, vocabulary: Vocabulary, used: int, notes) -> Settings:
  """Converted weights are one set of parameters: the directory's raw ones."""
  settings["evaluate"] = {"weights": "raw"}
  settings["data"]["source"] = "none"
  return Settings(Config.from_dict(settings), vocabulary, used, notes)


def _dit_model(fields: Fields, shapes: Shapes, width: str, layers: str) -> dict:
  up = _shape(fields.path, shapes, "blocks.0.mlp.0.weight", 2)
  return {
    "backbone": "dit",
    "layers": fields(layers, int),
    "width": fields(width, int),
    "heads": fields("n_heads", int),
    "ffn": up[0],
    "dropout": fields("dropout", float, 0.0),
    "adaln": fields("adaln", bool, True),
    "condition_width": fields("cond_dim", int, 128),
    "norm_epsilon": DIT_EPSILON,
    "rotary_base": DIT_BASE,
  }


def _qwen3_model(
  fields: Fields, shapes: Shapes, plain: Mapping | None, notes: list[str]
) -> dict:
  """Sizes come from the tensors; the base and epsilon only a Qwen3 file has."""
  path = fields.path
  width = _shape(path, shapes, "embed_tokens.weight", 2)[1]
  attention = "layers.0.self_attn."
  size = _shape(path, shapes, attention + "q_norm.weight", 1)[0]
  if plain is None:
    notes.append(
      f"rope_theta, rms_norm_eps: not said; Qwen3's {QWEN3_BASE:g}, {QWEN3_EPSILON:g}"
    )
  base, epsilon = _qwen3_constants(Fields(path, plain or {}))
  return {
    "backbone": "qwen3",
    "layers": count_layers(shapes),
    "width": width,
    "heads": _shape(path, shapes, attention + "q_proj.weight", 2)[0] // size,
    "kv_heads": _shape(path, shapes, attention + "k_proj.weight", 2)[0] // size,
    "head_size": size,
    "ffn": _shape(path, shapes, "layers.0.mlp.gate_proj.weight", 2)[0],
    "tied": "lm_head.weight" not in shapes,
    "norm_epsilon": epsilon,
    "rotary_base": base,
  }


def _qwen3_constants(fields: Fields) -> tuple[float, float]:
  """The rotary base and the norm's epsilon; variants that are not here are refused."""
  for name in ("attention_bias", "use_sliding_window"):
    if fields.values.get(name):
      fields.wrong(name, "false")
  # Newer Transformers write rope_theta into a group of rotary settings.
  rotary = fields.values.get("rope_parameters") or fields.values.get("rope_scaling")
  rotary = Fields(fields.path, rotary or {}, "rope_parameters.")
  if rotary("rope_type", str, "default") != "default":
    rotary.wrong("rope_type", "default")
  base = rotary("rope_theta", float, fields("rope_theta", float, QWEN3_BASE))
  return base, fields("rms_norm_eps", float, QWEN3_EPSILON)


def count_layers(shapes: Shapes) -> int:
  """Blocks that the canonical names mention."""
  found = (re.match(r"(?:layers|blocks)\.(\d+)\.", name) for name in shapes)
  return 1 + max((int(match[1]) for match in found if match), default=-1)


def _method(fields: Fields, family: str, length: int, notes: list[str]) -> dict:
  method: dict = {"name": METHODS[family]}
  settings: dict = {"method": method}
  if family == "AR":
    return settings
  noise = fields.group("noise_config")
  kind = noise("_target_", str).rpartition(".")[2]
  if family == "SetDLM":
    if kind != "StaggeredNoise":
      noise.wrong("_target_", "StaggeredNoise for SetDLM")
    method.update(_position_offset(noise, length))
    method["eos_last"] = fields("setdlm_eos_last_in_target_order", bool, False)
    if fields("inefficient_training", bool, False):
      notes.append("inefficient_training: training continues without it")
    settings["decode"] = {"commit": "confidence"}
    window = noise("desired_block_size", int)
    settings["decode"]["window"] = window
    notes.append(
      f"decode.window: not said; S = {window}, as the published code samples"
    )
    return settings
  settings["corruption"] = {"schedule": _level_schedule(fields, noise, kind)}
  for field, name in (("t_min", "sampling_eps_min"), ("t_max", "sampling_eps_max")):
    if fields.values.get(name) is not None:
      settings["corruption"][field] = fields(name, float)
  if family == "BD3LM":
    method["block_size"] = fields("block_size", int)
  return settings


def _level_schedule(fields: Fields, noise: Fields, kind: str) -> str:
  if kind == "ExponentialNoise":
    powers = {2: "square", 0.5: "square_root"}
    power = noise.values.get("exp", 2)
    if power not in powers:
      noise.wrong("exp", "2 or 0.5")
    return powers[power]
  if kind not in _LEVEL_SCHEDULES:
    noise.wrong("_target_", "one of " + ", ".join((*_LEVEL_SCHEDULES, "Exponential")))
  if kind == "LinearNoise" and fields("mdlm_loss_scale", bool, False):
    return "log_linear"
  return _LEVEL_SCHEDULES[kind]


def _position_offset(noise: Fields, length: int) -> dict:
  """N and C of a StaggeredNoise (METHOD section 2).

  `desired_block_size` is S, twice the mean number of masked tokens; `max_block_size`
  is S_max, how many positions are active: S, 2 S or the whole length in the released
  models. Given `k` or `b` take its place. S = 1 and S = S_max mean k = 1, w = S / L.
  """
  for name in ("length", "block_size"):
    if noise(name, int) != length:
      noise.wrong(name, f"{length}, the sequence length")
  desired = noise("desired_block_size", float)
  area = desired / (2 * length)
  active = noise.values.get("max_block_size")
  given_k, given_b = noise.values.get("k"), noise.values.get("b")
  if given_k is not None:
    if noise("k", float) <= 0:
      noise.wrong("k", "above 0")
    width = area * (given_k + 1) / given_k
  elif given_b is not None:
    width = noise("b", float)
  elif desired == 1 or desired == active:
    width = 2 * area
  else:
    active = noise("max_block_size", float)
    return {"name": "set", "max_set_size": active, "prediction_budget": desired / 2}
  if not area < width <= 1:
    noise.wrong("desired_block_size", f"such that {area:g} < width <= 1, not {width:g}")
  if width == 1:  # the uniform order, whatever the power
    return {"name": "any_order"}
  active = width * (length - 1) / (1 - width)
  if math.isclose(active, round(active), rel_tol=1e-12):
    active = float(round(active))
  return {"name": "set", "max_set_size": active, "prediction_budget": desired / 2}


def _vocabulary(
  fields: Fields, shapes: Shapes, dit: bool, notes: list[str]
) -> tuple[Vocabulary, int]:
  """Ids of a published file; rows beyond its vocabulary only pad the matrix."""
  used = fields("vocab_size", int)
  name = "vocab_embed.embedding" if dit else "embed_tokens.weight"
  rows = _shape(fields.path, shapes, name, 2)[0]
  multiple = fields("pad_vocab_size_multiple", int, 1)
  padded = -(-used // max(1, multiple)) * max(1, multiple)
  # A pretrained Qwen3 has more rows than its tokenizer has ids.
  if rows != padded and (dit or rows < used):
    fields.wrong("vocab_size", f"{rows}, the rows of {name}")
  if rows > used:
    notes.append(f"{rows - used} rows of the embedding, from id {used}, are padding")
  ids = {}
  for kind in ("mask", "pad", "bos", "eos"):
    key = f"{kind}_token_id"
    ids[kind] = fields.values.get(key)
    if ids[kind] is None and kind != "mask":
      ids[kind] = ids["mask"] if kind == "pad" else ids["pad"]
      notes.append(f"{key}: not said; id {ids[kind]} is taken")
    if type(ids[kind]) is not int or not 0 <= ids[kind] < rows:
      fields.wrong(key, f"an id below {rows}")
  return Vocabulary(size=rows, **ids), used


def _older(fields: Fields, shapes: Shapes) -> Settings:
  """Checkpoints of bd3lms and mdlm: GPT-2 ids, [MASK] appended as the last row."""
  notes = [
    "mask_token_id: not said; the last row, as those projects append it",
    "bos_token_id, eos_token_id, pad_token_id: not said; the id before [MASK], GPT-2's "
    "end of text",
  ]
  block = "block_size" in fields.values
  if fields("causal", bool, False):
    fields.wrong("causal", "false: an autoregressive model of this layout is unknown")
  length, size = fields("model_length", int), fields("vocab_size", int)
  if fields("time_conditioning", bool, False):
    fields.wrong("time_conditioning", "false; the noise level is not embedded here")
  method = {"name": "masked"}
  if block and fields("block_size", int) < length:
    method = {"name": "block", "block_size": fields("block_size", int)}
  model = _dit_model(fields, shapes, "hidden_dim", "n_blocks")
  levels = [fields.values.get(f"sampling_eps_{end}") for end in ("min", "max")]
  settings = {"model": model, "method": method, "data": {"length": length}}
  settings["data"]["bos"] = False
  settings["corruption"] = {"schedule": "linear" if block else "log_linear"}
  if None not in levels and "block_size" in method:
    low, high = map(float, levels)
    settings["corruption"].update(t_min=low, t_max=high)
  end = size - 2
  vocabulary = Vocabulary(size=size, bos=end, eos=end, pad=end, mask=size - 1)
  return _settings(settings, vocabulary, size, notes)


def _plain_qwen3(fields: Fields, shapes: Shapes) -> Settings:
  """A pretrained autoregressive model, as the start of fine-tuning."""
  notes: list[str] = []
  model = _qwen3_model(fields, shapes, fields.values, notes)
  if fields("tie_word_embeddings", bool, False) and not model["tied"]:
    notes.append("lm_head.weight: stored apart although tied; its own values are kept")
  rows = shapes["embed_tokens.weight"][0]
  eos = fields.values.get("eos_token_id")
  eos = eos[0] if isinstance(eos, list) and eos else eos
  if type(eos) is not int or not 0 <= eos < rows:
    fields.wrong("eos_token_id", f"an id below {rows}")
  ids = {"eos": eos, "mask": rows - 1}
  notes.append(f"mask_token_id: Qwen3 has none; the last row, id {rows - 1}, is taken")
  for kind in ("bos", "pad"):
    ids[kind] = fields.values.get(f"{kind}_token_id")
    if type(ids[kind]) is not int or not 0 <= ids[kind] < rows:
      ids[kind] = eos
      notes.append(f"{kind}_token_id: not said; EOS, id {eos}, is taken")
  length = min(fields("max_position_embeddings", int), 1024)
  notes.append(f"data.length: not said; {length} is taken")
  settings = {"model": model, "method": {"name": "ar"}}
  settings["data"] = {"length": length, "bos": False}
  return _settings(settings, Vocabulary(size=rows, **ids), rows, notes)


def json_bool(value: bool) -> str:
  """As JSON writes it."""
  return "true" if value else "false"


def _shape(path: pathlib.Path, shapes: Shapes, name: str, axes: int):
  if len(shapes.get(name, ())) != axes:
    right = f"a tensor of {axes} axes is needed"
    found = "is missing" if name not in shapes else f"is {list(shapes[name])}"
    raise UserError(f"{path.parent}: {name} {found}; {right}")
  return shapes[name]


def with_levels(settings: Settings, levels: tuple[float, float] | None) -> Settings:
  """The settings with a clipped range of noise levels that the weights carry."""
  if levels is None:
    return settings
  values = settings.config.to_dict()
  values["corruption"].update(t_min=levels[0], t_max=levels[1])
  return settings._replace(config=Config.from_dict(values))
