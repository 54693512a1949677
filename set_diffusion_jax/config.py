"""Every setting: its default, its meaning and its checks, in one place.

A configuration file returns an `ml_collections.ConfigDict` that starts from
`default_config()`; `Config.from_dict` turns it into frozen dataclasses and refuses
what cannot work. No other module reads a ConfigDict or knows a default.
"""

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Mapping

import ml_collections
from ml_collections import config_dict

from set_diffusion_jax.errors import UserError

BACKBONES = ("dit", "qwen3")
METHODS = ("ar", "any_order", "set", "masked", "block", "general")
MASK_SCHEDULES = ("linear", "cosine", "square", "square_root", "log", "log_linear")
WEIGHTINGS = ("nelbo", "uniform")
NOISES = ("full", "level")
DTYPES = ("float32", "bfloat16")
DENOMINATORS = ("tokens", "masked", "sequences", "masked_sequences")
LEARNING_RATES = ("constant", "cosine")
SOURCES = ("embedded", "text")
TOKENIZERS = ("byte",)
COMPATS = ("none", "setdlms")
COMMITS = ("order", "confidence")
WEIGHTS = ("ema", "raw")
REMATS = ("none", "layer")

# What a resumed run may change: groups and fields. Text is compared by its content
# (the data fingerprint), so its path may change too.
CHANGEABLE = frozenset({
  "mesh", "evaluate", "decode", "model.remat", "data.train_path",
  "data.validation_path", "train.steps", "train.gradient_variance", "train.log_every",
  "train.evaluate_every", "train.checkpoint_every", "train.keep_latest",
  "train.keep_best",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The transformer. `ffn` is the width of the MLP's hidden layer.

  dit: layer norm, GELU, an output layer with bias; `head_size` is width / heads.
  qwen3: RMS norm, SwiGLU, grouped-query attention; the output layer may be `tied`.
  """

  backbone: str = "dit"
  layers: int = 12
  width: int = 768
  heads: int = 12
  kv_heads: int | None = None  # qwen3: heads of keys and values; None: as many
  head_size: int | None = None  # qwen3; None: width / heads
  ffn: int = 3072
  dropout: float = 0.0
  adaln: bool = False
  condition_width: int = 128  # width of the adaLN conditioning vector
  tied: bool = False  # qwen3: the output layer is the embedding
  norm_epsilon: float = 1e-5
  rotary_base: float = 10_000.0
  dtype: str = "float32"  # of the computation; parameters are always float32
  remat: str = "none"  # "layer" recomputes each layer in the backward pass

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.kv_heads or self.heads

  @property
  def head_width(self) -> int:
    """Dh."""
    return self.head_size or self.width // self.heads


@dataclasses.dataclass(frozen=True)
class MethodConfig:
  """Which sets are generated in which order.

  ar: from left to right in one stream. any_order: one position at a time in a uniformly
  random order. set: one position at a time in the order of a position-offset schedule.
  general: that schedule's reveal times, rounded to a grid, group positions into sets.
  block: blocks from left to right. masked: all positions are one set.

  For `set` and `general`, at most `max_set_size` (N) positions are active at once and
  on average `prediction_budget` (C) of them are masked; None means N / 4, the paper's
  choice.
  """

  name: str = "set"
  max_set_size: float = 8.0
  prediction_budget: float | None = None
  block_size: int = 4  # positions of a block, for `block` only
  grid: int = 32  # intervals that reveal times are rounded to, for `general` only
  noise: str = "full"  # of a general set: "full", or a noise "level" of its own
  eos_last: bool = False  # in training, EOS targets come after all other targets


@dataclasses.dataclass(frozen=True)
class CorruptionConfig:
  """Noise levels of `masked`, `block` and of `general` with noise=level.

  In training t is uniform on [t_min, t_max]; evaluation always draws from [0, 1].
  """

  schedule: str = "linear"
  t_min: float = 0.0
  t_max: float = 1.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The training loss. Evaluation is always the NELBO.

  `weighting` is of tokens masked at a noise level: nelbo, -alpha' / (1 - alpha), or
  uniform. `denominator`: tokens, nats per counted token of the global batch; masked,
  per masked one; sequences and masked_sequences, the mean over sequences of each one's
  own mean, as the published code averages.
  """

  weighting: str = "nelbo"

  denominator: str = "tokens"


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where text comes from and how it is cut into sequences of `length` tokens."""

  source: str = "embedded"
  train_path: str | None = None  # source=text: a file, or a pattern such as dir/*.txt
  validation_path: str | None = None  # None: hold out a part of train_path
  validation_fraction: float = 0.1
  tokenizer: str = "byte"
  length: int = 256  # tokens of a sequence, its BOS included
  bos: bool = True  # each sequence starts with BOS, as context that is not counted


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW after global-norm clipping, with an EMA of the parameters."""

  learning_rate: float = 3e-4
  schedule: str = "constant"  # after the warm-up: "constant" or "cosine"
  warmup_steps: int = 2500
  final_fraction: float = 0.0  # cosine: the last learning rate over the highest one
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  ema_decay: float = 0.9999


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Cadence is in optimiser steps; `batch_size` is global, in sequences."""

  steps: int = 1_000_000
  batch_size: int = 512
  accumulate: int = 1  # micro-batches a step
  seed: int = 0
  gradient_variance: bool = False  # measure it: two more backward passes a step
  log_every: int = 100
  evaluate_every: int = 5000
  checkpoint_every: int = 5000
  keep_latest: int = 2
  keep_best: int = 1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; data = -1 takes all devices that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Monte Carlo evaluation. `draws` orders are drawn for each sequence."""

  batch_size: int = 64
  draws: int = 1
  sequences: int | None = None  # evaluate the first ones only; None: all
  seed: int = 0
  weights: str = "ema"  # or "raw"


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """How text is generated.

  `commit` says which candidates a step commits. `order`: the next ones of an order
  drawn from the training policy; `confidence`: the likeliest ones of a window.
  """

  commit: str = "order"
  tokens_per_step: int = 1
  window: int | None = None  # candidates a step; None: max_set_size, rounded
  temperature: float = 1.0  # 0: the likeliest token


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
  corruption: CorruptionConfig = dataclasses.field(default_factory=CorruptionConfig)
  loss: LossConfig = dataclasses.field(default_factory=LossConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
  decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
  compat: str = "none"  # "setdlms": the published code's treatment of BOS

  @classmethod
  def from_dict(cls, settings: Mapping) -> "Config":
    """Builds and checks a configuration; UserError names the first wrong field."""
    config = _build(cls, settings, "")
    _check(config)
    return config

  def to_dict(self) -> dict:
    return dataclasses.asdict(self)

  def identity(self) -> dict:
    """The fields that must be equal for a run to be resumed, by dotted name."""
    changeable = set(CHANGEABLE)
    if self.optimizer.schedule == "cosine":
      changeable.remove("train.steps")  # the learning rate depends on it
    flat = {}
    for group, fields in self.to_dict().items():
      for name, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
        dotted = f"{group}.{name}".rstrip(".")
        if not {group, dotted} & changeable:
          flat[dotted] = value
    return flat


def default_config() -> ml_collections.ConfigDict:
  """The defaults as a locked ConfigDict: where every configuration file starts."""

  def group(cls):
    hints = typing.get_type_hints(cls)
    fields = {}
    for field in dataclasses.fields(cls):
      hint = hints[field.name]
      if dataclasses.is_dataclass(hint):
        fields[field.name] = group(hint)
      elif field.default is None:
        fields[field.name] = config_dict.placeholder(_required(hint))
      else:
        fields[field.name] = field.default
    return ml_collections.ConfigDict(fields)

  return group(Config).lock()


def _required(hint) -> type:
  """`int` of `int | None`."""
  if isinstance(hint, types.UnionType):
    return next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
  return hint


def _build(cls, settings: Mapping, prefix: str):
  hints = typing.get_type_hints(cls)
  if not isinstance(settings, Mapping | ml_collections.ConfigDict):
    name = prefix.rstrip(".") or "config"
    raise UserError(f"{name} = {settings!r}: must be a group of fields")
  values = {}
  for name in settings:
    _check_known(hints, name, prefix)
    value = settings[name]
    if dataclasses.is_dataclass(hints[name]):
      values[name] = _build(hints[name], value, f"{prefix}{name}.")
    else:
      values[name] = _typed(f"{prefix}{name}", value, hints[name])
  return cls(**values)


def _check_known(hints: Mapping, name: str, prefix: str) -> None:
  if name not in hints:
    near = difflib.get_close_matches(str(name), hints, 1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(hints)}"
    raise UserError(f"{prefix}{name} is not a field; {hint}")


def check_field(dotted: str) -> None:
  """UserError unless a dotted name such as model.width is a field or a group."""
  hints, prefix = typing.get_type_hints(Config), ""
  for name in dotted.split("."):
    _check_known(hints, name, prefix)
    group = hints[name]
    hints = typing.get_type_hints(group) if dataclasses.is_dataclass(group) else {}
    prefix += f"{name}."


def _typed(name: str, value, hint):
  wanted = _required(hint)
  if value is None and wanted is not hint:
    return None
  if wanted is float and type(value) is int:
    value = float(value)
  if type(value) is not wanted:
    raise UserError(f"{name} = {value!r}: must be of type {wanted.__name__}")
  if wanted is float and not math.isfinite(value):
    raise UserError(f"{name} = {value!r}: must be finite")
  return value


def _check(config: Config) -> None:
  """Checks ranges and combinations; UserError on the first that is wrong."""
  require = _Require(config)
  _check_fields(require)
  _check_model(require, config.model)
  _check_method(require, config.method, config.data, config.corruption)
  _check_training(require, config)


class _Require:
  """Raises UserError with a field's name and value where a condition does not hold."""

  def __init__(self, config: Config):
    self._config = config

  def value(self, name: str):
    """Of a dotted name."""
    return functools.reduce(getattr, name.split("."), self._config)

  def __call__(self, holds: bool, name: str, right: str) -> None:
    if not holds:
      raise UserError(f"{name} = {json.dumps(self.value(name))}: must be {right}")

  def one_of(self, name: str, choices: tuple[str, ...]) -> None:
    self(self.value(name) in choices, name, "one of " + ", ".join(choices))


def _check_fields(require: _Require) -> None:
  """Fields one by one."""
  require.one_of("model.backbone", BACKBONES)
  require.one_of("model.dtype", DTYPES)
  require.one_of("model.remat", REMATS)
  require.one_of("method.name", METHODS)
  require.one_of("method.noise", NOISES)
  require.one_of("corruption.schedule", MASK_SCHEDULES)
  require.one_of("loss.weighting", WEIGHTINGS)
  require.one_of("loss.denominator", DENOMINATORS)
  require.one_of("data.source", SOURCES)
  require.one_of("data.tokenizer", TOKENIZERS)
  require.one_of("optimizer.schedule", LEARNING_RATES)
  require.one_of("evaluate.weights", WEIGHTS)
  require.one_of("decode.commit", COMMITS)
  require.one_of("compat", COMPATS)

  for name in (
    "model.layers model.width model.heads model.ffn model.condition_width "
    "train.steps train.batch_size train.accumulate train.log_every "
    "train.evaluate_every train.checkpoint_every train.keep_latest "
    "mesh.fsdp mesh.tensor evaluate.batch_size evaluate.draws decode.tokens_per_step"
  ).split():
    require(require.value(name) >= 1, name, "at least 1")
  for name in "train.keep_best optimizer.warmup_steps train.seed evaluate.seed".split():
    require(require.value(name) >= 0, name, "0 or more")
  for name in ("train.seed", "evaluate.seed"):
    require(require.value(name) < 2**31, name, "below 2**31")


def _check_model(require: _Require, model: ModelConfig) -> None:
  divides = model.width % model.heads == 0
  given = model.head_size is not None
  require(given or divides, "model.width", f"a multiple of heads={model.heads}")
  even = model.head_width > 0 and model.head_width % 2 == 0
  if given:
    require(even, "model.head_size", "even and above 0 (rotary positions rotate pairs)")
  else:
    require(even, "model.heads", "such that width / heads is even (for rotary pairs)")
  if model.kv_heads is not None:
    fits = model.kv_heads > 0 and model.heads % model.kv_heads == 0
    require(fits, "model.kv_heads", f"a divisor of heads={model.heads}")
  if model.backbone == "dit":
    require(model.kv_heads is None, "model.kv_heads", "null for backbone=dit")
    require(model.head_size is None, "model.head_size", "null for backbone=dit")
    require(not model.tied, "model.tied", "false for backbone=dit")
  else:
    require(not model.adaln, "model.adaln", "false for backbone=qwen3")
  require(model.norm_epsilon > 0, "model.norm_epsilon", "above 0")
  require(0 <= model.dropout < 1, "model.dropout", "in [0, 1)")
  require(model.rotary_base > 1, "model.rotary_base", "above 1")


def _check_method(
  require: _Require,
  method: MethodConfig,
  data: DataConfig,
  corruption: CorruptionConfig,
) -> None:
  require(data.length >= 2, "data.length", "at least 2")
  require(0 < data.validation_fraction < 1, "data.validation_fraction", "in (0, 1)")
  if data.source == "text":
    require(data.train_path is not None, "data.train_path", "set when data.source=text")

  require(method.block_size >= 1, "method.block_size", "at least 1")
  require(
    method.name != "block" or data.length % method.block_size == 0,
    "method.block_size",
    f"a divisor of data.length={data.length}",
  )
  require(method.grid >= 1, "method.grid", "at least 1")
  low, high = corruption.t_min, corruption.t_max
  require(0 <= low < 1, "corruption.t_min", "in [0, 1)")
  require(low < high <= 1, "corruption.t_max", f"above t_min={low} and at most 1")
  require(method.max_set_size >= 1, "method.max_set_size", "at least 1")
  if method.prediction_budget is not None:
    span = data.length * method.max_set_size / (data.length + method.max_set_size - 1)
    require(
      0 < method.prediction_budget < span,
      "method.prediction_budget",
      f"above 0 and below length * w = {span:.4g}",
    )


def _check_training(require: _Require, config: Config) -> None:
  optimizer = config.optimizer
  require(optimizer.learning_rate > 0, "optimizer.learning_rate", "above 0")
  require(0 <= optimizer.final_fraction <= 1, "optimizer.final_fraction", "in [0, 1]")
  for name in ("optimizer.beta1", "optimizer.beta2", "optimizer.ema_decay"):
    require(0 <= require.value(name) < 1, name, "in [0, 1)")
  require(optimizer.epsilon > 0, "optimizer.epsilon", "above 0")
  require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more")
  require(optimizer.clip_norm > 0, "optimizer.clip_norm", "above 0")

  require(
    config.train.batch_size % config.train.accumulate == 0,
    "train.batch_size",
    f"a multiple of train.accumulate={config.train.accumulate}",
  )
  require(config.mesh.data >= 1 or config.mesh.data == -1, "mesh.data", "-1 or above 0")
  require(
    config.evaluate.sequences is None or config.evaluate.sequences >= 1,
    "evaluate.sequences",
    "at least 1",
  )
  require(config.decode.temperature >= 0, "decode.temperature", "0 or more")
  window = config.decode.window
  require(window is None or window >= 1, "decode.window", "at least 1")


def config_arguments(text: str, **defaults: str) -> types.SimpleNamespace:
  """Reads the `key=value,...` that may follow a configuration file's name.

  Args:
    text: what stands after the colon.
    **defaults: every key that the file knows, with its value when it is not given.

  Raises:
    UserError: an unknown key, or a part that is not `key=value`.
  """
  given = dict(defaults)
  for part in filter(None, text.split(",")):
    key, equals, value = part.partition("=")
    if not equals or key not in defaults:
      known = ", ".join(f"{name}=..." for name in defaults)
      raise UserError(f"--config argument {part!r} is not known; known: {known}")
    given[key] = value
  return types.SimpleNamespace(**given)
