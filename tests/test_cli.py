"""The command line as a user meets it: results, and one line for every mistake."""

import json
import re

import numpy as np
import pytest

import set_diffusion_jax
from set_diffusion_jax import cli
from tests import tiny

CONFIG = """
from set_diffusion_jax.config import config_arguments, default_config
def get_config(arguments=""):
  given = config_arguments(arguments, method="set")
  config = default_config()
  config.method.name = given.method
  config.method.max_set_size = 4.0
  config.model.update({"layers": 1, "width": 16, "heads": 2, "ffn": 32})
  config.data.update({"source": "text", "train_path": "PATH", "length": 16})
  config.optimizer.warmup_steps = 1
  config.train.update({"steps": 4, "batch_size": 4, "log_every": 2,
    "evaluate_every": 4, "checkpoint_every": 2})
  return config
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A configuration file with its text, and a trained run for each method."""
  folder = tmp_path_factory.mktemp("home")
  path = tiny.text_file(folder)
  (folder / "config.py").write_text(CONFIG.replace("PATH", str(path)))
  for method in ("ar", "set"):
    arguments = [f"--config={folder}/config.py:method={method}"]
    assert cli.main(["train", *arguments, f"--workdir={folder}/{method}"]) == 0
  return folder


def fails(capsys, arguments, *words):
  """Exit code 2 and one line on stderr that has all the words."""
  capsys.readouterr()
  assert cli.main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  (line,) = captured.err.splitlines()
  assert line.startswith("error: ")
  for word in words:
    assert word in line, line


@pytest.mark.parametrize(
  "change, words",
  [
    (
      "--config.model.widht=3",
      ["model.widht", "did you mean model.width?"],
    ),
    ("--config.model.width=banana", ["banana"]),
    ("--config.model.width=15", ["model.width = 15", "heads=2"]),
    ("--config.method.name=gan", ["method.name", "gan", "ar, any_order, set"]),
    ("--config.train.batch_size=6", ["train.batch_size = 6", "multiple of 4"]),
    ("--config.mesh.data=3", ["mesh", "4 devices"]),
    ("--config.data.train_path=/nowhere/*.txt", ["data.train_path", "no such file"]),
    ("--config.data.length=100000", ["data.length = 100000", "at most"]),
    ("--config.optimizer.learning_rate=-1", ["optimizer.learning_rate", "above 0"]),
    ("--config.train.steps=0", ["train.steps = 0"]),
    ("--config.method.prediction_budget=99", ["prediction_budget", "below"]),
  ],
)
def test_wrong_fields(home, tmp_path, capsys, change, words):
  work = tmp_path / "new"
  command = ["train", f"--config={home}/config.py", f"--workdir={work}", change]
  fails(capsys, command, *words)
  assert not work.exists()


def test_wrong_text(home, tmp_path, capsys):
  empty, broken = tmp_path / "empty.txt", tmp_path / "broken.txt"
  empty.write_text("\n \n")
  broken.write_bytes(b"fine until \xff here")
  base = ["train", f"--config={home}/config.py", f"--workdir={tmp_path}/new"]
  path = "--config.data.train_path="
  fails(capsys, [*base, f"{path}{empty}"], "data.train_path", "holds no text")
  fails(capsys, [*base, f"{path}{broken}"], "not UTF-8 at byte 11")
  assert not (tmp_path / "new").exists()


def test_wrong_commands(home, tmp_path, capsys):
  config, run = f"--config={home}/config.py", f"{home}/set"
  work = f"--workdir={tmp_path}/new"
  fails(capsys, ["fly"], "fly")
  fails(capsys, ["train", work], "--config")
  fails(capsys, ["train", config], "--workdir")
  fails(capsys, ["train", "--config=missing.py", work], "missing.py", "no such file")
  fails(capsys, ["train", f"{config}:method", work], "'method'")
  fails(capsys, ["train", f"{config}:colour=red", work], "colour=red")
  fails(capsys, ["train", config, work, "--stpes=3"], "--stpes=3")
  (tmp_path / "broken.py").write_text("def get_config(:\n")
  fails(capsys, ["train", f"--config={tmp_path}/broken.py", work], "broken.py")
  (tmp_path / "divides.py").write_text("1 / 0")
  fails(capsys, ["train", f"--config={tmp_path}/divides.py", work], "division by zero")
  (tmp_path / "three.py").write_text("def get_config(): return 3")
  fails(capsys, ["train", f"--config={tmp_path}/three.py", work], "returned int")
  fails(capsys, ["train", config, "--config.train=3", work], "train=3")
  fails(capsys, ["train", config, "--workdir=/proc/new"], "--workdir=/proc/new")
  fails(capsys, ["evaluate", f"--checkpoint={tmp_path}"], "not a work directory")
  fails(capsys, ["evaluate", f"--checkpoint={run}/checkpoints/3"], "step 3")
  fails(capsys, ["evaluate", f"--checkpoint={run}", "--draws=0"], "draws = 0")
  fails(capsys, ["sample", f"--checkpoint={run}", "--length=17"], "--length=17")
  fails(
    capsys, ["sample", f"--checkpoint={run}", "--length=4", "--prompt=four"], "four"
  )
  fails(capsys, ["sample", f"--checkpoint={run}", "--num=0"], "--num=0")
  fails(capsys, ["sample", f"--checkpoint={run}", "--temperature=-1"], "temperature")
  assert not (tmp_path / "new").exists()


def test_a_file_in_the_way(home, tmp_path, capsys):
  (tmp_path / "file").write_text("mine")
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "notes.txt").write_text("mine")
  for name in ("file", "folder"):
    command = ["train", f"--config={home}/config.py", f"--workdir={tmp_path}/{name}"]
    fails(capsys, command, f"--workdir={tmp_path}/{name}")
  assert (tmp_path / "file").read_text() == "mine"
  assert [p.name for p in (tmp_path / "folder").iterdir()] == ["notes.txt"]


def test_a_directory_of_another_configuration(home, capsys):
  run = home / "set"
  before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
  base = ["train", f"--workdir={run}"]
  fails(capsys, [*base, f"--config={home}/config.py:method=ar"], "method.name", "'set'")
  changed = [f"--config={home}/config.py", "--config.model.ffn=64"]
  fails(capsys, [*base, *changed], "model.ffn = 32, not 64")
  assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize("method", ["ar", "set"])
def test_evaluate_prints_what_it_writes(home, tmp_path, capsys, method):
  output = tmp_path / "figures.json"
  command = ["evaluate", f"--checkpoint={home}/{method}", f"--output={output}"]
  capsys.readouterr()
  assert cli.main(command) == 0
  figures, text = json.loads(output.read_text()), capsys.readouterr().out
  assert f"{figures['perplexity']:.3f}" in text
  assert f"{figures['tokens']:,} tokens" in text
  assert figures["perplexity"] == pytest.approx(np.exp(figures["nats_per_token"]))
  assert figures["bound"].startswith("exact" if method == "ar" else "upper bound")
  assert figures["protocol"]["cut"] == "wrapped to 16"


def test_evaluation_does_not_depend_on_the_batch(home, tmp_path):
  """Draws are keyed by data set index: any batch size gives the same figures."""
  found = []
  for size in (1, 5, 64):
    output = tmp_path / f"{size}.json"
    command = ["evaluate", f"--checkpoint={home}/set", f"--batch-size={size}"]
    assert cli.main([*command, "--draws=3", f"--output={output}"]) == 0
    found.append(json.loads(output.read_text()))
  for other in found[1:]:
    assert other["tokens"] == found[0]["tokens"]
    assert other["nats_per_token"] == pytest.approx(
      found[0]["nats_per_token"], rel=1e-6
    )


@pytest.mark.parametrize("method", ["ar", "set"])
def test_sample(home, tmp_path, capsys, method):
  output = tmp_path / "samples.json"
  base = ["sample", f"--checkpoint={home}/{method}", "--prompt=It", "--prompt=was"]
  capsys.readouterr()
  assert cli.main([*base, "--num=2", f"--output={output}"]) == 0
  text = capsys.readouterr().out
  samples = json.loads(output.read_text())["samples"]
  assert [s["text"][:2] for s in samples] == ["It", "It", "wa", "wa"]
  assert all(len(s["tokens"]) == 16 for s in samples)
  assert [s["steps"] for s in samples] == [13, 13, 12, 12]
  assert len(re.findall("--- sample", text)) == 4
  # The same seed and row give the same text, in another batch too.
  again = set_diffusion_jax.load(home / method).generate(["It", "It"])
  assert [s["tokens"] for s in again] == [s["tokens"] for s in samples[:2]]


def test_model(home):
  """`nelbo` and `log_prob` agree with each other and with the order's chain rule."""
  model = set_diffusion_jax.load(home / "ar")
  tokens = np.array([[256, *b"It was the best"], [256, *b"age of wisdom\n!"]])
  left_to_right = np.tile(np.arange(16), (2, 1))
  exact = model.log_prob(tokens, left_to_right)
  np.testing.assert_allclose(-model.nelbo(tokens), exact, rtol=1e-6)
  model = set_diffusion_jax.load(home / "set" / "checkpoints" / "4")
  assert model.step == 4
  draws = [model.nelbo(tokens, draws=1, seed=seed) for seed in range(3)]
  assert not np.allclose(draws[0], draws[1], rtol=1e-9)
  with pytest.raises(ValueError, match="permutation"):
    model.log_prob(tokens, left_to_right * 0)
  with pytest.raises(ValueError, match="BOS"):
    model.log_prob(tokens, left_to_right[:, ::-1])
  with pytest.raises(ValueError, match="ids"):
    model.nelbo(tokens + 1000)


def test_raw_and_averaged_weights_differ(home):
  ema = set_diffusion_jax.load(home / "set").params["head"]["kernel"]
  raw = set_diffusion_jax.load(home / "set", weights="raw").params["head"]["kernel"]
  assert not np.array_equal(ema, raw)


def test_inspect_draws_masks(home, tmp_path, capsys):
  base = ["inspect", "--mask", f"--config={home}/config.py", "--length=8"]
  capsys.readouterr()
  assert cli.main([*base, "--methods=ar,block", "--config.method.block_size=4"]) == 0
  text = capsys.readouterr().out
  assert "clean    2 |ccc     |" in text  # AR: itself and what is before it
  assert "noisy    1 |        |oooo    |" in text  # the first block sees itself
  assert "noisy    6 |nnnn    |    oooo|" in text
  png = tmp_path / "masks.png"
  assert cli.main([*base, f"--output={png}"]) == 0
  assert png.read_bytes().startswith(b"\x89PNG")
  fails(capsys, [*base, "--output=masks.jpg"], "must end in .png")
  fails(capsys, [*base, f"--output={tmp_path}/no/masks.png"], "--output")
  fails(capsys, [*base, "--methods=ar,gan"], "gan")
  fails(capsys, ["inspect", "--mask", "--length=99", base[2]], "--length=99")
