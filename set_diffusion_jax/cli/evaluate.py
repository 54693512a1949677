"""`evaluate`: held-out and zero-shot likelihoods."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

from set_diffusion_jax.cli.configuration import checked, load_model, with_options
from set_diffusion_jax.cli.files import check_output, is_file, show, write, write_text
from set_diffusion_jax.config import Config, DataConfig
from set_diffusion_jax.data.zero_shot import zero_shot_data, zero_shot_names
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.jobs.phases import here


def evaluate(arguments: argparse.Namespace, changes: Sequence[str]) -> None:
  """The figures of a checkpoint, printed and written."""
  _check_by(arguments)
  with here.phase("restore"):
    model = processes.together(lambda: load_model(arguments, changes))
  config = model.config
  options = with_options(
    config.evaluate, arguments, ("draws", "sequences", "batch_size", "seed", "order")
  )
  config = checked(dataclasses.replace(config, evaluate=options))
  corpora = _corpora(arguments, config)
  read = [arguments.checkpoint, arguments.backbone_config, config.evaluate.order]
  for text in (config.data, *corpora.values()):
    read += [text.train_path, text.validation_path, text.directory, text.tokenizer]
  for output in (arguments.output, *(_of_corpus(arguments.output, n) for n in corpora)):
    check_output(output, inputs=read)
  _check_by_output(arguments, read)
  if not corpora:
    model = dataclasses.replace(model, config=config)
    detail = arguments.by, arguments.by_output
    figures = _likelihood(model, arguments.output, "evaluate", *detail)
    if processes.is_first():
      _print_figures(figures)
      _print_young_average(model, arguments.weights)
    return
  every = {}
  for name, corpus in corpora.items():
    one = dataclasses.replace(model, config=dataclasses.replace(config, data=corpus))
    output = _of_corpus(arguments.output, name)
    every[name] = figures = _likelihood(one, output, name)
    spread = _spread(figures["perplexity_standard_error"], 2)
    bound = f"{figures['bound']}, {figures['tokens']:,} tokens"
    value = _number(figures["perplexity"], 2)
    if processes.is_first():
      show(f"{name:12} perplexity {value}{spread}  {bound}")
  if processes.is_first():
    _print_young_average(model, arguments.weights)
    write(arguments.output, {"zero_shot": every})


def _corpora(arguments: argparse.Namespace, config: Config) -> dict[str, DataConfig]:
  """Where each corpus of --zero-shot is, by name; {} without that option."""
  if arguments.zero_shot is None:
    if arguments.zero_shot_data is not None:
      raise UserError("--zero-shot-data: needs --zero-shot=NAME,...")
    return {}
  names, folder = zero_shot_names(arguments.zero_shot), arguments.zero_shot_data
  return {name: zero_shot_data(name, config.data, folder) for name in names}


def _print_young_average(model, weights: str | None) -> None:
  """Says it where the figures are those of an EMA that is still close to its start."""
  from set_diffusion_jax.training.state import young_average

  config = model.config
  if (weights or config.evaluate.weights) != "ema":
    return
  young = young_average(config.optimizer, model.step)
  if young is not None:
    show(f"{'weights':15} {young}")


def _of_corpus(output: pathlib.Path | None, name: str) -> pathlib.Path | None:
  """The file of one corpus, which has one besides so that what is done is done.

  None where there is none: with no output, or one that is no file of its own.
  """
  if output is None or not is_file(output):
    return None
  stem = output.name.removesuffix(".json")
  return output.with_name(f"{stem}.{name}.json")


def _check_by(arguments: argparse.Namespace) -> None:
  """UserError unless --by and --by-output stand together, and can do so."""
  by, output = arguments.by, arguments.by_output
  if by is None and output is None:
    return
  if output is None:
    raise UserError(f"--by={by}: needs --by-output=FILE.jsonl")
  if by is None:
    raise UserError(f"--by-output={output}: needs --by=token or --by=rank")
  if arguments.zero_shot is not None:
    raise UserError(f"--by={by}: is of the run's own text, without --zero-shot")


def _check_by_output(arguments: argparse.Namespace, read: Sequence) -> None:
  """UserError unless --by-output, if it is given, can be written to."""
  output = arguments.by_output
  if output is None:
    return
  check_output(output, "--by-output", read)
  whole = arguments.output
  if whole is not None and is_file(output) and whole.resolve() == output.resolve():
    raise UserError(f"--by-output={output}: must be another file than --output")


def _likelihood(
  model,
  output: pathlib.Path | None,
  label: str,
  by: str | None = None,
  by_output: pathlib.Path | None = None,
) -> dict:
  """The figures of a model on its held-out text, also in the file `output`.

  With `by` those by token or by rank go to the file `by_output`.
  Goes on where it was interrupted; the same figures are not computed a second time.
  Of several processes, the first one reads and writes the files.
  """
  from set_diffusion_jax.evaluate import SUMS, PartialResults
  from set_diffusion_jax.training.metrics import Progress

  with here.phase("data"):
    evaluator = processes.together(lambda: model.evaluator(by))
  protocol = model.protocol(evaluator)
  identity = {**protocol, "weights_digest": model.weights_digest}
  processes.check_same(identity)
  found = None
  if by is None:
    found = processes.from_first(lambda: _finished(output, identity))
  if found is not None:
    return found
  first, partial, done = processes.is_first(), None, {}

  def open_partial() -> list:
    nonlocal partial
    if output is not None and is_file(output):
      what = {**identity, "by": by}
      figures = SUMS if by is None else SUMS + 2 * model.config.data.length
      partial = PartialResults(output, what, evaluator.total, figures)
    return list(partial.rows.items()) if partial else []

  done = {row: tuple(sums) for row, sums in processes.from_first(open_partial)}
  rows = dict(done)
  with Progress(
    evaluator.total, len(done), label, "sequence", active=first
  ) as progress:
    for line in (evaluator.objective.where(), *evaluator.held_out.notes):
      progress.say(line)
    if done:
      progress.say(f"continues from sequence {len(done)} of {evaluator.total}")

    def advance(new: dict) -> None:
      rows.update(new)
      if partial is not None:
        partial.add(new)
      progress.advance(len(new))

    with here.phase("evaluation"):
      quality = evaluator.run(model.params, advance, done).likelihood
  origin = {} if model.origin is None else {"checkpoint": model.origin}
  figures = {**quality.summary(), **origin, "protocol": identity}
  if first and by is not None:
    lines = "".join(_detail_lines(by, evaluator.held_out, rows))
    write_text(by_output, lines, "--by-output")
  if first:
    write(output, figures)
  if partial is not None:
    partial.finish()
  return figures


def _detail_lines(by: str, held_out, rows: dict) -> Iterator[str]:
  """A JSON line for each sequence: its tokens that count, by position or by rank.

  Args:
    by: "token" or "rank".
    held_out: the sequences.
    rows: the figures of each row, of an `Evaluator` with `by`.
  """
  from set_diffusion_jax.evaluate import detail

  for row in sorted(rows):
    found = detail(rows[row])
    number, nats = found.number.tolist(), found.nats.tolist()
    line = {"sequence": row, "rank": number, "tokens": found.tokens.tolist()}
    if by == "token":
      ids = held_out[row]["tokens"][found.number].tolist()
      line = {"sequence": row, "position": number, "token": ids}
    yield json.dumps({**line, "nats": nats}) + "\n"


def _finished(output: pathlib.Path | None, identity: dict) -> dict | None:
  """The figures of a file that holds just this evaluation; None if it does not."""
  try:
    figures = None
    if output is not None and is_file(output):
      figures = parse_json(output.read_bytes(), str(output))
  except (OSError, UserError):
    return None
  same = isinstance(figures, dict) and figures.get("protocol") == identity
  return figures if same else None


def _number(value: float | None, digits: int) -> str:
  return "not finite" if value is None else f"{value:.{digits}f}"


def _spread(error: float | None, digits: int) -> str:
  """A standard error, or nothing where there is none."""
  return "" if error is None else f" +- {error:.{digits}f}"


def _parts(figures: dict, name: str, digits: int) -> str:
  """Where a standard error is from, or nothing where there was one draw."""
  found = [(part, figures.get(f"{name}_{part}")) for part in ("texts", "draws")]
  each = [f"{part} {error:.{digits}f}" for part, error in found if error is not None]
  return f"  ({', '.join(each)})" if each else ""


def _print_figures(figures: dict) -> None:
  rows = (
    ("nats per token", "nats_per_token", 4),
    ("perplexity", "perplexity", 3),
    ("bits per byte", "bits_per_byte", 4),
  )
  for label, name, digits in rows:
    spread = _spread(figures[f"{name}_standard_error"], digits)
    parts = _parts(figures, f"{name}_standard_error", digits)
    show(f"{label:15} {_number(figures[name], digits)}{spread}{parts}")
  if "mixture_perplexity" in figures:
    spread = _spread(figures["mixture_perplexity_standard_error"], 3)
    value = f"{_number(figures['mixture_perplexity'], 3)}{spread}"
    show(f"{'mixture ppl':15} {value}  ({figures['draws']} orders together)")
  show(f"{'bound':15} {figures['bound']}")
  counted = f"{figures['tokens']:,} tokens, {figures['bytes']:,} bytes"
  show(f"{'counted':15} {counted}, {figures['sequences']:,} sequences")
  if softmax := figures["protocol"].get("softmax"):
    show(f"{'softmax':15} over {softmax}")
  levels = figures["protocol"]["levels"]
  by = {"counts": ", by counts", "uniform": ", by noise levels", None: ""}[levels]
  show(f"{'draws':15} {figures['draws']}{by}")
