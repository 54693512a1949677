"""A run that moves between the two ends of the supported versions.

SET_DIFFUSION_OTHER_PYTHON names the interpreter of an environment with other versions;
`.ci/run` sets it. A run that was trained here is continued, evaluated and sampled
there, and the other way round, with the figures of a run that stayed.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from set_diffusion_jax.training.metrics import read_metrics
from tests import jobs, tiny

OTHER = os.environ.get("SET_DIFFUSION_OTHER_PYTHON")
pytestmark = pytest.mark.skipif(
  OTHER is None, reason="needs SET_DIFFUSION_OTHER_PYTHON, as .ci/run sets it"
)
JAX = "import jax; print(jax.__version__)"


def run(python: str, *arguments: str) -> str:
  """Standard output and error of a command; it must succeed."""
  done = subprocess.run(
    [python, "-W", "ignore", "-m", "set_diffusion_jax", *arguments],
    cwd=jobs.ROOT,
    env={**jobs.environment(1), "PYTHONPATH": str(jobs.ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout + done.stderr


def version(python: str) -> str:
  return subprocess.check_output([python, "-c", JAX], text=True).strip()


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  folder = tmp_path_factory.mktemp("versions")
  one = {"mesh__data": 1, "mesh__fsdp": 1, "mesh__tensor": 1}
  fields = {"data__source": "text", "data__train_path": str(tiny.text_file(folder))}
  file = jobs.config_file(folder, tiny.settings(**one, **fields))

  def act(python, name, steps):
    words = [f"--config={file}", f"--config.train.steps={steps}"]
    return run(python, "train", *words, f"--workdir={folder / name}"), folder / name

  return act


def figures(python: str, directory, folder) -> list:
  """What evaluation and sampling give under one interpreter."""
  output = folder / "figures.json"
  checkpoint = f"--checkpoint={directory}"
  run(python, "evaluate", checkpoint, "--draws=2", f"--output={output}")
  found = json.loads(output.read_text())
  output.unlink()
  lines = folder / "texts.jsonl"
  words = ("--prompt=It was", "--temperature=0", f"--output={lines}")
  run(python, "sample", checkpoint, *words)
  text = json.loads(lines.read_text().splitlines()[0])["text"]
  return [found["nats_per_token"], found["bits_per_byte"], text]


@pytest.mark.slow
@pytest.mark.parametrize("there_first", [False, True])
def test_a_run_moves_between_versions(train, tmp_path, there_first):
  first, second = (OTHER, sys.executable) if there_first else (sys.executable, OTHER)
  assert version(first) != version(second)
  name = "there" if there_first else "here"
  _, stayed = train(first, f"{name}-stayed", 6)
  train(first, f"{name}-moved", 3)
  said, moved = train(second, f"{name}-moved", 6)
  assert "continues from step 3" in said
  assert f"jax {version(first)} -> {version(second)}" in said
  same, other = (read_metrics(path / "metrics.jsonl") for path in (stayed, moved))
  for name in ("train/loss", "validation/nats_per_token"):
    values = [[row[name] for row in rows if name in row] for rows in (same, other)]
    np.testing.assert_allclose(*values, rtol=2e-5)
  *numbers, text = figures(first, moved, tmp_path)
  *others, same_text = figures(second, moved, tmp_path)
  np.testing.assert_allclose(numbers, others, rtol=2e-5)
  assert text == same_text
