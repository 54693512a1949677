"""`evaluate`: held-out and zero-shot likelihoods."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

from set_diffusion_jax import processes
from set_diffusion_jax.cli.configuration import checked, load_model, with_options
from set_diffusion_jax.cli.files import write
from set_diffusion_jax.data.zero_shot import zero_shot_data, zero_shot_names
from set_diffusion_jax.errors import UserError


def evaluate(arguments: argparse.Namespace, changes: Sequence[str]) -> None:
  """The figures of a checkpoint, printed and written."""
  model = processes.together(lambda: load_model(arguments, changes))
  config = model.config
  options = with_options(
    config.evaluate, arguments, ("draws", "sequences", "batch_size", "seed", "order")
  )
  config = checked(dataclasses.replace(config, evaluate=options))
  if arguments.zero_shot is None:
    if arguments.zero_shot_data is not None:
      raise UserError("--zero-shot-data: needs --zero-shot=NAME,...")
    model = dataclasses.replace(model, config=config)
    figures = _likelihood(model, arguments.output, "evaluate")
    if processes.is_first():
      _print_figures(figures)
    return
  every = {}
  for name in zero_shot_names(arguments.zero_shot):
    corpus = zero_shot_data(name, config.data, arguments.zero_shot_data)
    one = dataclasses.replace(model, config=dataclasses.replace(config, data=corpus))
    # Each corpus has a file of its own besides, so that what is done is done.
    output = arguments.output and arguments.output.with_suffix(f".{name}.json")
    every[name] = figures = _likelihood(one, output, name)
    spread = _spread(figures["perplexity_standard_error"], 2)
    bound = f"{figures['bound']}, {figures['tokens']:,} tokens"
    value = _number(figures["perplexity"], 2)
    if processes.is_first():
      print(f"{name:12} perplexity {value}{spread}  {bound}")
  if processes.is_first():
    write(arguments.output, {"zero_shot": every})


def _likelihood(model, output: pathlib.Path | None, label: str) -> dict:
  """The figures of a model on its held-out text, also in the file `output`.

  Goes on where it was interrupted; the same figures are not computed a second time.
  Of several processes, the first one reads and writes the files.
  """
  from set_diffusion_jax.evaluate import PartialResults
  from set_diffusion_jax.metrics import Progress

  evaluator = processes.together(model.evaluator)
  protocol = model.protocol(evaluator.held_out)
  identity = {**protocol, "weights_digest": model.weights_digest}
  processes.check_same(identity)
  found = processes.from_first(lambda: _finished(output, identity))
  if found is not None:
    return found
  first, partial, done = processes.is_first(), None, {}

  def open_partial() -> list:
    nonlocal partial
    if output is not None:
      partial = PartialResults(output, identity)
    return list(partial.rows.items()) if partial else []

  done = {row: tuple(sums) for row, sums in processes.from_first(open_partial)}
  with Progress(
    evaluator.total, len(done), label, "sequence", active=first
  ) as progress:
    progress.say(evaluator.objective.where())
    if done:
      progress.say(f"continues from sequence {len(done)} of {evaluator.total}")

    def advance(rows: dict) -> None:
      if partial is not None:
        partial.add(rows)
      progress.advance(len(rows))

    quality = evaluator.run(model.params, advance, done).likelihood
  figures = {**quality.summary(), "protocol": identity}
  if first and partial is not None:
    write(output, figures)
    partial.finish()
  return figures


def _finished(output: pathlib.Path | None, identity: dict) -> dict | None:
  """The figures of a file that holds just this evaluation; None if it does not."""
  try:
    figures = json.loads(output.read_text()) if output else None
  except (OSError, ValueError):
    return None
  same = isinstance(figures, dict) and figures.get("protocol") == identity
  return figures if same else None


def _number(value: float | None, digits: int) -> str:
  return "not finite" if value is None else f"{value:.{digits}f}"


def _spread(error: float | None, digits: int) -> str:
  """A standard error, or nothing where there is none."""
  return "" if error is None else f" +- {error:.{digits}f}"


def _print_figures(figures: dict) -> None:
  rows = (
    ("nats per token", "nats_per_token", 4),
    ("perplexity", "perplexity", 3),
    ("bits per byte", "bits_per_byte", 4),
  )
  for label, name, digits in rows:
    spread = _spread(figures[f"{name}_standard_error"], digits)
    print(f"{label:15} {_number(figures[name], digits)}{spread}")
  if "mixture_perplexity" in figures:
    spread = _spread(figures["mixture_perplexity_standard_error"], 3)
    value = f"{_number(figures['mixture_perplexity'], 3)}{spread}"
    print(f"{'mixture ppl':15} {value}  ({figures['draws']} orders together)")
  print(f"{'bound':15} {figures['bound']}")
  counted = f"{figures['tokens']:,} tokens, {figures['bytes']:,} bytes"
  print(f"{'counted':15} {counted}, {figures['sequences']:,} sequences")
  print(f"{'draws':15} {figures['draws']}")
