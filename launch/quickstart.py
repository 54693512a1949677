"""The first run: `make quickstart`, or `python launch/quickstart.py [--runs=DIR]`.

Trains a set diffusion model and an autoregressive one of the same size on the same
tokens of embedded English text, compares them on held-out text, and lets the set
diffusion model write. About three minutes on two CPU cores.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

from set_diffusion_jax import cli, data, load
from set_diffusion_jax.evaluate import unigram_bits_per_byte
from set_diffusion_jax.train import train

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
TEMPERATURE = 0.7
METHODS = {"ar": "autoregressive", "set": "set diffusion, S<=8"}


def run(runs: pathlib.Path) -> int:
  """Trains both models (or goes on where they stopped), then prints table and text."""
  rows, began = [], time.perf_counter()
  for method, name in METHODS.items():
    config = cli.read_config([f"--config={CONFIG}:method={method}"])
    print(f"== Training: {name}", file=sys.stderr)
    train(config, runs / method, label=method)
    model = load(runs / method)
    quality = model.evaluator().run(model.params).likelihood
    error = quality.summary()["bits_per_byte_standard_error"]
    bound = "exact" if quality.exact else "upper bound"
    rows.append((name, quality.bits_per_byte, error, quality.perplexity, bound))
  unigram = unigram_bits_per_byte(data.load(model.config.data))

  print("\nHeld-out text      bits per byte      perplexity")
  print(f"{'byte unigram':20} {unigram:.3f}")
  for name, bits, error, perplexity, bound in rows:
    print(f"{name:20} {bits:.3f} +- {error:.3f}   {perplexity:8.2f}   {bound}")
  options = dataclasses.replace(model.config.decode, temperature=TEMPERATURE)
  (sample,) = model.generate(["The "], seed=1, options=options)
  print(f"\nThe set diffusion model continues 'The ' at temperature {TEMPERATURE}:\n")
  print(sample["text"])
  print(f"\n{time.perf_counter() - began:.0f} s in all; the runs are in {runs}/")
  return 0


def main() -> int:
  """The exit code, as the command line has it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
  runs = parser.parse_args().runs
  return cli.guarded(lambda: run(runs))


if __name__ == "__main__":
  sys.exit(main())
