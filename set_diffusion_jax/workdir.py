"""A work directory: one run's configuration, metrics and checkpoints."""

import json
import os
import pathlib

from set_diffusion_jax.config import Config
from set_diffusion_jax.errors import UserError

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


def claim(workdir: pathlib.Path, config: Config, fingerprint: dict) -> None:
  """Makes a directory the home of a run, or checks that it is this run's home.

  Raises:
    UserError: it holds a run whose identity differs, or is not a work directory.
  """
  path = workdir / CONFIG
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir={workdir}: must be a directory, is a file")
  if path.exists():
    stored, stored_fingerprint = read(workdir)
    _compare(workdir, stored.identity(), config.identity())
    data = {f"data ({name})": value for name, value in fingerprint.items()}
    old = {f"data ({name})": value for name, value in stored_fingerprint.items()}
    _compare(workdir, old, data)
  elif workdir.exists() and any(workdir.iterdir()):
    raise UserError(
      f"--workdir={workdir}: holds files but no run; give a new directory"
    )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir={workdir}: {error.strerror}") from None
  text = json.dumps({"config": config.to_dict(), "data": fingerprint}, indent=2)
  fresh = path.with_suffix(".tmp")
  fresh.write_text(text + "\n")
  os.replace(fresh, path)


def read(workdir: pathlib.Path) -> tuple[Config, dict]:
  """The configuration and the data fingerprint of a run."""
  try:
    stored = json.loads((workdir / CONFIG).read_text())
    return Config.from_dict(stored["config"]), stored["data"]
  except FileNotFoundError:
    raise UserError(f"{workdir}: not a work directory, it has no {CONFIG}") from None
  except (json.JSONDecodeError, KeyError, TypeError):
    raise UserError(f"{workdir / CONFIG}: is damaged") from None


def _compare(workdir: pathlib.Path, stored: dict, wanted: dict) -> None:
  for name in sorted(stored.keys() | wanted.keys()):
    if stored.get(name) != wanted.get(name):
      raise UserError(
        f"--workdir={workdir}: holds a run with {name} = {stored.get(name)!r}, not "
        f"{wanted.get(name)!r}; give a new directory or the run's own configuration"
      )
