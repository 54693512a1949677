"""`convert`: opens the source, streams it into a fresh directory, proves the result."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from set_diffusion_jax.config import WEIGHTS
from set_diffusion_jax.convert.destination import (
  fresh_directory,
  removed_unless_right,
)
from set_diffusion_jax.convert.generation import GENERATION, check_generation
from set_diffusion_jax.convert.located import Located, located
from set_diffusion_jax.convert.settings import Settings
from set_diffusion_jax.convert.source import Source, check_outside, open_source
from set_diffusion_jax.convert.tensors import WEIGHT_DTYPES
from set_diffusion_jax.convert.to_orbax import write_orbax
from set_diffusion_jax.convert.to_pytorch import write_pytorch
from set_diffusion_jax.convert.transfer import Cast
from set_diffusion_jax.convert.verify import verify_apart, verify_here
from set_diffusion_jax.data import JsonTokenizer, PieceTokenizer, restore_tokenizer
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.numerics import settled
from set_diffusion_jax.storage import disk, hub, places

SHARD_SIZE = 5 * 10**9  # bytes, as Transformers shards


@dataclasses.dataclass(frozen=True)
class Report:
  """What a conversion did.

  Attributes:
    source: path that was read, or where it was fetched from.
    destination: directory that was written, or hf://ORG/NAME@COMMIT.
    direction: "orbax to pytorch" or "pytorch to orbax".
    weights: "ema" or "raw"; None: the source does not say.
    parameters: number of values.
    dtypes: of the written parameters.
    notes: what the source does not say, and what was taken or left out.
    verified: parameters that were read again and compared; 0 without `verify`.
    logits_difference: from PyTorch's own, of the largest; None where not computed.
  """

  source: pathlib.Path | str
  destination: pathlib.Path | str
  direction: str
  weights: str | None
  parameters: int
  dtypes: list[str]
  notes: list[str]
  verified: int
  logits_difference: float | None


@settled()
def convert(
  source: str | pathlib.Path,
  destination: str | pathlib.Path,
  *,
  weights: str | None = None,
  dtype: str | None = None,
  shard_size: int = SHARD_SIZE,
  verify: bool = False,
  fresh_process: bool = False,
  evaluation: Mapping | None = None,
  backbone_config: str | pathlib.Path | None = None,
) -> Report:
  """Converts a checkpoint; the direction follows from the source.

  Args:
    source: a work directory or its `checkpoints/STEP`, which become a PyTorch-format
      directory; or such a directory, or a file of tensors with `config.json` beside
      it, which becomes a work directory. Each may be gs://BUCKET/PATH, and
      hf://ORG/NAME[@REVISION] is a PyTorch-format directory.
    destination: a directory that does not exist or is empty; it is there whole at the
      end, or not at all. Of a work directory also hf://ORG/NAME, a repository that
      holds no model: the result is made in a temporary directory, verified and
      uploaded in one commit; a repository that is created is private.
    weights: "ema" or "raw" of a source that has both; None: EMA.
    dtype: "float32", "bfloat16" or "float16" for all parameters; None: as stored.
    shard_size: bytes of values in a file, when writing safetensors.
    verify: reads the result again, by the path that was given, and compares every
      value bit by bit; where torch is installed, also compares logits with a forward
      pass of PyTorch, which takes both models in memory. A result that differs is
      removed.
    fresh_process: verifies in a process of its own, which has nothing but the files.
    evaluation: figures for the model card, as `evaluate --output` writes them.
    backbone_config: a Qwen3 configuration of Transformers, for a published directory
      that names its Qwen3 by a name that is not known here.

  Raises:
    UserError: a source or a destination that cannot be used, in one line.
  """
  if dtype is not None and dtype not in WEIGHT_DTYPES:
    raise UserError(f"--dtype={dtype}: must be one of {', '.join(WEIGHT_DTYPES)}")
  if weights is not None and weights not in WEIGHTS:
    raise UserError(f"--weights={weights}: must be one of {', '.join(WEIGHTS)}")
  if shard_size < 1:
    raise UserError(f"--shard-size={shard_size}: must be at least 1 byte")
  if not hub.is_url(destination):
    destination = places.path(destination, stores=("disk", "hf"))
  run = verify_apart if fresh_process else verify_here
  with located(source) as place:
    opened = open_source(place.path, weights, backbone_config, place.origin)
    _check_files(opened, place)

    def proved(folder: pathlib.Path) -> tuple[int, float | None]:
      return run(place.path, folder, weights, dtype, backbone_config)

    parts = (place, opened, Cast(opened, dtype), shard_size, evaluation)
    if hub.is_url(destination):
      return _uploaded(destination, *parts, proved)
    check_outside(opened, destination)
    return _written(destination, *parts, proved if verify else None)


def _check_files(opened: Source, place: Located) -> None:
  """UserError for a damaged file that would be carried along, before any is written."""
  readable = {JsonTokenizer.name}
  if importlib.util.find_spec("sentencepiece"):
    readable.add(PieceTokenizer.name)
  if opened.tokenizer in readable:
    restore_tokenizer(opened.described)
  if opened.format == "orbax" and GENERATION in opened.files:
    settings = Settings(opened.config, opened.vocabulary, opened.used_ids, [])
    check_generation(
      opened.files[GENERATION], settings, str(place.origin or place.path)
    )


def _uploaded(url: str, place: Located, opened: Source, *parts) -> Report:
  """Writes a new repository of the hub; arguments as `_written` has them."""
  if opened.format != "orbax":
    right = "must be a new directory, as the source has the hub's format already"
    raise UserError(f"{url}: {right}")
  hub.check_destination(url)
  with disk.scratch() as scratch:
    folder = pathlib.Path(scratch) / "model"
    report = _written(folder, place, opened, *parts)
    return dataclasses.replace(report, destination=hub.upload(url, folder))


def _written(
  destination: pathlib.Path,
  place: Located,
  opened: Source,
  cast: Cast,
  shard_size: int,
  evaluation: Mapping | None,
  proved: Callable[[pathlib.Path], tuple[int, float | None]] | None,
) -> Report:
  """Writes the directory; `proved` reads it again, and raises if it is not right."""
  verified, difference = 0, None
  with fresh_directory(destination) as fresh:
    if opened.format == "orbax":
      write_pytorch(opened, cast, fresh, shard_size, evaluation)
    else:
      write_orbax(opened, cast, fresh)
  if proved is not None:
    with removed_unless_right(destination):
      verified, difference = proved(destination)
  return Report(
    source=place.path if place.origin is None else place.origin,
    destination=destination,
    direction="orbax to pytorch" if opened.format == "orbax" else "pytorch to orbax",
    weights=opened.kind,
    parameters=sum(int(np.prod(p.shape)) for p in opened.parameters),
    dtypes=sorted({cast.dtype(p.path).name for p in opened.parameters}),
    notes=opened.notes,
    verified=verified,
    logits_difference=difference,
  )
