"""Where a checkpoint is on this machine, whatever the user named it by."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from set_diffusion_jax.convert.generation import GENERATION
from set_diffusion_jax.convert.meta import TOKENIZER_FILES
from set_diffusion_jax.convert.qwen3 import BACKBONE_CONFIG
from set_diffusion_jax.convert.source import TENSOR_FILES
from set_diffusion_jax.convert.tensors import LARGEST_JSON, read_json
from set_diffusion_jax.data.pieces import FILE
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import bare_name, part, step_number
from set_diffusion_jax.storage import hub, places, refusals, steps, workdir
from set_diffusion_jax.storage.copies import Copies

_CONFIG = "config.json"
# In the order in which a directory is searched for them: pickles come last.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Everything that is read besides weights; no program of a repository is ever fetched.
_SMALL = (
  *(_CONFIG, BACKBONE_CONFIG, GENERATION, FILE, *TOKENIZER_FILES),
  *(f"{name}.index.json" for name in WEIGHT_FILES),
)


class Located(NamedTuple):
  """A checkpoint where it can be read.

  Attributes:
    path: a directory or file on a disk; or, in a bucket, a work directory or a step,
      which are read where they are.
    origin: where it comes from, as gs://BUCKET/PATH or hf://ORG/NAME@COMMIT; None: it
      was on this disk.
  """

  path: pathlib.Path
  origin: str | None


@contextlib.contextmanager
def located(text: str | os.PathLike) -> Iterator[Located]:
  """A checkpoint by the name that a user gave.

  A work directory in a bucket, or a step of one, is read in place. Of a model in the
  hub's format the files that are read are fetched, and no others: `config.json` and
  those of the tokenizer first, weights last, and pickled ones only if there are no
  others. From a bucket they are copied for as long as this context lasts, and messages
  of a UserError name the bucket.

  Args:
    text: a path on a disk, gs://BUCKET/PATH or hf://ORG/NAME[@REVISION].

  Raises:
    UserError: it is no path and no such address, or cannot be read.
  """
  if hub.is_url(text):
    snapshot = hub.Snapshot(text)
    yield Located(_fetched(snapshot), snapshot.origin)
    return
  given = places.path(text, stores=("disk", "gs", "hf"))
  if not places.is_remote(given):
    yield Located(given, None)
    return
  try:
    with _in_bucket(given) as found:
      yield found
  except UserError:
    raise
  except Exception as error:
    reason = refusals.refusal(error)
    if reason is None:
      raise
    raise UserError(f"{given}: {reason}") from error


@contextlib.contextmanager
def _in_bucket(place: pathlib.Path) -> Iterator[Located]:
  if place.parent.name == workdir.CHECKPOINTS and step_number(place.name) is not None:
    if not steps.finished(place):
      raise UserError(f"{place}: has no finished checkpoint of step {place.name}")
    yield Located(place, str(place))
    return
  inside = places.names(place)
  if workdir.CHECKPOINTS in inside:
    yield Located(place, str(place))
    return
  file = None
  if not inside:
    if not places.exists(place):
      raise UserError(f"{place}: there is nothing of this name")
    file = place.name  # others lie beside it
    if not file.endswith(TENSOR_FILES):
      right = ", ".join(TENSOR_FILES)
      raise UserError(f"{place}: must be a folder, or a file ending in {right}")
  with Copies(place if file is None else place.parent) as copies:
    try:
      yield Located(_fetched(copies, file), str(place))
    except UserError as error:
      error.args = (str(error).replace(str(copies.path), copies.origin),)
      raise


def _fetched(source: hub.Snapshot | Copies, file: str | None = None) -> pathlib.Path:
  """A model in the hub's format, on this disk with all that is read of it.

  Args:
    source: what has its files.
    file: the one of its weights; None: as the format has it.
  """
  folder = source.get(_SMALL, most=LARGEST_JSON)
  if file is not None:
    return source.get([file]) / file
  if not os.path.lexists(folder / _CONFIG):
    raise UserError(
      f"{source.origin}: has no {_CONFIG}; give a work directory or a model in the "
      "format of the hub"
    )
  for names in _weights(folder):
    source.get(names)
    if any(os.path.lexists(folder / name) for name in names):
      return folder
  raise UserError(
    f"{source.origin}: has no {', '.join(WEIGHT_FILES)} or index of either; give a "
    "work directory or a model in the format of the hub"
  )


def _weights(folder: pathlib.Path) -> Iterator[list[str]]:
  """Names of files that together would be the weights, one choice after another."""
  for name in WEIGHT_FILES:
    yield [name]
    index = folder / f"{name}.index.json"
    if os.path.lexists(index):
      yield _shards(index, name.rpartition(".")[2])


def _shards(index: pathlib.Path, ending: str) -> list[str]:
  """The files that an index names; UserError for what is none of weights."""
  entries = read_json(part(index, index.parent)).get("weight_map")
  if not isinstance(entries, dict):
    raise UserError(f"{index}: weight_map must name the file of each tensor")
  names = {bare_name(name, f"{index}: weight_map") for name in entries.values()}
  for name in names:
    if not name.endswith(f".{ending}"):
      raise UserError(f"{index}: file name '{name}': must end in .{ending}")
  return sorted(names)
