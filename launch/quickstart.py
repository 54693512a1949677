"""The first run: `make quickstart`, or `python launch/quickstart.py [--runs=DIR]`.

Trains a set diffusion model and an autoregressive one of the same size on the same
tokens of embedded English text, compares them on held-out text, lets the set diffusion
model fill a gap, and draws how both learnt and when each token was committed. About two
minutes and a half on two CPU cores.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import jax

from set_diffusion_jax import cli, data, load
from set_diffusion_jax.evaluate import unigram_bits_per_byte
from set_diffusion_jax.figures import first_run
from set_diffusion_jax.training.metrics import read_metrics
from set_diffusion_jax.training.train import train

METHODS = {"ar": "autoregressive", "set": "set diffusion, S<=8"}
TEXT = "Return the [MASK:32] of the string."
SEED, TEMPERATURE = 1, 0.5


def run(runs: pathlib.Path) -> int:
  """Trains both models (or goes on where they stopped), compares, fills and draws."""
  # What was compiled to evaluate while training is used again at the end.
  jax.config.update("jax_compilation_cache_dir", str(runs / "compiled"))
  rows, curves, began = [], {}, time.perf_counter()
  for method, name in METHODS.items():
    config = cli.read_config([f"--config=quickstart:method={method}"])
    print(f"== Training: {name}", file=sys.stderr)
    train(config, runs / method, label=method)
    model = load(runs / method)
    quality = model.evaluator().run(model.params).likelihood
    rows.append((name, quality))
    curves[name] = first_run.held_out_curve(
      read_metrics(runs / method / "metrics.jsonl")
    )
  _table(rows, unigram_bits_per_byte(data.load(model.config.data)))

  options = dataclasses.replace(model.config.decode, temperature=TEMPERATURE)
  (template,) = model.templates([TEXT])
  generation = model.generation([template], SEED, options)
  looks = generation.run(every=1)
  given = template != model.tokenizer.vocabulary.mask
  filling = first_run.Filling.of(looks, given, lambda i: model.tokenizer.decode([i]))
  (filled,) = generation.results()
  print(f"\nThe set diffusion model fills the gap of {TEXT!r}:\n\n{filled['text']}")
  picture = runs / "quickstart.png"
  first_run.save(picture, curves, filling)
  print(f"\nHow both learnt, and which token was committed when: {picture}")
  print(f"{time.perf_counter() - began:.0f} s in all; the runs are in {runs}/")
  return 0


def _table(rows, unigram: float) -> None:
  """The held-out likelihood of each model, with its standard error."""
  print("\nHeld-out text      bits per byte      perplexity")
  print(f"{'byte unigram':20} {unigram:.3f}")
  for name, quality in rows:
    error = quality.summary()["bits_per_byte_standard_error"]
    bound = "exact" if quality.exact else "upper bound"
    figures = f"{quality.bits_per_byte:.3f} +- {error:.3f}   {quality.perplexity:8.2f}"
    print(f"{name:20} {figures}   {bound}")


def main() -> int:
  """The exit code, as the command line has it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
  runs = parser.parse_args().runs
  return cli.guarded(lambda: run(runs))


if __name__ == "__main__":
  sys.exit(main())
