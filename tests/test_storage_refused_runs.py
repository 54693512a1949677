"""Work directories in a bucket that are refused in one line."""

import json
import logging
import re

import pytest

from set_diffusion_jax.cli import quiet
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import places
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.storage.lease import Lease
from set_diffusion_jax.training.run import Run
from set_diffusion_jax.training.train import train
from tests import buckets
from tests.test_train import config


@pytest.mark.parametrize(
  ("text", "line"),
  [
    ("gs:/runs/x", "gs:/runs/x: must have two slashes, as gs://"),
    ("hf:/org/name", "hf:/org/name: must have two slashes, as hf://"),
    ("gs://runs/\udcff", r"gs://runs/\udcff: a path in a bucket cannot have '\udcff'"),
  ],
  ids=["gs", "hf", "no_utf8"],
)
def test_an_address_that_is_almost_one(text, line):
  with pytest.raises(UserError) as caught:
    places.path(text)
  assert str(caught.value).replace("\udcff", r"\udcff") == line


def test_a_folder_may_be_named_like_a_store(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  train(config(tmp_path, train__steps=2), places.path("./gs:"))
  assert list((tmp_path / "gs:" / "tensorboard").iterdir())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_folder_that_may_not_be_read_or_written(tmp_path, method):
  """What is refused lies beyond what was asked for at the start."""
  c, target = config(tmp_path), places.path(buckets.fresh())
  names = {"GET": r"/o\?.*/checkpoints/", "POST": r"/config\.json"}

  def judge(request):
    found = re.search(names[method], request.text, re.DOTALL)
    return "403" if request.method == method and found else None

  with buckets.judged(judge), pytest.raises(UserError) as caught:
    train(c, target)
  assert str(caught.value) == (
    f"--workdir={target}: these credentials may not do this (403): the role "
    "objectViewer reads, objectAdmin writes"
  )


def test_a_position_that_is_none(tmp_path):
  c = config(tmp_path, train__steps=2)
  train(c, tmp_path / "run")
  file = tmp_path / "run/checkpoints/2/data/metadata"
  file.write_text(json.dumps({"state": 5}))
  run = Run.build(c)
  with pytest.raises(UserError, match=r"2/data: is no position .*KeyError"):
    Checkpoints(tmp_path / "run/checkpoints").restore_newest(
      run.abstract_state(), run.batches()
    )


def test_any_number_of_a_lease_counts(tmp_path):
  folder = tmp_path / ".lease"
  folder.mkdir()
  (folder / f"{10**18 - 1}.json").write_text("{}")
  lease = Lease(tmp_path)
  lease.take()
  lease.check()
  lease.release()
  assert [file.name for file in folder.iterdir()] == [f"{10**18}.json"]


def test_libraries_do_not_log_what_is_told_in_one_line(monkeypatch):
  log = logging.getLogger("absl")
  monkeypatch.setattr(log, "filters", [])
  level = log.level
  quiet()
  log.setLevel(level)
  says = lambda error: bool(
    log.filter(log.makeRecord("absl", 40, "", 0, "", (), (None, error, None)))
  )
  assert not says(OSError("Forbidden: b/runs/o\nin a moment"))
  assert says(ValueError("a mistake"))
