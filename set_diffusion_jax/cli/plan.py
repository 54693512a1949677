"""`plan`: what a configuration needs on a topology, before it is paid for."""

import argparse
from collections.abc import Sequence

from set_diffusion_jax.cli.files import check_output, show, write
from set_diffusion_jax.config import Config
from set_diffusion_jax.config.files import config_file, read_config
from set_diffusion_jax.data import Vocabulary, load_tokenizer
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.jobs import outcomes


def plan(arguments: argparse.Namespace, configuration: Sequence[str]) -> int:
  """Prints and writes a plan; returns the exit code, which says whether it fits."""
  import jax

  from set_diffusion_jax.plan import make_plan, parse_topology

  config = read_config(configuration)
  topology = parse_topology(arguments.topology, arguments.slices)
  vocabulary = _vocabulary(config, arguments.vocabulary_size)
  read = (config_file(configuration), config.data.tokenizer)
  check_output(arguments.json, "--json", read)
  jax.config.update("jax_platforms", "cpu")  # no device of this machine is needed
  found = make_plan(config, topology, vocabulary)
  write(arguments.json, {**found.to_dict(), "config": config.to_dict()}, "--json")
  show(found.text())
  return outcomes.DONE if found.fits else outcomes.MISFIT


def _vocabulary(config: Config, size: int | None) -> Vocabulary:
  """Of the tokenizer, or of so many ids, the last of which are special."""
  if size is None:
    try:
      return load_tokenizer(config.data.tokenizer).vocabulary
    except UserError as error:
      raise UserError(f"{error}; or give --vocabulary-size=N") from None
  if size < 2:
    raise UserError(f"--vocabulary-size={size}: must be at least 2")
  return Vocabulary(size, size - 2, size - 2, size - 2, size - 1)
