"""Where a checkpoint is on this machine, whatever the user named it by."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from set_diffusion_jax.convert.generation import GENERATION
from set_diffusion_jax.convert.meta import TOKENIZER_FILES
from set_diffusion_jax.convert.qwen3 import BACKBONE_CONFIG
from set_diffusion_jax.convert.tensors import read_json
from set_diffusion_jax.data.pieces import FILE
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import bare_name, part
from set_diffusion_jax.storage import hub, places, workdir

_CONFIG = "config.json"
# In the order in which a directory is searched for them: pickles come last.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Everything that is read besides weights; no program of a repository is ever fetched.
_SMALL = (
  *(_CONFIG, BACKBONE_CONFIG, GENERATION, FILE, *TOKENIZER_FILES),
  *(f"{name}.index.json" for name in WEIGHT_FILES),
)


class Located(NamedTuple):
  """A checkpoint on a disk.

  Attributes:
    path: a directory or file.
    origin: where it was fetched from, as gs://BUCKET/PATH or hf://ORG/NAME@COMMIT;
      None: it was here.
  """

  path: pathlib.Path
  origin: str | None


@contextlib.contextmanager
def located(text: str | os.PathLike) -> Iterator[Located]:
  """A checkpoint by the name that a user gave.

  A copy of what is in a bucket stays until the process ends, and messages of a
  UserError name the bucket. Of a repository only the files that are read are fetched:
  `config.json` and those of the tokenizer first, weights last, and pickled ones only if
  there are no others.

  Args:
    text: a path on a disk, gs://BUCKET/PATH or hf://ORG/NAME[@REVISION].

  Raises:
    UserError: it is no path and no such address, or cannot be fetched.
  """
  if hub.is_url(text):
    yield _from_hub(text)
    return
  given = places.path(text, stores=("disk", "gs", "hf"))
  with workdir.on_disk(given) as local:
    yield Located(local, str(given) if places.is_remote(given) else None)


def _from_hub(url: str) -> Located:
  snapshot = hub.Snapshot(url)
  folder = snapshot.get(_SMALL)
  if not os.path.lexists(folder / _CONFIG):
    raise UserError(
      f"{snapshot.origin}: has no {_CONFIG}; give a repository of a model"
    )
  for names in _weights(folder):
    snapshot.get(names)
    if any(os.path.lexists(folder / name) for name in names):
      return Located(folder, snapshot.origin)
  raise UserError(
    f"{snapshot.origin}: has no {', '.join(WEIGHT_FILES)} or index of either; give a "
    "repository of a model"
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
