"""The command line: `python -m set_diffusion_jax VERB`."""

import logging
import os
import sys
from collections.abc import Sequence

from set_diffusion_jax.cli.configuration import read_config
from set_diffusion_jax.cli.evaluate import evaluate
from set_diffusion_jax.cli.files import check_output
from set_diffusion_jax.cli.generate import infill, sample
from set_diffusion_jax.cli.inspect import convert, inspect
from set_diffusion_jax.cli.parser import make_parser
from set_diffusion_jax.cli.plan import plan
from set_diffusion_jax.errors import NonFiniteError, UserError

__all__ = ["main", "quiet", "read_config"]


def quiet() -> None:
  """Keeps libraries from logging what is not for the user."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  for name in ("absl", "orbax", "jax"):
    logging.getLogger(name).setLevel(logging.ERROR)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  quiet()
  try:
    configuration = [a for a in argv if a.split("=")[0].split(".")[0] == "--config"]
    arguments = make_parser().parse_args([a for a in argv if a not in configuration])
    if arguments.verb == "train":
      from set_diffusion_jax.train import train

      train(read_config(configuration), arguments.workdir)
    elif arguments.verb == "plan":
      return plan(arguments, configuration)
    elif arguments.verb == "inspect":
      inspect(arguments, configuration)
    elif arguments.verb == "convert":
      if configuration:
        raise UserError(f"{configuration[0]}: convert takes no configuration")
      convert(arguments)
    else:
      named = [a for a in configuration if not a.startswith("--config.")]
      if named:
        raise UserError(f"{named[0]}: {arguments.verb} has the checkpoint's own")
      check_output(arguments.output)
      verbs = {"evaluate": evaluate, "sample": sample, "infill": infill}
      verbs[arguments.verb](arguments, configuration)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except NonFiniteError as error:
    print(f"error: {error}; the last checkpoint is from before", file=sys.stderr)
    return 4
  except BrokenPipeError:  # a reader such as `head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except KeyboardInterrupt:
    print("interrupted; the same command continues", file=sys.stderr)
    return 130
  return 0
