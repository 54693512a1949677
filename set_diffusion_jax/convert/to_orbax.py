"""PyTorch to Orbax: a work directory whose one step holds only parameters."""

import dataclasses
import json
import pathlib

from set_diffusion_jax.convert.meta import TOKENIZER_FILES
from set_diffusion_jax.convert.orbax_writer import Writer
from set_diffusion_jax.convert.source import Source
from set_diffusion_jax.convert.transfer import Cast, transfer
from set_diffusion_jax.data.pieces import STORED
from set_diffusion_jax.diffusion.order import recorded_schedule
from set_diffusion_jax.storage import workdir
from set_diffusion_jax.version import versions


def write_orbax(source: Source, cast: Cast, fresh: pathlib.Path) -> None:
  """A work directory with one step, 0, that holds only parameters."""
  writer = Writer(fresh / workdir.CHECKPOINTS / "0")
  transfer(source, cast, writer.start, writer.write)
  writer.finish(_meta(source, cast))
  stored = {"config": source.config.to_dict(), "data": _fingerprint(source)}
  (fresh / workdir.CONFIG).write_text(json.dumps(stored, indent=2) + "\n")


def _fingerprint(source: Source) -> dict:
  """No training data: a run that would continue here is refused."""
  return {"converted_from": source.origin}


def _meta(source: Source, cast: Cast) -> dict:
  """What a checkpoint needs to be understood, and to be written back as it was."""
  config, files = source.config, source.files
  corruption = config.corruption
  schedule = recorded_schedule(
    config.method,
    config.data.length,
    corruption.schedule,
    corruption.t_min,
    corruption.t_max,
  )
  known = (*TOKENIZER_FILES, STORED)
  texts = {name: text for name, text in files.items() if name in known}
  return {
    "config": config.to_dict(),
    "data": _fingerprint(source),
    "tokenizer": {
      "name": source.tokenizer,
      **dataclasses.asdict(source.vocabulary),
      "used_ids": source.used_ids,
      "files": texts,
    },
    "schedule": schedule,
    "versions": versions(),
    "weights_from": {"converted_from": source.origin},
    "source": {
      "path": source.origin,
      "weights": source.kind,
      "dtypes": {path: dtype.name for path, dtype in source.dtypes.items()},
      "notes": source.notes,
    },
    "published": cast.settings(source.published),
    "qwen3": source.qwen3,
    "buffers": {
      name: {
        "dtype": cast.array(values).dtype.name,
        "shape": list(values.shape),
        "bytes": cast.array(values).tobytes().hex(),
      }
      for name, values in source.buffers.items()
    },
    "files": {name: text for name, text in files.items() if name not in texts},
  }
