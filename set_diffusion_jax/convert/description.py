"""`describe`: what is in a checkpoint, whatever its format."""

import math
import pathlib

from set_diffusion_jax.convert.located import located
from set_diffusion_jax.convert.published import meaning, origin_text
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.data import count, facts, restore_tokenizer
from set_diffusion_jax.version import changes


def describe(
  path: str | pathlib.Path,
  weights: str | None = None,
  backbone_config: str | pathlib.Path | None = None,
) -> dict:
  """A checkpoint's parameters and settings as plain JSON values.

  Args:
    path: anything that `convert` reads.
    weights: "ema" or "raw" of a checkpoint that has both; None: EMA.
    backbone_config: as `convert` takes it.

  Returns:
    "format", "weights" (null: not said), "step", "parameters" (path, shape and dtype of
    each), "count" and "bytes" of all, "config", "vocabulary", "weights_from" (null: not
    said), "versions" of what computed it, "meaning" and "notes", both lines of text.

  Raises:
    UserError: not a checkpoint, or damaged.
  """
  with located(path) as place:
    source = open_source(place.path, weights, backbone_config, place.origin)
  tokenizer = restore_tokenizer(source.described)
  rows = [
    {
      "path": p.path,
      "tensor": p.name,
      "shape": list(p.shape),
      "dtype": source.dtypes[p.path].name,
    }
    for p in source.parameters
  ]
  sizes = [(math.prod(p.shape), source.dtypes[p.path]) for p in source.parameters]
  return {
    "path": source.origin,
    "format": source.format,
    "weights": source.kind,
    "step": source.step,
    "parameters": rows,
    "count": sum(size for size, _ in sizes),
    "bytes": sum(size * dtype.itemsize for size, dtype in sizes),
    "config": source.config.to_dict(),
    "vocabulary": {
      "tokenizer": source.tokenizer,
      **source.vocabulary.__dict__,
      "used_ids": source.used_ids,
      "rows_without_token": count(tokenizer.unused),
      "facts": facts(tokenizer),
    },
    "weights_from": source.weights_from,
    "meaning": meaning(source.config, source.vocabulary, source.used_ids),
    "versions": source.versions,
    "notes": [*source.notes, *changes(f"step {source.step}", source.versions)],
  }


def description_text(description: dict) -> str:
  """The same for a terminal."""
  rows = description["parameters"]
  width = max(len(row["path"]) for row in rows)
  model, method = description["config"]["model"], description["config"]["method"]
  kind = description["weights"] or "EMA or not is not said"
  lines = [
    f"{description['path']}: {description['format']}, {kind}",
    f"{model['backbone']}, method {method['name']}",
    *description["meaning"],
    *(f"tokenizer: {line}" for line in description["vocabulary"]["facts"]),
    *_weights_from(description["weights_from"]),
    *_computed_with(description["versions"]),
    *(f"note: {note}" for note in description["notes"]),
    "",
  ]
  for row in rows:
    shape = " x ".join(map(str, row["shape"]))
    lines.append(f"{row['path']:{width}}  {row['dtype']:8}  {shape}")
  total = f"{description['count']:,} parameters, {description['bytes']:,} bytes"
  return "\n".join([*lines, "", total])


def _weights_from(weights_from: dict | None) -> list[str]:
  """A line, where it is known."""
  return [f"weights from: {origin_text(weights_from)}"] if weights_from else []


def _computed_with(versions: dict[str, str]) -> list[str]:
  """A line, where it is known."""
  named = [f"{name} {version}" for name, version in versions.items()]
  return [f"computed with {', '.join(named)}"] if named else []
