"""`inspect` and `convert`: what is in a checkpoint, and the way to other formats."""

import argparse
import sys
from collections.abc import Sequence

from set_diffusion_jax.cli.files import check_output, is_file, show, write
from set_diffusion_jax.config import Config
from set_diffusion_jax.config.files import config_file, read_config
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import content
from set_diffusion_jax.inputs.records import parse_json


def convert(arguments: argparse.Namespace) -> None:
  """Converts a checkpoint and says what was done."""
  from set_diffusion_jax import convert as conversion

  figures = None
  if arguments.evaluation is not None:
    where = f"--evaluation={arguments.evaluation}"
    try:
      figures = parse_json(content(arguments.evaluation), where)
    except OSError as error:
      raise UserError(f"{where}: {error.strerror}") from None
    if not isinstance(figures, dict):
      raise UserError(f"{where}: must be a JSON object")
  report = conversion.convert(
    arguments.source,
    arguments.destination,
    weights=arguments.weights,
    dtype=arguments.dtype,
    shard_size=round(arguments.shard_size * 10**9),
    verify=arguments.verify,
    fresh_process=True,
    evaluation=figures,
    backbone_config=arguments.backbone_config,
  )
  show(f"{report.direction}: {report.destination}")
  kind = f", {report.weights} weights" if report.weights else ""
  show(f"{report.parameters:,} parameters, {', '.join(report.dtypes)}{kind}")
  for note in report.notes:
    show(f"note: {note}")
  if report.verified:
    show(f"verified: {report.verified} parameters are equal bit by bit")
    found = "not compared, torch is not installed"
    if report.logits_difference is not None:
      found = f"differ by {report.logits_difference:.1g} of the largest"
    show(f"logits of PyTorch's own forward pass: {found}")


def inspect(arguments: argparse.Namespace, configuration: Sequence[str]) -> None:
  """Describes a checkpoint, draws masks, or shows a batch."""
  if [arguments.mask, arguments.data, arguments.checkpoint is not None].count(
    True
  ) != 1:
    raise UserError("inspect: give a checkpoint, or --mask or --data and --config=FILE")
  if arguments.data:
    from set_diffusion_jax.cli.batch import batch_figures

    config = read_config(configuration)
    files = config.data
    read = (files.train_path, files.validation_path, files.directory, files.tokenizer)
    check_output(arguments.output, inputs=[*read, config_file(configuration)])
    figures, text = batch_figures(config, arguments.rows, sys.stdout.isatty())
    write(arguments.output, figures)
    show(text, text)
    return
  if arguments.mask:
    _inspect_mask(arguments, configuration)
    return
  from set_diffusion_jax.convert import describe, description_text

  if configuration:
    raise UserError(f"{configuration[0]}: a checkpoint has its own")
  check_output(
    arguments.output, inputs=[arguments.checkpoint, arguments.backbone_config]
  )
  description = describe(
    arguments.checkpoint, backbone_config=arguments.backbone_config
  )
  write(arguments.output, description)
  show(description_text(description))


def _inspect_mask(arguments: argparse.Namespace, configuration: Sequence[str]) -> None:
  from set_diffusion_jax.figures import masks

  config = read_config(configuration)
  if not 2 <= arguments.length <= config.data.length:
    right = f"must be from 2 to data.length={config.data.length}"
    raise UserError(f"--length={arguments.length}: {right}")
  panels = []
  for name in (arguments.methods or config.method.name).split(","):
    settings = config.to_dict()
    settings["data"]["length"] = arguments.length
    settings["method"].update(name=name, prediction_budget=None)
    one = Config.from_dict(settings)
    objective = masks.objective_of(one)
    index = masks.drawn_index(objective, arguments.length, arguments.seed)
    panels.append((masks.title(one), index))
  if arguments.output is None:
    show("\n\n".join(f"{title}\n{masks.terminal(i)}" for title, i in panels))
    return
  check_output(arguments.output, inputs=[config_file(configuration)])
  if is_file(arguments.output) and arguments.output.suffix != ".png":
    raise UserError(f"--output={arguments.output}: must end in .png")
  try:
    masks.save(panels, arguments.output)
  except OSError as error:
    raise UserError(f"--output={arguments.output}: {error.strerror}") from None
