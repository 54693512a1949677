"""A work directory: one run's configuration, metrics and checkpoints."""

import json
import pathlib

from set_diffusion_jax.config import Config
from set_diffusion_jax.data.pipeline import FIGURES
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import check_link, step_number
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.storage import lease, places, refusals, steps

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


def check(workdir: pathlib.Path, config: Config, fingerprint: dict) -> bool:
  """Whether a directory holds this run already; nothing is written.

  Raises:
    UserError: it holds a run whose identity differs, or is not a work directory.
  """
  if not places.is_remote(workdir) and workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir={workdir}: must be a directory, is a file")
  try:
    found = [name for name in places.names(workdir) if name != lease.FOLDER]
    if not found:
      return False
    if found == [CONFIG] and not places.read_bytes(workdir / CONFIG):
      return False  # a kill left it so, where a file is made before it is written
    if CONFIG not in found:
      raise UserError(
        f"--workdir={workdir}: holds files but no run; give a new directory"
      )
    stored, stored_fingerprint = read(workdir)
  except OSError as error:
    raise UserError(f"--workdir={workdir}: {_reason(workdir, error)}") from None
  _compare(workdir, stored.identity(), config.identity())
  _compare(workdir, _compared(stored_fingerprint), _compared(fingerprint))
  return True


def claim(workdir: pathlib.Path, config: Config, fingerprint: dict) -> None:
  """Makes a directory the home of a run, or checks that it is this run's home.

  Raises:
    UserError: as `check`, or it cannot be written.
  """
  path = workdir / CONFIG
  text = json.dumps({"config": config.to_dict(), "data": fingerprint}, indent=2) + "\n"
  there = check(workdir, config, fingerprint)
  try:
    places.make_folder(workdir)
    if not there and places.create(path, text):
      return
    if not there:  # others were faster
      check(workdir, config, fingerprint)
    places.write_text(path, text)
  except OSError as error:
    raise UserError(f"--workdir={workdir}: {_reason(workdir, error)}") from None


def _reason(workdir: pathlib.Path, error: OSError) -> str:
  """What a disk or a store says, on one line."""
  refusal = refusals.refusal(error) if places.is_remote(workdir) else None
  return refusal or str(error.strerror or error)


def _compared(fingerprint: dict) -> dict:
  """What of a data fingerprint must be the same, under the names of messages."""
  kept = fingerprint.keys() - set(FIGURES)
  return {f"data ({name})": fingerprint[name] for name in kept}


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Whether there is a finished step to go on from."""
  return bool(steps.numbers(workdir / CHECKPOINTS))


def names_step(path: pathlib.Path) -> bool:
  """Whether a path is that of a step, there or not: `checkpoints/STEP`.

  Raises:
    UserError: it has a number there that no step can have.
  """
  if path.parent.name != CHECKPOINTS or not path.name.isdigit():
    return False
  if step_number(path.name) is None:
    raise UserError(f"{path}: {path.name} is no number of a step")
  return True


def newest_step(workdir: pathlib.Path) -> int:
  """The number of the last finished step; UserError where there is none."""
  found = steps.numbers(workdir / CHECKPOINTS)
  if not found:
    raise UserError(f"{workdir}: has no checkpoint yet")
  return found[-1]


def is_run(workdir: pathlib.Path) -> bool:
  """Whether a directory's configuration is that of a run."""
  try:
    return {"config", "data"} <= _stored(workdir).keys()
  except (OSError, UserError):
    return False


def read(workdir: pathlib.Path) -> tuple[Config, dict]:
  """The configuration and the data fingerprint of a run."""
  try:
    stored = _stored(workdir)
    data = stored["data"]
    if not isinstance(data, dict):
      raise TypeError
    return Config.from_dict(stored["config"]), data
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"{workdir}: not a work directory, it has no {CONFIG}") from None
  except OSError as error:
    raise UserError(f"{workdir / CONFIG}: {_reason(workdir, error)}") from None
  except (KeyError, TypeError, ArithmeticError):
    raise UserError(f"{workdir / CONFIG}: is damaged") from None


def _stored(workdir: pathlib.Path) -> dict:
  """What a run's configuration file holds; UserError if that is no JSON object.

  On a disk it may be a link to a file of the same directory only.
  """
  file = workdir / CONFIG
  if not places.is_remote(workdir):
    check_link(file, workdir)
  stored = parse_json(places.read_bytes(file), str(file))
  if not isinstance(stored, dict):
    raise UserError(f"{workdir / CONFIG}: is damaged")
  return stored


def _compare(workdir: pathlib.Path, stored: dict, wanted: dict) -> None:
  for name in sorted(stored.keys() | wanted.keys()):
    if stored.get(name) != wanted.get(name):
      raise UserError(
        f"--workdir={workdir}: holds a run with {name} = {stored.get(name)!r}, not "
        f"{wanted.get(name)!r}; give a new directory or the run's own configuration"
      )
