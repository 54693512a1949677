"""Every setting: its default, its meaning and its checks, in one place.

A configuration file returns an `ml_collections.ConfigDict` that starts from
`default_config()`; `Config.from_dict` turns it into frozen dataclasses and refuses
what cannot work. No other module reads a ConfigDict or knows a default.
"""

from set_diffusion_jax.config.experiment import (
  Config,
  check_field,
  config_arguments,
  default_config,
)
from set_diffusion_jax.config.groups import (
  COMMITS,
  COMPATS,
  DETOKENIZERS,
  WEIGHTS,
  DataConfig,
  DecodeConfig,
  EvaluateConfig,
  MeshConfig,
  MethodConfig,
  OptimizerConfig,
  TrainConfig,
)
from set_diffusion_jax.config.model import BACKBONES, ModelConfig
from set_diffusion_jax.config.noise import (
  DENOMINATORS,
  MASK_SCHEDULES,
  CorruptionConfig,
  LossConfig,
)

__all__ = [
  "BACKBONES",
  "COMMITS",
  "COMPATS",
  "DENOMINATORS",
  "DETOKENIZERS",
  "MASK_SCHEDULES",
  "WEIGHTS",
  "Config",
  "CorruptionConfig",
  "DataConfig",
  "DecodeConfig",
  "EvaluateConfig",
  "LossConfig",
  "MeshConfig",
  "MethodConfig",
  "ModelConfig",
  "OptimizerConfig",
  "TrainConfig",
  "check_field",
  "config_arguments",
  "default_config",
]
