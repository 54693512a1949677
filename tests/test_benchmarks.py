"""What the benchmarks compare is the same work, and their figures are what they say."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import measure, shapes
from benchmarks.shapes import Shape
from set_diffusion_jax.diffusion.order import given_order, groups
from set_diffusion_jax.training.step import Program, make_mesh
from tests import buckets, tiny

SHAPE = Shape(layers=2, width=64, length=16, vocab_size=40, batch=3)


@pytest.fixture(scope="module")
def program():
  config = SHAPE.config()
  return Program.of(config, SHAPE.vocabulary, make_mesh(config, jax.devices()[:1]))


def test_the_peer_computes_our_nats(program):
  torch = pytest.importorskip("torch")
  from benchmarks.torch_peer import Peer

  params, rank = tiny.params(program.objective), SHAPE.ranks()
  batch = tiny.batch(SHAPE.batch, SHAPE.length, SHAPE.vocab_size)
  position = jnp.asarray(np.argsort(rank, axis=-1).astype(np.int32))
  order = given_order(position, groups(batch.valid, batch.context))
  streams = tiny.streams(program.objective, batch, order)
  nats = tiny.nats(program.objective, params, streams)
  place = streams.index.position[:, -SHAPE.length :]
  peer = Peer(program.config.model, SHAPE.vocab_size, params)
  with torch.inference_mode():
    theirs = peer.nats(
      torch.from_numpy(np.asarray(batch.tokens, np.int64)),
      torch.from_numpy(rank.astype(np.int64)),
      SHAPE.vocabulary.mask,
    ).numpy()
  by_place = np.take_along_axis(theirs, np.asarray(place), axis=-1)
  np.testing.assert_allclose(nats, by_place, rtol=2e-5, atol=2e-5)
  assert np.std(theirs) > 0.05  # the weights say something


def test_the_peer_learns():
  pytest.importorskip("torch")
  from benchmarks.torch_peer import Trainer

  trainer = Trainer(SHAPE.config().model, SHAPE.vocab_size)
  step = lambda: trainer.step(SHAPE.texts(SHAPE.batch), SHAPE.ranks())
  losses = [step() for _ in range(20)]
  assert losses[-1] < losses[0] - 0.05


def test_a_row_gives_medians_and_the_share_of_the_roofline():
  rates = {"flops_per_second": 10.0, "bytes_per_second": 100.0}
  row = measure.row(
    "a", "b", "tokens/s", 6, [3.0, 2.0, 1.0], [4.0], flops=5.0, transferred=100.0,
    rates=rates,
  )  # fmt: skip
  assert (row["ours"], row["peer"], row["ratio"]) == (3.0, 1.5, 2.0)
  assert row["spread"] == [2.0, 6.0]
  assert row["share_of_roofline"] == 0.5  # memory, a second of two; products half of it


def test_runs_alternate_and_the_first_is_not_counted():
  calls = []
  runs = {name: lambda name=name: calls.append(name) for name in "ab"}
  times = measure.alternating(runs, 2)
  assert calls == list("ababab")
  assert [len(times[name]) for name in "ab"] == [2, 2]


def test_figures_are_written_as_json(tmp_path, monkeypatch, capsys):
  pytest.importorskip("torch")
  monkeypatch.setattr(shapes, "SHAPES", {"tiny": SHAPE})
  monkeypatch.setattr(measure, "machine_rates", lambda: {
    "flops_per_second": 1e9, "bytes_per_second": 1e9
  })  # fmt: skip
  target = tmp_path / "figures.json"
  monkeypatch.setattr(sys, "argv", ["benchmarks", "loss", "--output", str(target)])
  benchmarks.main()
  figures = json.loads(target.read_text())
  assert figures["rows"][0]["ratio"] > 0
  assert {"device", "versions", "cores"} <= figures.keys()
  assert "tokens/s" in capsys.readouterr().out


def test_saving_to_a_bucket_is_measured():
  buckets.server()
  from benchmarks import storage

  found = storage.main(size=2**20, repeats=2)
  assert found["requests"]["save"] > found["places"]["bucket"]["objects"] > 10
  assert found["requests"]["restore"] > 3
  for figures in found["places"].values():
    assert 0 < figures["blocked"] < figures["finished"]


def test_a_restart_is_measured():
  from benchmarks import restart

  model = {"layers": 1, "width": 16, "heads": 2, "ffn": 32}
  found = restart.main({"tiny": model}, repeats=1)["models"]["tiny"]
  assert found["compile"]["median"] > 0
  assert min(found[cache]["median"] for cache in ("cold", "warm")) > 0
