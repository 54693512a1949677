"""Configurations from files: of the user, or by name of those that are installed."""

import importlib.machinery
import importlib.util
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from set_diffusion_jax.config.build import required
from set_diffusion_jax.config.experiment import Config, check_field
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import expanded, is_url

_CONFIG = "--config="
# Python reads numbers of these too: full-width digits, 1_0, 0x10, "1 ".
_NOT_PLAIN = re.compile(r"[^!-~]|_|0[xob]", re.IGNORECASE)


def names() -> dict[str, pathlib.Path]:
  """The file of each configuration that `--config=NAME` names."""
  package = importlib.import_module("set_diffusion_jax.configs")
  files = sorted(pathlib.Path(package.__file__).parent.glob("[a-z]*.py"))
  return {file.stem: file for file in files}


def find(name: str) -> pathlib.Path:
  """The file that `--config=FILE` or `--config=NAME` means.

  Raises:
    UserError: there is none, or there are both.
  """
  file, known = pathlib.Path(expanded(name)), names()
  if name in known and file.is_file():
    raise UserError(
      f"{_CONFIG}{name}: is a file here and the name of a configuration; give ./{name} "
      f"for the file, {known[name]} for the other"
    )
  if not file.is_file() and name not in known:
    raise UserError(
      f"{_CONFIG}{name}: no such file or name; the names are {', '.join(known)}"
    )
  return known.get(name, file)


def read_config(arguments: Sequence[str]) -> Config:
  """The configuration of `--config=FILE[:key=value,...] [--config.a.b=value ...]`.

  Args:
    arguments: these; of several `--config=` the last one counts. For FILE may stand one
      of `names`.

  Raises:
    UserError: no such file, it fails, or a field cannot be as it says.
  """
  name, values = _name_and_values(arguments)
  file, changes = find(name), [a for a in arguments if not a.startswith(_CONFIG)]
  changed_fields(changes)
  try:
    settings = _run(file, values)
  except UserError:
    raise
  except SystemExit as error:  # it would end the command without a word
    raise UserError(f"{_CONFIG}{name}: ends Python: exit({error.code!r})") from None
  except Exception as error:  # whatever the user's own file does
    kind = type(error).__name__
    raise UserError(f"{_CONFIG}{name}: {kind}: {one_line(error)}") from None
  if not isinstance(settings, ConfigDict):
    kind = type(settings).__name__
    raise UserError(f"{_CONFIG}{name}: get_config returned {kind}, not a ConfigDict")
  return with_changes(settings, changes)


def config_file(arguments: Sequence[str]) -> pathlib.Path:
  """The file that `read_config` of these arguments reads; raises as it does."""
  return find(_name_and_values(arguments)[0])


def _name_and_values(arguments: Sequence[str]) -> tuple[str, list[str]]:
  """FILE or NAME of the last `--config=FILE[:VALUES]`, and VALUES if it has any."""
  given = named(arguments)
  if not given:
    raise UserError("--config: must name a configuration, as --config=FILE or NAME")
  if is_url(given):
    raise UserError(f"{_CONFIG}{given}: must be a file on a disk or a name, is a URL")
  name, colon, values = given.partition(":")
  if not colon or pathlib.Path(expanded(given)).is_file():  # the colon is of its name
    return given, []
  return name, [values]


def _run(file: pathlib.Path, arguments: list[str]):
  """What `get_config` of a file returns."""
  loader = importlib.machinery.SourceFileLoader("user_config", str(file))
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_loader(loader.name, loader)
  )
  sys.modules[loader.name] = module  # where dataclasses look for their module
  loader.exec_module(module)
  return module.get_config(*arguments)


def with_changes(settings: ConfigDict, arguments: Sequence[str]) -> Config:
  """The configuration of settings in which `--config.a.b=value` change fields."""
  words, values = ["", *arguments], flags.FlagValues()
  config_flags.DEFINE_config_dict(
    "config", settings, flag_values=values, sys_argv=words
  )
  try:
    values(words)
  except flags.Error as error:
    raise UserError(f"--config: {one_line(error)}") from None
  return Config.from_dict(settings.to_dict())


def named(arguments: Sequence[str]) -> str:
  """What stands after the last `--config=`; nothing where there is none."""
  found = [a.removeprefix(_CONFIG) for a in arguments if a.startswith(_CONFIG)]
  return found[-1] if found else ""


def changed_fields(arguments: Sequence[str]) -> list[str]:
  """The fields of `--config.a.b=value`.

  Raises:
    UserError: one does not exist, or has a number that is not in plain digits.
  """
  changes = [a for a in arguments if a.startswith("--config.")]
  fields = []
  for change in changes:
    field, _, value = change.removeprefix("--config.").partition("=")
    if required(check_field(field)) in (int, float) and _NOT_PLAIN.search(value):
      raise UserError(f"--config.{field}={value}: must be a number in plain digits")
    fields.append(field)
  return fields


def one_line(error: Exception) -> str:
  """The first line of what an exception says; long values in it are cut."""
  text = str(error.args[0]) if error.args else type(error).__name__
  line = (text.strip().splitlines() or [type(error).__name__])[0]
  return re.sub(r"\S{400,}", lambda match: f"{match[0][:200]}...", line)
