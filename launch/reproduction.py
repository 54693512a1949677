"""The papers' tables at a small size: `python launch/reproduction.py TEXT ...`.

Trains every model of configs/reproduction.py on the same tokens of the given texts
(files of text, or JSON lines), evaluates them on the same held-out sequences, and
writes figures, paired differences and variances to RUNS/results.json and results.md.
A run that was interrupted goes on. About an hour on two CPU cores.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax import cli, data, load
from set_diffusion_jax.config import Config
from set_diffusion_jax.configs.reproduction import MODELS
from set_diffusion_jax.diffusion.draws import training_keys
from set_diffusion_jax.evaluate import Likelihood
from set_diffusion_jax.storage.disk import write_whole
from set_diffusion_jax.training.step import gradient_variance, micro_gradients
from set_diffusion_jax.training.train import Run, train

HELD_OUT = 0.05  # the last part of each text
VOCABULARY = 4096
DRAWS = 8  # of each held-out sequence
GRADIENT_BATCHES = 200
# What the papers' tables say about which is the better (lower) of two.
COMPARISONS = (
  ("ar", "set_8"),
  ("set_8", "set_32"),
  ("set_32", "masked"),
  ("block_4", "masked"),
  ("set_8", "block_4"),
  ("set_8", "set_8_active"),
  ("block_4_clipped", "block_4"),
)


def documents(path: pathlib.Path) -> list[str]:
  """The documents of a file: a text, or all text fields of each JSON line."""
  text = path.read_text(encoding="utf-8-sig")
  if path.suffix != ".jsonl":
    return [text]
  records = map(json.loads, text.splitlines())
  return ["\n".join(v for v in r.values() if isinstance(v, str)) for r in records]


def prepare(texts: list[pathlib.Path], runs: pathlib.Path) -> None:
  """Splits the texts and trains the tokenizer on the training part."""
  sides = {"train": [], "validation": []}
  for path in texts:
    split = data.hold_out_end(documents(path), HELD_OUT)
    for side, found in split._asdict().items():
      sides[side] += found
  runs.mkdir(parents=True, exist_ok=True)
  for side, found in sides.items():
    lines = "".join(json.dumps({"text": text}) + "\n" for text in found)
    write_whole(runs / f"{side}.jsonl", lines)
  tokenizer = data.train_bpe(sides["train"], VOCABULARY)
  write_whole(runs / "tokenizer.json", tokenizer)


def evaluate(path: pathlib.Path) -> Likelihood:
  """The held-out likelihood of a run, by counts where sets are partly masked."""
  model = load(path)
  options = dataclasses.replace(model.config.evaluate, draws=DRAWS)
  # Where a clip is searched, evaluations go by noise levels.
  corruption = dataclasses.replace(model.config.corruption, clip_width=None)
  config = dataclasses.replace(model.config, evaluate=options, corruption=corruption)
  model = dataclasses.replace(model, config=config)
  return model.evaluator().run(model.params).likelihood


def paired(better: Likelihood, worse: Likelihood) -> dict:
  """The difference in nats per token over the same sequences, and its 2 SE verdict."""
  difference = worse.nats - better.nats
  residual = difference - difference.sum() / better.tokens.sum() * better.tokens
  n, total = len(residual), better.tokens.sum()
  error = float(np.sqrt(n / (n - 1) * (residual**2).sum()) / total)
  mean = float(difference.sum() / total)
  verdict = "not resolved"
  if abs(mean) > 2 * error:
    verdict = "as published" if mean > 0 else "the other way round"
  return {"nats_per_token": mean, "standard_error": error, "verdict": verdict}


def loss_variance(path: pathlib.Path) -> dict:
  """The variance of a block's training loss on [0, 1], and on the range searched."""
  model = load(path)
  config = model.config
  options = dataclasses.replace(config.evaluate, draws=DRAWS, seed=1)
  corruption = dataclasses.replace(config.corruption, clip_width=0.5)
  config = dataclasses.replace(config, evaluate=options, corruption=corruption)
  model = dataclasses.replace(model, config=config)
  return model.evaluator().run(model.params).clip._asdict()


def gradient_variances(path: pathlib.Path) -> dict:
  """Gradient variance of training on all positions, and on active ones only.

  At the same weights, on the same batches. `token`: of one predicted token's gradient
  (Set Diffusion, appendix K.1). `batch`: of the mean gradient of a batch.
  """
  model = load(path)
  figures = {}
  for predict in ("all", "active"):
    run = Run.build(_with_variance(model.config, predict))

    @jax.jit
    def measure(batch, number, run=run):
      keys = training_keys(jax.random.key(0), number, batch.row)
      clip = jnp.array([0.0, 1.0])
      sums = micro_gradients(run.objective, model.params, clip, batch, keys)
      mean = jax.tree.map(lambda g: g / sums.loss.denominator, sums.gradient)
      return gradient_variance(sums), jax.flatten_util.ravel_pytree(mean)[0]

    batches = run.batches()
    token, gradients = [], 0.0
    squares = []
    for number in range(GRADIENT_BATCHES):
      variance, gradient = measure(run.put(next(batches)), number)
      token.append(float(variance))
      gradients += np.asarray(gradient, np.float64)
      squares.append(float(jnp.square(gradient).sum()))
    n = GRADIENT_BATCHES
    excess = (np.square(gradients / n).sum() * n) / (n - 1)
    squares = np.array(squares) * n / (n - 1)
    figures[predict] = {"token": _mean(np.array(token)), "batch": _mean(squares)}
    figures[predict]["batch"]["mean"] -= float(excess)
  return figures


def _with_variance(config: Config, predict: str) -> Config:
  return dataclasses.replace(
    config,
    method=dataclasses.replace(config.method, predict=predict),
    train=dataclasses.replace(config.train, gradient_variance=True),
    loss=dataclasses.replace(config.loss, weighting="uniform", denominator="masked"),
  )


def _mean(values: np.ndarray) -> dict:
  error = float(values.std(ddof=1) / np.sqrt(len(values)))
  return {"mean": float(values.mean()), "standard_error": error}


def report(results: dict) -> str:
  """The results as the tables of docs/results.md."""
  lines = [
    "| model | nats per token | perplexity | bits per byte | |",
    "|---|---|---|---|---|",
  ]
  for name, r in results["models"].items():
    error = r["nats_per_token_standard_error"]
    lines.append(
      f"| {name} | {r['nats_per_token']:.4f} ± {error:.4f} "
      f"| {r['perplexity']:.2f} ± {r['perplexity_standard_error']:.2f} "
      f"| {r['bits_per_byte']:.4f} | {r['bound']} |"
    )
  lines += [
    "",
    "| lower | higher | difference, nats per token | |",
    "|---|---|---|---|",
  ]
  for r in results["comparisons"]:
    lines.append(
      f"| {r['lower']} | {r['higher']} | {r['nats_per_token']:+.4f} ± "
      f"{r['standard_error']:.4f} | {r['verdict']} |"
    )
  return "\n".join(lines) + "\n"


def main() -> int:
  """The exit code, as the command line has it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("texts", nargs="+", type=pathlib.Path)
  parser.add_argument("--runs", type=pathlib.Path, default="runs/reproduction")
  arguments = parser.parse_args()
  try:
    return cli.guarded(lambda: run(arguments.texts, arguments.runs))
  except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def run(texts: list[pathlib.Path], runs: pathlib.Path) -> int:
  """Prepares, trains, evaluates, compares."""
  if not (runs / "tokenizer.json").exists():
    prepare(texts, runs)
  models = dict.fromkeys(MODELS)
  seconds = {}
  for name in models:
    config = cli.read_config([f"--config=reproduction:model={name},data={runs}"])
    began = time.perf_counter()
    train(config, runs / name, label=name)
    seconds[name] = time.perf_counter() - began
  results: dict = {"training_seconds": seconds, "models": {}}

  def keep(part: str, figures: dict | list) -> None:
    results[part] = figures
    write_whole(runs / "results.json", json.dumps(results, indent=2) + "\n")

  for name in models:
    models[name] = evaluate(runs / name)
    keep("models", {**results["models"], name: models[name].summary()})
  compared = [
    {"lower": a, "higher": b, **paired(models[a], models[b])} for a, b in COMPARISONS
  ]
  keep("comparisons", compared)
  clipped = ("block_4", "block_4_clipped")
  keep("loss_variance", {name: loss_variance(runs / name) for name in clipped})
  predicted = ("set_8", "set_8_active")
  keep(
    "gradient_variance", {name: gradient_variances(runs / name) for name in predicted}
  )
  write_whole(runs / "results.md", report(results))
  print(report(results))
  print(json.dumps({k: results[k] for k in ("loss_variance", "gradient_variance")}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
