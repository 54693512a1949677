"""The command line: `python -m set_diffusion_jax VERB`.

Exit codes: 0 done; 2 the user's mistake, one line on stderr; 4 non-finite loss; 130
interrupted.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from set_diffusion_jax.config import COMMITS, WEIGHTS, Config, check_field
from set_diffusion_jax.errors import NonFiniteError, UserError

_CONFIG_HELP = (
  "--config=FILE[:key=value,...] names the configuration (required); "
  "--config.group.field=value changes one of its fields."
)


class _Parser(argparse.ArgumentParser):
  """One line instead of a usage text for a mistake."""

  def error(self, message: str):
    raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog="set-diffusion", description=__doc__, allow_abbrev=False)
  verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)

  def verb(name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text, allow_abbrev=False)

  train = verb("train", "Train, or continue, the run of a work directory.")
  train.add_argument("--workdir", required=True, type=pathlib.Path)
  train.epilog = _CONFIG_HELP

  evaluate = verb("evaluate", "Held-out likelihood of a checkpoint.")
  _checkpoint(evaluate)
  evaluate.add_argument("--draws", type=int, help="orders drawn for each sequence")
  evaluate.add_argument("--sequences", type=int, help="only the first ones")
  evaluate.add_argument("--batch-size", type=int)
  evaluate.add_argument("--seed", type=int, help="of the drawn orders")

  sample = verb("sample", "Generate text from a checkpoint.")
  _checkpoint(sample)
  sample.add_argument("--prompt", action="append", help="may be given several times")
  sample.add_argument("--num", type=int, default=1, help="samples of each prompt")
  sample.add_argument("--length", type=int, help="tokens, prompt and BOS included")
  sample.add_argument("--seed", type=int, default=0)
  sample.add_argument("--temperature", type=float, help="0: the likeliest token")
  sample.add_argument("--commit", choices=COMMITS)
  sample.add_argument("--tokens-per-step", type=int)
  sample.add_argument("--window", type=int, help="candidates of a step")

  inspect = verb("inspect", "Draw who sees whom for a method.")
  inspect.add_argument("--mask", action="store_true", required=True)
  inspect.add_argument("--length", type=int, default=16, help="positions to draw")
  inspect.add_argument("--seed", type=int, default=0, help="of the drawn order")
  inspect.add_argument(
    "--methods", help="comma-separated, side by side; default: the configuration's"
  )
  inspect.add_argument(
    "--output", type=pathlib.Path, help="PNG file (needs matplotlib); else: terminal"
  )
  inspect.epilog = _CONFIG_HELP
  return parser


def _checkpoint(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--checkpoint",
    required=True,
    type=pathlib.Path,
    help="a work directory, or one of its checkpoints/STEP",
  )
  parser.add_argument("--weights", choices=WEIGHTS, help="default: ema")
  parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")


def read_config(arguments: Sequence[str]) -> Config:
  """The configuration of `--config=FILE[:key=value,...] [--config.a.b=value ...]`."""
  arguments = list(arguments)
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    "config", None, "", flag_values=values, sys_argv=["", *arguments]
  )
  named = [a.split("=", 1)[-1] for a in arguments if a.startswith("--config=")]
  if not named or not named[-1]:
    raise UserError("--config: must name a configuration file, as --config=FILE")
  path = named[-1].split(":")[0]
  if not pathlib.Path(path).is_file():
    raise UserError(f"--config={path}: no such file")
  for argument in arguments:
    if argument.startswith("--config."):
      check_field(argument.removeprefix("--config.").split("=")[0])
  try:
    values(["", *arguments])
    settings = holder.value
  except UserError:
    raise
  except flags.Error as error:
    raise UserError(f"--config: {_one_line(error)}") from None
  except Exception as error:  # whatever the user's own file does
    kind = type(error).__name__
    raise UserError(f"--config={path}: {kind}: {_one_line(error)}") from None
  if not isinstance(settings, ConfigDict):
    kind = type(settings).__name__
    raise UserError(f"--config={path}: get_config returned {kind}, not a ConfigDict")
  return Config.from_dict(settings.to_dict())


def _one_line(error: Exception) -> str:
  text = str(error.args[0]) if error.args else type(error).__name__
  return text.strip().splitlines()[0]


def _with_options(group, arguments: argparse.Namespace, names: Sequence[str]):
  """A configuration group with the options that were given on the command line."""
  given = {name: getattr(arguments, name) for name in names}
  return dataclasses.replace(group, **{k: v for k, v in given.items() if v is not None})


def _checked(config: Config) -> Config:
  return Config.from_dict(config.to_dict())


def _write(path: pathlib.Path | None, figures: dict) -> None:
  if path is None:
    return
  try:
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(json.dumps(figures, indent=2) + "\n")
    os.replace(fresh, path)
  except OSError as error:
    raise UserError(f"--output={path}: {error.strerror}") from None


def _train(arguments: argparse.Namespace, config: Config) -> None:
  from set_diffusion_jax.train import train

  train(config, arguments.workdir)


def _evaluate(arguments: argparse.Namespace) -> None:
  from set_diffusion_jax.api import load
  from set_diffusion_jax.metrics import Progress

  model = load(arguments.checkpoint, arguments.weights)
  options = _with_options(
    model.config.evaluate, arguments, ("draws", "sequences", "batch_size", "seed")
  )
  config = _checked(dataclasses.replace(model.config, evaluate=options))
  model = dataclasses.replace(model, config=config)
  evaluator = model.evaluator()
  with Progress(evaluator.batches, label="evaluate", unit="batch") as progress:
    quality = evaluator.run(model.params, progress.advance)
  figures = {**quality.summary(), "protocol": model.protocol()}
  _write(arguments.output, figures)
  rows = (
    ("nats per token", "nats_per_token", 4),
    ("perplexity", "perplexity", 3),
    ("bits per byte", "bits_per_byte", 4),
  )
  for label, name, digits in rows:
    error = figures[f"{name}_standard_error"]
    spread = "" if math.isnan(error) else f" +- {error:.{digits}f}"
    print(f"{label:15} {figures[name]:.{digits}f}{spread}")
  if "mixture_perplexity" in figures:
    error = figures["mixture_perplexity_standard_error"]
    spread = "" if math.isnan(error) else f" +- {error:.3f}"
    value = f"{figures['mixture_perplexity']:.3f}{spread}"
    print(f"{'mixture ppl':15} {value}  ({figures['draws']} orders together)")
  print(f"{'bound':15} {figures['bound']}")
  counted = f"{figures['tokens']:,} tokens, {figures['bytes']:,} bytes"
  print(f"{'counted':15} {counted}, {figures['sequences']:,} sequences")
  print(f"{'draws':15} {figures['draws']}")


def _sample(arguments: argparse.Namespace) -> None:
  from set_diffusion_jax.api import load

  if arguments.num < 1:
    raise UserError(f"--num={arguments.num}: must be at least 1")
  model = load(arguments.checkpoint, arguments.weights)
  names = ("temperature", "commit", "tokens_per_step", "window")
  options = _with_options(model.config.decode, arguments, names)
  options = _checked(dataclasses.replace(model.config, decode=options)).decode
  prompts = [p for p in arguments.prompt or [""] for _ in range(arguments.num)]
  results = model.generate(prompts, arguments.length, arguments.seed, options)
  _write(arguments.output, {"samples": results})
  for number, result in enumerate(results, 1):
    steps = f"{result['steps']} steps for {len(result['tokens'])} tokens"
    print(f"--- sample {number} of {len(results)}, {steps}")
    print(result["text"])


def _inspect(arguments: argparse.Namespace, config: Config) -> None:
  from set_diffusion_jax import picture

  if not 2 <= arguments.length <= config.data.length:
    right = f"must be from 2 to data.length={config.data.length}"
    raise UserError(f"--length={arguments.length}: {right}")
  panels = []
  for name in (arguments.methods or config.method.name).split(","):
    settings = config.to_dict()
    settings["data"]["length"] = arguments.length
    settings["method"].update(name=name, prediction_budget=None)
    one = Config.from_dict(settings)
    objective = picture.objective_of(one)
    index = picture.drawn_index(objective, arguments.length, arguments.seed)
    panels.append((picture.title(one), index))
  if arguments.output is None:
    print("\n\n".join(f"{title}\n{picture.terminal(i)}" for title, i in panels))
    return
  if arguments.output.suffix != ".png":
    raise UserError(f"--output={arguments.output}: must end in .png")
  try:
    picture.save(panels, arguments.output)
  except OSError as error:
    raise UserError(f"--output={arguments.output}: {error.strerror}") from None
  except ImportError:
    raise UserError("--output: needs matplotlib; pip install matplotlib") from None


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
    arguments = _parser().parse_args([a for a in argv if a not in configuration])
    configured = {"train": _train, "inspect": _inspect}
    if arguments.verb in configured:
      configured[arguments.verb](arguments, read_config(configuration))
    elif configuration:
      raise UserError(f"{configuration[0]}: {arguments.verb} takes no --config")
    else:
      {"evaluate": _evaluate, "sample": _sample}[arguments.verb](arguments)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except NonFiniteError as error:
    print(f"error: {error}; the last checkpoint is from before", file=sys.stderr)
    return 4
  except KeyboardInterrupt:
    print("interrupted; `train` on the same directory continues", file=sys.stderr)
    return 130
  return 0
