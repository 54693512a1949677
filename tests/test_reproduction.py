"""The script of docs/results.md, whole, on a text and models that are tiny."""

import dataclasses
import json
import sys

import pytest

from set_diffusion_jax.launch import reproduction
from tests import tiny


@pytest.mark.slow
def test_every_table_is_written(tmp_path, monkeypatch, capsys):
  text, runs = tmp_path / "text.txt", tmp_path / "runs"
  text.write_text(tiny.TEXT * 200)
  train = reproduction.train

  def short(config, folder, label):
    """The run that the configuration describes, of one layer and two steps."""
    model = dataclasses.replace(config.model, layers=1, width=16, heads=2, ffn=32)
    steps = dataclasses.replace(
      config.train, steps=2, batch_size=4, evaluate_every=2, checkpoint_every=2
    )
    train(dataclasses.replace(config, model=model, train=steps), folder, label=label)

  monkeypatch.setattr(reproduction, "train", short)
  monkeypatch.setattr(reproduction, "VOCABULARY", 300)
  monkeypatch.setattr(reproduction, "GRADIENT_BATCHES", 2)
  monkeypatch.setattr(sys, "argv", ["reproduction.py", str(text), f"--runs={runs}"])
  assert reproduction.main() == 0, capsys.readouterr().err
  found = json.loads((runs / "results.json").read_text())
  assert list(found["models"]) == list(reproduction.MODELS)
  assert len(found["comparisons"]) == len(reproduction.COMPARISONS)
  for name in ("block_4", "block_4_clipped"):
    assert found["loss_variance"][name]["full_variance"] > 0
  for variances in found["gradient_variance"].values():
    assert variances["all"]["token"]["mean"] > 0
  assert "| set_8 |" in (runs / "results.md").read_text()
