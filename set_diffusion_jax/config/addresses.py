"""Which fields may be URLs, and of what kind."""

import json

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import is_url
from set_diffusion_jax.storage import hub, places

_DISK = "a path on a disk; URLs are not supported here"
_BUCKET = "a prepared corpus may be in a bucket, as data.directory=gs://BUCKET/PATH"


def check_addresses(config) -> None:
  """UserError for a URL where none is read, or of a place that is not read.

  TFDS knows its own kinds of data.directory.
  """
  data = config.data
  files = {name: getattr(data, name) for name in ("train_path", "validation_path")}
  for name, value in files.items():
    _require_path(f"data.{name}", value, f"{_DISK}, but {_BUCKET}")
  _require_path("data.tokenizer", data.tokenizer, _DISK)
  _require_path("evaluate.order", config.evaluate.order, _DISK)
  _check_start(config.init_from or "")
  if data.source != "tfds":
    _check_place("data.directory", data.directory)


def _require_path(name: str, value: str | None, right: str) -> None:
  if is_url(value or ""):
    raise UserError(f"{name} = {json.dumps(value)}: must be {right}")


def _check_place(name: str, value: str | None) -> None:
  if not is_url(value or ""):
    return
  try:
    places.path(value)
  except UserError as error:
    problem = str(error).removeprefix(value)
    raise UserError(f"{name} = {json.dumps(value)}{problem}") from None


def _check_start(start: str) -> None:
  try:
    if hub.is_url(start):
      hub.address(start)
    elif is_url(start):
      places.path(start, stores=("disk", "gs", "hf"))
  except UserError as error:
    raise UserError(f"init_from = {error}") from None
