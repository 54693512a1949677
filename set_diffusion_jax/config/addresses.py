"""Which fields may be URLs, and of what kind."""

import contextlib
import json
from collections.abc import Iterator

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown
from set_diffusion_jax.inputs.paths import is_url
from set_diffusion_jax.storage import hub, hub_datasets, places

_DISK = "a path on a disk; URLs are not supported here"
_TEXT = (
  "a path on a disk, or for `prepare` hf://datasets/ORG/NAME[@REVISION]/FILE; a "
  "prepared corpus may be in a bucket, as data.directory=gs://BUCKET/PATH"
)


def check_addresses(config) -> None:
  """UserError for a URL where none is read, or of a place that is not read.

  TFDS knows its own kinds of data.directory.
  """
  data = config.data
  files = {name: getattr(data, name) for name in ("train_path", "validation_path")}
  for name, value in files.items():
    if hub_datasets.is_url(value or ""):
      with _named(f"data.{name}", value):
        hub_datasets.address(value)
    else:
      _require_path(f"data.{name}", value, _TEXT)
  _require_path("data.tokenizer", data.tokenizer, _DISK)
  _require_path("evaluate.order", config.evaluate.order, _DISK)
  start = config.init_from or ""
  if is_url(start):
    with _named("init_from", start):
      if hub.is_url(start):
        hub.address(start)
      else:
        places.path(start, stores=("disk", "gs", "hf"))
  if data.source != "tfds" and is_url(data.directory or ""):
    with _named("data.directory", data.directory):
      places.path(data.directory)


def _require_path(name: str, value: str | None, right: str) -> None:
  if is_url(value or ""):
    raise UserError(f"{name} = {json.dumps(value)}: must be {right}")


@contextlib.contextmanager
def _named(name: str, value: str) -> Iterator[None]:
  """Puts a field's name before what is wrong with its value."""
  try:
    yield
  except UserError as error:
    problem = str(error).removeprefix(shown(value))
    raise UserError(f"{name} = {json.dumps(value)}{problem}") from None
