"""One experiment: all groups together, from a configuration file or a checkpoint."""

import dataclasses
import types
import typing
from collections.abc import Mapping

import ml_collections
from ml_collections import config_dict

from set_diffusion_jax.config.build import build, check_known, required
from set_diffusion_jax.config.checks import check
from set_diffusion_jax.config.groups import (
  DataConfig,
  DecodeConfig,
  EvaluateConfig,
  MeshConfig,
  MethodConfig,
  OptimizerConfig,
  TrainConfig,
)
from set_diffusion_jax.config.model import ModelConfig
from set_diffusion_jax.config.noise import CorruptionConfig, LossConfig
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import expanded

# What a resumed run may change: groups and fields. Text is compared by its content
# (the data fingerprint), so its path may change too.
CHANGEABLE = frozenset({
  "mesh", "evaluate", "decode", "model.remat", "data.train_path",
  "data.validation_path", "data.directory", "data.tokenizer", "train.steps",
  "train.accumulate", "train.gradient_variance", "train.log_every",
  "train.evaluate_every", "train.checkpoint_every", "train.checkpoint_minutes",
  "train.keep_latest", "train.keep_best",
})  # fmt: skip


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
  init_from: str | None = None  # a checkpoint whose weights a new run starts from
  compat: str = "none"  # "setdlms": the published code's treatment of BOS

  @classmethod
  def from_dict(cls, settings: Mapping) -> "Config":
    """Builds and checks a configuration; UserError names the first wrong field."""
    config = _expanded(build(cls, settings, ""))
    check(config)
    return config

  @property
  def evaluation_levels(self) -> str | None:
    """How evaluation draws what sets mask: one of LEVELS; None: all, nothing is drawn.

    It is over all positions, so that predict=active has single positions there.
    """
    if not self.method.has_levels or self.method.predict == "active":
      return None
    needed = self.corruption.clip_width is not None or self.compat == "setdlms"
    return self.evaluate.levels or ("uniform" if needed else "counts")

  def to_dict(self) -> dict:
    return dataclasses.asdict(self)

  def identity(self) -> dict:
    """The fields that must be equal for a run to be resumed, by dotted name."""
    changeable = set(CHANGEABLE)
    if self.optimizer.schedule == "cosine":
      changeable.remove("train.steps")  # the learning rate depends on it
    if self.corruption.clip_width is not None:  # an evaluation changes the training
      changeable -= {"evaluate", "train.steps", "train.evaluate_every"}
    named = lambda name: {name, name.split(".")[0]} & changeable
    return {name: value for name, value in self.flat().items() if not named(name)}

  def flat(self) -> dict:
    """Every field by its dotted name."""
    flat = {}
    for group, fields in self.to_dict().items():
      for name, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
        flat[f"{group}.{name}".rstrip(".")] = value
    return flat


def _expanded(config: Config) -> Config:
  """The same, where `~` at the start of a path is replaced."""
  paths = ("train_path", "validation_path", "directory", "tokenizer")
  given = {name: getattr(config.data, name) for name in paths}
  full = {name: expanded(text) for name, text in given.items() if text is not None}
  order, start = config.evaluate.order, config.init_from
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, **full),
    evaluate=dataclasses.replace(config.evaluate, order=expanded(order)),
    init_from=None if start is None else expanded(start),
  )


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
        fields[field.name] = config_dict.placeholder(required(hint))
      else:
        fields[field.name] = field.default
    return ml_collections.ConfigDict(fields)

  return group(Config).lock()


def check_field(dotted: str):
  """The type of a dotted field such as model.width, or of a group.

  Raises:
    UserError: there is none of that name.
  """
  hints, prefix = typing.get_type_hints(Config), ""
  for name in dotted.split("."):
    check_known(hints, name, prefix)
    group = hints[name]
    hints = typing.get_type_hints(group) if dataclasses.is_dataclass(group) else {}
    prefix += f"{name}."
  return group


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
