"""Configurations of checkpoints, changed by `--config.a.b=value` and by options."""

import argparse
import dataclasses
from collections.abc import Sequence

from set_diffusion_jax.config import Config, default_config
from set_diffusion_jax.config.files import changed_fields, with_changes
from set_diffusion_jax.errors import UserError

# What may differ from the configuration that a checkpoint was trained with.
_OVERRIDABLE = ("data", "evaluate", "decode", "method", "compat", "model.dtype")


def override(config: Config, arguments: Sequence[str]) -> Config:
  """A checkpoint's configuration with the fields of `--config.a.b=value` changed."""
  for name in changed_fields(arguments):
    if not any(f"{name}.".startswith(f"{group}.") for group in _OVERRIDABLE):
      raise UserError(f"--config.{name}: is fixed by the checkpoint")
  settings = default_config()
  for group, fields in config.to_dict().items():
    if isinstance(fields, dict):
      settings[group].update({k: v for k, v in fields.items() if v is not None})
    elif fields is not None:
      settings[group] = fields
  return with_changes(settings, arguments)


def with_options(group, arguments: argparse.Namespace, names: Sequence[str]):
  """A configuration group with the options that were given on the command line."""
  given = {name: getattr(arguments, name) for name in names}
  return dataclasses.replace(group, **{k: v for k, v in given.items() if v is not None})


def checked(config: Config) -> Config:
  """A configuration of which fields were replaced, checked again."""
  return Config.from_dict(config.to_dict())


def load_model(arguments: argparse.Namespace, changes: Sequence[str]):
  """The model of --checkpoint with the fields of `--config.a.b=value` changed."""
  from set_diffusion_jax.api import load
  from set_diffusion_jax.data import load_tokenizer, with_vocabulary

  model = load(arguments.checkpoint, arguments.weights, arguments.backbone_config)
  config = override(model.config, changes)
  tokenizer = model.tokenizer
  if "data.tokenizer" in changed_fields(changes):
    given = load_tokenizer(config.data.tokenizer)
    tokenizer = with_vocabulary(given, tokenizer.vocabulary)
  return dataclasses.replace(model, config=config, tokenizer=tokenizer)
