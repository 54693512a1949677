"""Configurations from files, from checkpoints, and from `--config.a.b=value`."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from set_diffusion_jax.config import Config, check_field, default_config
from set_diffusion_jax.errors import UserError

# What may differ from the configuration that a checkpoint was trained with.
_OVERRIDABLE = ("data", "evaluate", "decode", "method", "compat", "model.dtype")


def read_config(arguments: Sequence[str]) -> Config:
  """The configuration of `--config=FILE[:key=value,...] [--config.a.b=value ...]`."""
  arguments = list(arguments)
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    "config", None, "", flag_values=values, sys_argv=["", *arguments]
  )
  named = [a.split("=", 1)[-1] for a in arguments if a.startswith("--config=")]
  if not named or not named[-1]:
    raise UserError("--config: must name a configuration file, as --config=FILE")
  path = named[-1].split(":")[0]
  if not pathlib.Path(path).is_file():
    raise UserError(f"--config={path}: no such file")
  changed_fields(arguments)
  try:
    values(["", *arguments])
    settings = holder.value
  except UserError:
    raise
  except flags.Error as error:
    raise UserError(f"--config: {one_line(error)}") from None
  except Exception as error:  # whatever the user's own file does
    kind = type(error).__name__
    raise UserError(f"--config={path}: {kind}: {one_line(error)}") from None
  if not isinstance(settings, ConfigDict):
    kind = type(settings).__name__
    raise UserError(f"--config={path}: get_config returned {kind}, not a ConfigDict")
  return Config.from_dict(settings.to_dict())


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
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    "config", settings, flag_values=values, sys_argv=["", *arguments]
  )
  try:
    values(["", *arguments])
  except flags.Error as error:
    raise UserError(f"--config: {one_line(error)}") from None
  return Config.from_dict(settings.to_dict())


def changed_fields(arguments: Sequence[str]) -> list[str]:
  """The fields of `--config.a.b=value`; UserError for one that does not exist."""
  changes = [a for a in arguments if a.startswith("--config.")]
  names = [a.removeprefix("--config.").split("=")[0] for a in changes]
  for name in names:
    check_field(name)
  return names


def one_line(error: Exception) -> str:
  """The first line of what an exception says."""
  text = str(error.args[0]) if error.args else type(error).__name__
  return text.strip().splitlines()[0]


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

  model = load(arguments.checkpoint, arguments.weights)
  config = override(model.config, changes)
  tokenizer = model.tokenizer
  if "data.tokenizer" in changed_fields(changes):
    given = load_tokenizer(config.data.tokenizer)
    tokenizer = with_vocabulary(given, tokenizer.vocabulary)
  return dataclasses.replace(model, config=config, tokenizer=tokenizer)
