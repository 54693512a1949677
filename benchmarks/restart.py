"""Restart to first step: from the start of the process until it has logged a step.

A run is killed and started again, with the compiled programs of the starts before it
(warm) and without (cold) in turn. Beside the seconds stands what they are of the time
that compiling the training step takes, tracing included, in a process that does nothing
else meanwhile.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import measure
from set_diffusion_jax.config.files import read_config
from set_diffusion_jax.training.train import Run

ROOT = pathlib.Path(__file__).parents[1]
REPEATS = 3
MODELS = {
  "small": {"layers": 2, "width": 64, "heads": 2, "ffn": 256},
  "mid-size": {"layers": 12, "width": 384, "heads": 6, "ffn": 1536},
}
_LENGTH, _SAVED = 256, 2
_SENTENCE = "It was the best of times, it was the worst of times.\n"


def config_file(folder: pathlib.Path, model: dict) -> pathlib.Path:
  """A configuration, with its text, that saves step 2 and then no more."""
  text = folder / "text.txt"
  text.write_text("".join(f"{number}. {_SENTENCE}" for number in range(2000)))
  train = {"steps": 10_000, "batch_size": 4, "log_every": 1}
  train |= {"evaluate_every": 10_000, "checkpoint_every": _SAVED, "keep_latest": 1}
  fields = {
    "model": model,
    "method": {"name": "set", "max_set_size": 8.0},
    "data": {"source": "text", "train_path": str(text), "length": _LENGTH},
    "train": train,
  }
  file = folder / "config.py"
  file.write_text(
    "import json\nfrom set_diffusion_jax.config import default_config\n"
    "def get_config(_=''):\n"
    "  config = default_config()\n"
    f"  config.update(json.loads({json.dumps(fields)!r}))\n"
    "  return config\n"
  )
  return file


def until_step(config: pathlib.Path, workdir: pathlib.Path, step: int) -> float:
  """Seconds until a run has logged a step; it is killed then."""
  environment = dict(os.environ)
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  words = ["train", f"--config={config}", f"--workdir={workdir}"]
  began = time.perf_counter()
  with subprocess.Popen(
    [sys.executable, "-m", "set_diffusion_jax", *words],
    cwd=ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      for line in process.stderr:
        if re.match(rf"step {step} .*loss", line):
          return time.perf_counter() - began
    finally:
      process.kill()
  raise RuntimeError(f"the run ended with {process.returncode}")


def compile_seconds(config: pathlib.Path) -> float:
  """Of the training step, tracing included."""
  run = Run.build(read_config([f"--config={config}"]))
  start = time.perf_counter()
  run.step.lower(run.abstract_state(), run.abstract_batch()).compile()
  return time.perf_counter() - start


def of_model(model: dict, repeats: int) -> dict:
  """Medians of restarts and of compiling, in seconds, with their spreads."""
  found: dict = {"compile": [], "cold": [], "warm": []}
  with tempfile.TemporaryDirectory(prefix="restart-") as name:
    folder = pathlib.Path(name)
    config, workdir = config_file(folder, model), folder / "run"
    until_step(config, workdir, 3 * _SAVED)  # a save waits for the one before it
    kept = folder / "kept"
    shutil.copytree(workdir, kept)
    for _ in range(repeats):
      found["compile"].append(measure.in_process(compile_seconds, config))
      for cache in ("cold", "warm"):
        shutil.rmtree(workdir / "checkpoints")
        shutil.copytree(kept / "checkpoints", workdir / "checkpoints")
        if cache == "cold":
          with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(workdir / "compilation-cache")
        first = max(int(path.name) for path in _steps(workdir)) + 1
        found[cache].append(until_step(config, workdir, first))
  return {
    name: {"median": statistics.median(times), "spread": [min(times), max(times)]}
    for name, times in found.items()
  }


def _steps(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Whole checkpoints."""
  return [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]


def main(models: dict[str, dict] = MODELS, repeats: int = REPEATS) -> dict:
  """Measures; seconds of each model by name."""
  results = {}
  for name, model in models.items():
    results[name] = found = of_model(model, repeats)
    compiling = found["compile"]["median"]
    parts = [f"compiling {compiling:.1f} s"]
    for cache in ("cold", "warm"):
      seconds, (low, high) = found[cache]["median"], found[cache]["spread"]
      share = f"{seconds / compiling:.2f} of it"
      parts.append(f"{cache} {seconds:.1f} s ({low:.1f} to {high:.1f}), {share}")
    print(f"{name:10}{'; '.join(parts)}", flush=True)
  return {"repeats": repeats, "load": os.getloadavg(), "models": results}
