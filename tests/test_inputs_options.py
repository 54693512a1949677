"""Options, the environment and terminals: exactly what was asked for, or one line."""

import io
import json
import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import set_diffusion_jax
from set_diffusion_jax import cli, data
from set_diffusion_jax.decode import Stops
from set_diffusion_jax.diffusion.draws import DECODE, stream_key
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import terminal
from set_diffusion_jax.storage import workdir
from set_diffusion_jax.storage.checkpoint import Checkpoints
from tests import jobs, tiny

PUBLISHED = jobs.ROOT / "tests/reference/models/setdlm_dit"
SAMPLE = ["sample", f"--checkpoint={PUBLISHED}"]
INSPECT = ["inspect", "--mask", "--config=quickstart"]


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["train", "--config", "x.py", "--workdir=w"], ["--config=x.py"]),
    (["train", "--config.train.steps", "5", "--workdir=w"], ["--config.train.steps=5"]),
    (["train", "--config", "--workdir=w"], ["--config=FILE"]),
    ([*SAMPLE, "--ouput=o"], ["--ouput=o", "did you mean --output?"]),
    ([*SAMPLE, "--output="], ["--output=: must be a path"]),
    ([*SAMPLE, "--num=1e3"], ["--num=1e3: must be a whole number"]),
    ([*SAMPLE, "--num=\uff10"], ["--num=\uff10: must be a whole number"]),
    ([*SAMPLE, "--num=1_0"], ["--num=1_0: must be a whole number"]),
    ([*SAMPLE, "--num=-1"], ["--num=-1: must be at least 1"]),
    ([*SAMPLE, "--num=" + "9" * 5000], ["--num=999", "must be at most"]),
    ([*SAMPLE, f"--length={10**18}"], [f"--length={10**18}: must be at most"]),
    ([*SAMPLE, "--length=0"], ["--length=0: must be at least 1"]),
    ([*SAMPLE, "--batch-size=0"], ["--batch-size=0: must be at least 1"]),
    ([*SAMPLE, "--temperature=nan"], ["--temperature=nan: must be a finite number"]),
    ([*SAMPLE, "--top-p=inf"], ["--top-p=inf: must be a finite number"]),
    ([*SAMPLE, f"--top-k={10**18}"], [f"decode.top_k = {10**18}: must be below 2**31"]),
    ([*SAMPLE, "--stop="], ["--stop=: must not be empty"]),
    ([*SAMPLE, r"--stop-regex=\s*"], [r"--stop-regex=\s*", "empty text"]),
    ([*SAMPLE, "--stop-regex="], ["--stop-regex=: must not match the empty text"]),
    ([*SAMPLE, r"--stop-regex=\b"], ["must not match the empty text"]),
    ([*SAMPLE, "--stop-regex=a{99999999999}"], ["--stop-regex=a{9"]),
    ([*SAMPLE, "--stop-repeats=1"], ["--stop-repeats=1: must be at least 2"]),
    ([*SAMPLE, "--stop-entropy=3:inf"], ["--stop-entropy=3:inf"]),
    ([*SAMPLE, f"--seed={2**32}"], [f"--seed={2**32}: must be at most {2**32 - 1}"]),
    ([*SAMPLE, "--seed=-1"], ["--seed=-1: must be at least 0"]),
    ([*INSPECT, f"--seed={2**32}"], [f"--seed={2**32}: must be at most"]),
    ([*SAMPLE, "--stop=--"], ["--stop=--: two hyphens"]),
    (["evaluate", "--checkpoint=c", "--zero-shot=--"], ["--zero-shot=--: two hyphens"]),
    ([*INSPECT, "--config.data.length=" + "a" * 5000], ["data.length=aaa", "aaa..."]),
    ([*INSPECT, "--config.=2"], ["config. with no name after it is not a field"]),
    ([*INSPECT, "--config.model.=2"], ["config.model. with no name after it"]),
    ([*SAMPLE, "--stop-entropy=4:1.5"], ["1.5 must be at most 1.38629"]),
    ([*SAMPLE, "--stop-confidence=4:1.5"], ["1.5 must be at most 1, or every text"]),
    ([*SAMPLE, "--stop-confidence=1_0:0.5"], ["1_0:0.5: must be N:X"]),
    ([*SAMPLE, "--stop-confidence=\uff14:0.5"], ["must be N:X"]),
    ([*INSPECT, f"--config.train.seed={2**32}"], ["train.seed", "below 2**32"]),
    ([*INSPECT, f"--config.train.steps={2**31}"], ["train.steps", "below 2**31"]),
    ([*INSPECT, "--config.optimizer.learning_rate=nan"], ["learning_rate", "finite"]),
    ([*INSPECT, "--config.optimizer.learning_rate=1e999"], ["learning_rate", "finite"]),
    ([*INSPECT, "--config.train.steps="], ["--config"]),
    ([*INSPECT, "--config.train.steps=0x10"], ["train.steps=0x10: must", "plain"]),
    ([*INSPECT, "--config.train.steps=1_0"], ["train.steps=1_0: must", "plain"]),
    ([*INSPECT, "--config.train.steps=\uff15"], ["train.steps=\uff15: must", "plain"]),
    ([*INSPECT, "--config.train.steps=5 "], ["train.steps=5 : must", "plain"]),
    ([*INSPECT, "--config.optimizer.learning_rate=1_0"], ["learning_rate=1_0: must"]),
    ([*SAMPLE, "--config.decode.top_k=1_0"], ["decode.top_k=1_0: must", "plain"]),
    (["prepare", "--output=o", "--shard-size=nan"], ["--shard-size=nan"]),
    (["prepare", "--output=o", f"--workers={10**18}"], ["--workers", "at most"]),
    (["convert", str(PUBLISHED), "new", "--shard-size=1e300"], ["--shard-size=1e300"]),
    ([], ["verb"]),
    (["sample", f"--checkpoint={os.devnull}"], ["not a work directory"]),
    (["inspect", "a\nb\x1b[31m"], [r"a\nb\x1b[31m: no such file"]),
  ],
)
def test_what_cannot_be_meant_is_one_line(
  tmp_path, monkeypatch, capsys, arguments, words
):
  monkeypatch.chdir(tmp_path)
  assert cli.main(arguments) == 2
  captured = capsys.readouterr()
  (line,) = captured.err.splitlines()
  assert line.startswith("error: ") and not captured.out
  assert len(line) < 2000 + max(map(len, arguments), default=0)
  for word in words:
    assert word in line, line
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize("code", ["", "0", "5", "'a\\nb'"])
def test_a_configuration_that_exits_is_one_line(tmp_path, capsys, code):
  (tmp_path / "ends.py").write_text(f"import sys\nsys.exit({code})\n")
  assert cli.main(["inspect", "--mask", f"--config={tmp_path / 'ends.py'}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "ends.py: ends Python: exit(" in line


def test_every_seed_has_its_own_key():
  seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
  keys = [
    tuple(jax.random.key_data(stream_key(seed, DECODE)).tolist()) for seed in seeds
  ]
  assert len(set(keys)) == len(seeds)
  old = jax.random.fold_in(jax.random.key(7), DECODE)  # as it always was
  assert jax.random.key_data(stream_key(7, DECODE)).tolist() == (
    jax.random.key_data(old).tolist()
  )


def test_a_pattern_that_needs_some_text_is_a_stop():
  for pattern in (r"\s+", "(?=end)", "a|b", r"\n\n", "x*y"):
    assert Stops(pattern=pattern).pattern == pattern
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert Stops(pattern="[[a]b").pattern == "[[a]b"
  with pytest.raises(UserError, match="--stop="):
    Stops(strings=("a", ""))


def test_control_characters_are_shown_and_not_obeyed():
  text = "a\x1b[2J\x07\r\x9b\u202e\u2066b\u2028\ufeff\x7f\udcff"
  assert terminal.shown(text) == (
    r"a\x1b[2J\x07\r\x9b\u202e\u2066b\u2028\ufeff\x7f\udcff"
  )
  assert terminal.shown("tab\tand\nline \u65e5 \u05d0 \u0301") == (
    "tab\tand\nline \u65e5 \u05d0 \u0301"
  )
  assert terminal.line("a\n\tb") == r"a\n\tb"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A work directory with weights of a byte model, saved as training does."""
  folder = tmp_path_factory.mktemp("run")
  text = tiny.text_file(folder)
  changes = {
    "data__source": "text",
    "data__train_path": str(text),
    "model__layers": 1,
    "evaluate__sequences": 2,
    "decode__stop_at_eos": False,
  }
  (folder / "config.py").write_text(
    f"from tests import tiny\ndef get_config(): return tiny.settings(**{changes!r})\n"
  )
  config, tokenizer = tiny.config(**changes), data.load_tokenizer("byte")
  workdir.claim(folder / "run", config, {})
  params = tiny.params(tiny.objective(tokenizer.vocabulary.size, **changes))
  meta = {"config": config.to_dict(), "tokenizer": tokenizer.describe()}
  with Checkpoints(folder / "run" / "checkpoints", keep_latest=1) as checkpoints:
    checkpoints.save(1, {"params": params, "ema": params}, Position(), meta, None)
  return folder / "run"


class Position:
  """Stands for a data iterator."""

  def get_state(self):
    return {}


class Terminal(io.TextIOWrapper):
  """Standard output as a terminal; what was written is kept."""

  def __init__(self, terminal=True):
    self.written, self._terminal = io.BytesIO(), terminal
    super().__init__(self.written, encoding="utf-8", write_through=True)

  def isatty(self):
    return self._terminal


def run(monkeypatch, out, arguments):
  """What a command writes to a standard output."""
  with monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", out)
    assert cli.main(arguments) == 0
  return out.written.getvalue().decode()


def test_texts_on_terminals_pipes_and_in_files(model, tmp_path, monkeypatch, capsys):
  output = tmp_path / "o.jsonl"
  command = ["sample", f"--checkpoint={model}", f"--output={output}", "--num=8"]
  command += ["--temperature=3", "--stream", "--prompt=\x1b[31m\u202e\x07"]
  monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
  shown = run(monkeypatch, Terminal(), command)
  texts = [json.loads(line)["text"] for line in output.read_text().splitlines()]
  last = shown[shown.index("--- sample 1 of 8") :]
  for text in texts:
    assert text.startswith("\x1b[31m\u202e\x07")
    assert terminal.shown(text) in last
  assert not set("\x1b\x07\u202e") & set(last)
  assert "no terminal" not in capsys.readouterr().err
  piped = run(monkeypatch, Terminal(False), command)
  assert all(text in piped for text in texts)
  assert "--stream: standard output is no terminal" in capsys.readouterr().err
  # Who reads has left: the file is complete.
  output.unlink()
  reading, writing = os.pipe()
  os.close(reading)
  with os.fdopen(writing, "w") as pipe:
    monkeypatch.setattr(sys, "stdout", pipe)
    assert cli.main(command) == 0
  assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == texts


def test_zero_shot_files_do_not_collide(model, tmp_path):
  (tmp_path / "ptb.jsonl").write_text(json.dumps({"sentence": tiny.TEXT * 4}) + "\n")
  command = ["evaluate", f"--checkpoint={model}", "--zero-shot=ptb", "--draws=1"]
  command.append(f"--zero-shot-data={tmp_path}")
  for name in ("ppl-0.5", "ppl-0.7", "whole.json"):
    assert cli.main([*command, f"--output={tmp_path}/{name}"]) == 0
  assert sorted(os.listdir(tmp_path)) == [
    *("ppl-0.5", "ppl-0.5.ptb.json", "ppl-0.7", "ppl-0.7.ptb.json"),
    *("ptb.jsonl", "whole.json", "whole.ptb.json"),
  ]
  before = sorted(os.listdir(os.path.dirname(os.devnull)))
  assert cli.main([*command, f"--output={os.devnull}"]) == 0
  assert sorted(os.listdir(os.path.dirname(os.devnull))) == before


SETTINGS = {
  "x64": ("jax_enable_x64", True),
  "keys": ("jax_default_prng_impl", "rbg"),
  "unsafe keys": ("jax_default_prng_impl", "unsafe_rbg"),
  "partitions": ("jax_threefry_partitionable", False),
  "promotion": ("jax_numpy_dtype_promotion", "strict"),
  "transfers": ("jax_transfer_guard", "disallow"),
  "offset": ("jax_random_seed_offset", 7),
  "gumbel": ("jax_high_dynamic_range_gumbel", True),
}


def figures_of(path):
  """What a model says through `load`."""
  found = set_diffusion_jax.load(path)
  rows = found.tokenizer.encode("It was the b")[None]
  texts = found.generate(["It"], length=12)[0]["tokens"]
  return texts, found.nelbo(rows), next(found.stream(["It [MASK:4]"])).tokens


@pytest.mark.parametrize("name, value", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_jax_change_no_figure(model, tmp_path, name, value):
  expected = figures_of(model)
  before = getattr(jax.config, name)
  output = tmp_path / "o.json"
  command = ["evaluate", f"--checkpoint={model}", f"--output={output}"]
  assert cli.main(command) == 0
  usual = json.loads(output.read_text())
  output.unlink()
  jax.config.update(name, value)
  try:
    found = figures_of(model)
    assert getattr(jax.config, name) == value  # the user's other code keeps it
    assert cli.main(command) == 0
  finally:
    jax.config.update(name, before)
  for one, other in zip(expected, found, strict=True):
    np.testing.assert_array_equal(one, other)
    assert np.asarray(one).dtype == np.asarray(other).dtype
  assert json.loads(output.read_text()) == usual


@pytest.mark.parametrize("name", ["JAX_ENABLE_X64", "JAX_DEFAULT_PRNG_IMPL"])
def test_a_setting_that_jax_does_not_know_is_one_line(name):
  command = [sys.executable, "-m", "set_diffusion_jax", "inspect", "x"]
  environment = {**os.environ, name: "banana", "PYTHONPATH": str(jobs.ROOT)}
  found = subprocess.run(command, env=environment, capture_output=True, text=True)
  expected = f"error: {name}=banana: JAX knows no such value\n"
  assert (found.returncode, found.stdout, found.stderr) == (2, "", expected)


COMMANDS = {
  "train": (["--config.train.steps=1"], "--workdir", "train/loss"),
  "evaluate": ([], "--output", "nats_per_token"),
  "sample": (["--prompt=It", "--length=12"], "--output", "tokens"),
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_what_helps_to_debug_changes_no_figure(model, tmp_path, verb):
  options, destination, figure = COMMANDS[verb]
  given = f"--config={model}/../config.py" if verb == "train" else None
  command = [verb, given or f"--checkpoint={model}", *options]
  other = {"jax_disable_jit": True, "jax_transfer_guard": "disallow"}
  found = []
  for settings in ({}, other):
    before = {name: getattr(jax.config, name) for name in settings}
    path = tmp_path / str(len(found))
    for name, value in settings.items():
      jax.config.update(name, value)
    try:
      assert cli.main([*command, f"{destination}={path}"]) == 0
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
    text = (path / "metrics.jsonl" if verb == "train" else path).read_text()
    rows = [text] if verb == "evaluate" else text.splitlines()
    found.append([json.loads(row).get(figure) for row in rows])
  assert found[0] == found[1] and found[0][0] is not None


def test_training_goes_on_under_other_settings(model, tmp_path):
  command = ["train", f"--config={model}/../config.py", "--config.train.steps=2"]
  rows = []
  for name, values in (("a", (False, False)), ("b", (True, False))):
    work = tmp_path / name
    for steps, wide in zip((1, 2), values, strict=True):
      jax.config.update("jax_enable_x64", wide)
      jax.config.update("jax_default_prng_impl", "rbg" if wide else "threefry2x32")
      try:
        changed = [f"--workdir={work}", f"--config.train.steps={steps}"]
        assert cli.main([*command[:2], *changed]) == 0
      finally:
        jax.config.update("jax_enable_x64", False)
        jax.config.update("jax_default_prng_impl", "threefry2x32")
    found = [
      json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()
    ]
    rows.append([row["train/loss"] for row in found if "train/loss" in row])
  assert rows[0] == rows[1] and len(rows[0]) == 2
