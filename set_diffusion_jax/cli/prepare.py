"""`prepare`: a corpus into a directory of shards, and the check of one."""

import argparse
import contextlib
import pathlib
from collections.abc import Sequence

from set_diffusion_jax.cli.files import show
from set_diffusion_jax.config.files import read_config
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.text import Found


def prepare(arguments: argparse.Namespace, configuration: Sequence[str]) -> None:
  """Prepares the corpus of a configuration, or checks a directory."""
  if arguments.check is not None:
    if configuration or arguments.output is not None:
      raise UserError("--check: takes neither --config nor --output")
    _check(arguments.check)
    return
  if arguments.output is None:
    raise UserError("--output: must name a directory")
  config = read_config(configuration).data

  from set_diffusion_jax import data
  from set_diffusion_jax.training.metrics import Progress

  with contextlib.ExitStack() as stack:

    def begin(total: int):
      bar = stack.enter_context(Progress(total, 0, "prepare", "document"))
      bar.say(f"{total:,} documents")
      return bar.advance

    manifest = data.prepare(
      config,
      arguments.output,
      text=arguments.text,
      workers=arguments.workers or data.cpus(),
      shard=max(1, round(arguments.shard_size * 10**6)),
      begin=begin,
    )
  show(summary(arguments.output, manifest))


def summary(folder: pathlib.Path, manifest: dict) -> str:
  """What a directory holds, in a few lines."""
  settings = manifest["settings"]
  lines = [f"{folder}: {settings['kind']} of {settings['source']}"]
  if "tokenizer" in settings:
    given, size = settings["tokenizer"]["given"], settings["tokenizer"]["vocabulary"]
    lines.append(f"tokenizer   {given}, {size:,} ids")
  for side, entry in manifest["sides"].items():
    tokens = f"{entry['tokens']:,} tokens, " if "tokens" in entry else ""
    lines.append(
      f"{side:11} {entry['documents']:,} documents, {tokens}"
      f"{entry['text_bytes']:,} bytes of text, {len(entry['shards'])} shards"
    )
  for source in manifest["source_files"]:
    if said := Found.of(source).line():
      lines.append(f"read        {source['file']}: {said}")
  stored = sum(entry["bytes"] for entry in manifest["files"].values())
  return "\n".join([*lines, f"on disk     {stored:,} bytes"])


def _check(folder: pathlib.Path) -> None:
  from set_diffusion_jax.data import Prepared
  from set_diffusion_jax.training.metrics import Progress

  found = Prepared.read(folder)
  total = sum(entry["bytes"] for entry in found.manifest["files"].values())
  with Progress(total, 0, "check", "B") as progress:
    found.check(progress.advance)
  show(summary(folder, found.manifest))
  show(f"checked     {len(found.manifest['files'])} files, all are whole")
