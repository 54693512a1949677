"""`sample` and `infill`."""

import argparse
import dataclasses
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence

from set_diffusion_jax.cli.configuration import checked, load_model, with_options
from set_diffusion_jax.cli.files import show, write_text
from set_diffusion_jax.cli.texts import given_texts, read_texts
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import terminal

_DECODE_OPTIONS = (
  "commit tokens_per_step threshold window drafts temperature top_k top_p".split()
)


def sample(arguments: argparse.Namespace, changes: Sequence[str]) -> None:
  """Continues prompts."""
  given = given_texts(arguments.prompt, "--prompt")
  texts = [*given, *read_texts(arguments.input, "prompt")]
  _generate(arguments, changes, texts or [""], "prompt")


def infill(arguments: argparse.Namespace, changes: Sequence[str]) -> None:
  """Fills the gaps of texts."""
  texts = [*given_texts(arguments.text, "text"), *read_texts(arguments.input, "text")]
  if not texts:
    raise UserError('infill: give texts such as "The [MASK:12] sat.", or --input=FILE')
  _generate(arguments, changes, texts, "text")


def _generate(
  arguments: argparse.Namespace, changes: Sequence[str], texts: list[str], field: str
) -> None:
  stops = _stops(arguments)
  model = load_model(arguments, changes)
  options = with_options(model.config.decode, arguments, _DECODE_OPTIONS)
  config = checked(dataclasses.replace(model.config, decode=options))
  model = dataclasses.replace(model, config=config)
  texts = [text for text in texts for _ in range(arguments.num)]
  if field == "prompt":
    templates = model.continued(texts, arguments.length)
  else:
    templates = model.templates(texts)
  results = []
  for first in range(0, len(templates), arguments.batch_size):
    batch = templates[first : first + arguments.batch_size]
    generation = model.generation(batch, arguments.seed, first_row=first)
    if first == 0:  # by now the texts and options are known to be right
      print(model.where(), file=sys.stderr)
      if arguments.stream and not sys.stdout.isatty():
        print("--stream: standard output is no terminal; texts follow", file=sys.stderr)
    if arguments.stream and sys.stdout.isatty():
      _watch(generation, stops, [len(t) for t in batch], model.tokenizer)
    results += generation.finish(stops)
  origin = {} if model.origin is None else {"checkpoint": model.origin}
  pairs = zip(texts, results, strict=True)
  rows = [{field: text, **result, **origin} for text, result in pairs]
  write_text(arguments.output, "".join(json.dumps(row) + "\n" for row in rows))
  for number, result in enumerate(results, 1):
    steps = f"{result['steps']} steps for {len(result['tokens'])} tokens"
    show(f"--- sample {number} of {len(results)}, {steps}\n{result['text']}")


def _stops(arguments: argparse.Namespace):
  """What the --stop options ask for."""
  from set_diffusion_jax.decode import Stops

  return Stops(
    tuple(given_texts(arguments.stop, "--stop")),
    arguments.stop_regex,
    arguments.stop_repeats,
    _window("--stop-confidence", arguments.stop_confidence, lambda size: 1.0),
    _window("--stop-entropy", arguments.stop_entropy, math.log),
  )


def _window(
  flag: str, value: str | None, most: Callable[[int], float]
) -> tuple[int, float] | None:
  """N:X as a number of tokens and a bound, which is at most `most(N)`."""
  if value is None:
    return None
  plain = re.fullmatch(r"([0-9]{1,9}):([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)", value)
  size, bound = (int(plain[1]), float(plain[2])) if plain else (0, 0.0)
  if size < 1 or not 0 < bound < math.inf:
    raise UserError(f"{flag}={value}: must be N:X, such as 32:0.5, both above 0")
  if bound > most(size):
    raise UserError(
      f"{flag}={value}: {bound:g} must be at most {most(size):g}, or every text would "
      f"end after {size} tokens"
    )
  return size, bound


def _watch(generation, stops, lengths: list[int], tokenizer) -> None:
  """Shows the texts on the terminal while masks turn into text."""
  height = 0
  for look in generation.run(stops, every=1):
    size = shutil.get_terminal_size()  # 80 x 24 for a terminal that has no size
    lines = []
    for tokens, length in zip(look.tokens, lengths, strict=True):
      text = tokenizer.decode(tokens[:length], mask="\N{LIGHT SHADE}")
      lines += textwrap.wrap(terminal.shown(text), max(1, size.columns - 1)) or [""]
    lines = lines[: max(1, size.lines - 1)]
    back = f"\x1b[{height}A" if height else ""
    print(back + "".join(f"\x1b[2K{line}\n" for line in lines), end="", flush=True)
    height = len(lines)
