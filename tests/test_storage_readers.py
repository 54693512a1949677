"""Every reader of checkpoints, given one that is in a bucket or on the hub."""

import pytest

from set_diffusion_jax.cli import main


@pytest.mark.parametrize(
  ("words", "named"),
  [
    (["train", "--config=s3://b/c.py", "--workdir=x"], "--config=s3://b/c.py"),
    (["train", "--config=gs://b/c.py", "--workdir=x"], "--config=gs://b/c.py"),
    (
      ["train", "--config=quickstart", "--config.init_from=s3://b/x", "--workdir=x"],
      'init_from = "s3://b/x": must be a path, gs://BUCKET/PATH or hf://ORG/NAME',
    ),
    (["sample", "--checkpoint=x", "--input=gs://b/x"], "--input=gs://b/x"),
    (["sample", "--checkpoint=x", "--output=gs://b/x"], "--output=gs://b/x"),
    (["evaluate", "--checkpoint=x", "--by-output=gs://b/x"], "--by-output=gs://b/x"),
    (["evaluate", "--checkpoint=x", "--output=hf://b/x"], "--output=hf://b/x"),
    (
      ["evaluate", "--checkpoint=x", "--zero-shot-data=gs://b/x"],
      "--zero-shot-data=gs://b/x",
    ),
    (
      ["evaluate", "--checkpoint=x", "--compilation-cache=gs://b/x"],
      "--compilation-cache=gs://b/x",
    ),
    (["inspect", "x", "--backbone-config=hf://b/x"], "--backbone-config=hf://b/x"),
    (["convert", "x", "y", "--evaluation=gs://b/x"], "--evaluation=gs://b/x"),
    (["convert", "x", "gs://b/x"], "destination=gs://b/x"),
    (["plan", "--topology=v4:2x2x1", "--json=gs://b/x"], "--json=gs://b/x"),
  ],
)
def test_what_takes_no_such_address_says_so_at_once(
  words, named, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert main(words) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and said.startswith("error: ") and named in said
  assert not list(tmp_path.iterdir())
