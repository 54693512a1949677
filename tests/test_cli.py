"""The command line as a user meets it: results, and one line for every mistake."""

import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import set_diffusion_jax
from set_diffusion_jax import cli
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.version import versions
from tests import jobs, tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A configuration file with its text, and a trained run for each method."""
  folder = tmp_path_factory.mktemp("home")
  path = tiny.text_file(folder)
  (folder / "config.py").write_text(tiny.CONFIG.replace("PATH", str(path)))
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
  fails(capsys, ["train", "--config=missing", work], "missing", "quickstart, repro")
  text = ['data.source = "none"', "leaves the text to you", "--config.data.directory"]
  fails(capsys, ["train", "--config=scale:recipe=owt_110m", work], *text)
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
  fails(capsys, ["sample", f"--checkpoint={run}", "--length=1"], "--length=1")
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
  changed = [f"--config={home}/config.py", "--config.model.ffn=32"]
  fails(capsys, [*base, *changed], "model.ffn = 64, not 32")
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
  assert figures["protocol"]["cut"] == "wrapped to 16, windows side by side"


def test_another_evaluation_is_not_taken_for_one_that_is_finished(home, tmp_path):
  """Whatever the figures depend on besides the text: each change has its own."""
  output, order = tmp_path / "figures.json", tmp_path / "order.npy"
  other = ["--sequences=2", f"--order={order}"]
  changes = (
    *(["--sequences=1"], ["--sequences=2"], other),
    ["--sequences=2", "--config.method.max_set_size=2"],
    ["--sequences=2", "--config.model.dtype=bfloat16"],
  )
  every = []
  for turn, words in enumerate((*changes, other)):
    np.save(order, np.arange(16)[:: -1 if turn == len(changes) else 1])
    command = ["evaluate", f"--checkpoint={home}/set", f"--output={output}", *words]
    assert cli.main(command) == 0
    every.append(json.loads(output.read_text()))
  assert len({one["nats_per_token"] for one in every}) == len(every)


def test_evaluate_on_another_text(home, tmp_path, capsys):
  """Fields of the checkpoint's configuration can be changed; its model cannot."""
  (tmp_path / "other.jsonl").write_text(json.dumps({"text": tiny.TEXT}) + "\n")
  output = tmp_path / "figures.json"
  base = ["evaluate", f"--checkpoint={home}/set", f"--output={output}"]
  other = [
    "--config.data.source=jsonl",
    f"--config.data.validation_path={tmp_path}/other.jsonl",
  ]
  assert cli.main([*base, *other]) == 0
  figures = json.loads(output.read_text())
  assert figures["bytes"] == len(tiny.TEXT.encode())
  assert figures["protocol"]["source"] == "jsonl"
  # A file that holds just this evaluation is not computed again.
  before = output.stat().st_mtime_ns
  assert cli.main([*base, *other]) == 0
  assert output.stat().st_mtime_ns == before
  assert cli.main([*base, *other, "--order=left_to_right"]) == 0
  exact = json.loads(output.read_text())
  assert exact["bound"] == "exact" and exact["protocol"]["order"] == "left_to_right"
  fails(capsys, [*base, "--config.model.width=32"], "model.width", "fixed")
  fails(capsys, [*base, "--config.train.seed=3"], "train.seed", "fixed")
  fails(capsys, [*base, "--config.evaluate.stride=99"], "evaluate.stride = 99")
  fails(capsys, [*base, "--order=backwards"], "evaluate.order", "left_to_right")
  fails(capsys, [*base, "--order=left_to_right", "--draws=2"], "evaluate.draws = 2")
  fails(capsys, [*base[:2], f"--output={tmp_path}"], "must be a file")
  fails(capsys, [*base[:2], f"--output={tmp_path}/no/f.json"], "missing")


def test_evaluate_says_that_its_weights_are_a_young_average(home, monkeypatch, capsys):
  loaded = set_diffusion_jax.load(home / "set")
  optimizer = dataclasses.replace(loaded.config.optimizer, ema_decay=0.999)
  config = dataclasses.replace(loaded.config, optimizer=optimizer)
  young = dataclasses.replace(loaded, config=config)
  module = importlib.import_module("set_diffusion_jax.cli.evaluate")
  monkeypatch.setattr(module, "load_model", lambda *_: young)
  for weights, said in (("ema", True), ("raw", False)):
    options = [f"--weights={weights}", "--sequences=2"]
    assert cli.main(["evaluate", f"--checkpoint={home}/set", *options]) == 0
    share = f"{0.999**young.step:.0%} of which are the weights that training started"
    assert (f"of the EMA, {share}" in capsys.readouterr().out) == said


def test_evaluate_by_token_and_its_errors(home, tmp_path, capsys):
  """The weights of a set model, as those of masked diffusion: drawn by counts."""
  output, tokens = tmp_path / "figures.json", tmp_path / "tokens.jsonl"
  base = ["evaluate", f"--checkpoint={home}/set", "--config.method.name=masked"]
  by = ["--by=token", f"--by-output={tokens}"]
  capsys.readouterr()
  assert cli.main([*base, "--draws=3", f"--output={output}", *by]) == 0
  text, figures = capsys.readouterr().out, json.loads(output.read_text())
  parts = [figures[f"perplexity_standard_error_{part}"] for part in ("texts", "draws")]
  assert "(texts {:.3f}, draws {:.3f})".format(*parts) in text
  assert np.hypot(*parts) == pytest.approx(figures["perplexity_standard_error"])
  assert "of the EMA" not in text  # its decay is 0.5
  assert "3, by counts" in text and figures["protocol"]["levels"] == "counts"
  rows = [json.loads(line) for line in tokens.read_text().splitlines()]
  assert [row["sequence"] for row in rows] == list(range(figures["sequences"]))
  assert all(row["position"] == list(range(1, 16)) for row in rows[:-1])
  assert sum(len(row["nats"]) for row in rows) == figures["tokens"]
  found = sum(map(sum, (row["nats"] for row in rows))) / figures["tokens"]
  assert found == pytest.approx(figures["nats_per_token"], rel=1e-5)
  model = set_diffusion_jax.load(home / "set")
  ids = [i for row in rows for i in row["token"]]
  held_out = model.evaluator().held_out
  every = np.concatenate([held_out[i]["tokens"][1:] for i in range(len(held_out))])
  assert ids == every[: len(ids)].tolist()
  assert cli.main([*base, "--draws=3", "--by=rank", by[1]]) == 0
  ranks = [json.loads(line) for line in tokens.read_text().splitlines()]
  assert all(row["rank"] == [0] for row in ranks)  # masked diffusion has one set
  for by_rank, by_token in zip(ranks, rows, strict=True):
    assert by_rank["tokens"] == [len(by_token["nats"])]
    assert by_rank["nats"] == pytest.approx([sum(by_token["nats"])], rel=1e-5)
  fails(capsys, [*base, by[0]], "--by=token: needs --by-output")
  fails(capsys, [*base, by[1]], "needs --by=token")
  fails(capsys, [*base, *by, "--zero-shot=ptb"], "--by=token", "--zero-shot")
  fails(capsys, [*base, by[0], f"--by-output={tmp_path}"], "must be a file")
  same = f"--output={tokens.parent}/./tokens.jsonl"
  fails(capsys, [*base, *by, same], "--by-output", "must be another file than --output")
  refused = ["--config.compat=setdlms", "--config.evaluate.levels=counts"]
  fails(capsys, [*base, *refused], 'evaluate.levels = "counts"', "compat=setdlms")


def test_zero_shot(home, tmp_path, capsys):
  lines = "".join(" it 's the age of <unk> , N said . \n" for _ in range(9))
  (tmp_path / "ptb.txt").write_text(lines)
  (tmp_path / "lambada.jsonl").write_text(json.dumps({"text": tiny.TEXT}))
  output = tmp_path / "zero.json"
  base = ["evaluate", f"--checkpoint={home}/ar", f"--zero-shot-data={tmp_path}"]
  capsys.readouterr()
  assert cli.main([*base, "--zero-shot=ptb,lambada", f"--output={output}"]) == 0
  text = capsys.readouterr().out
  figures = json.loads(output.read_text())["zero_shot"]
  assert list(figures) == ["ptb", "lambada"]
  for name, found in figures.items():
    assert f"{name:12} perplexity {found['perplexity']:.2f}" in text
    assert found == json.loads(output.with_suffix(f".{name}.json").read_text())
    assert len(found["protocol"]["detokenizer_sha256"]) == 64
  assert figures["ptb"]["bytes"] == 9 * len("it's the age of ? , 1 said .")
  assert "EOS after each sequence" in figures["ptb"]["protocol"]["special_tokens"]
  fails(capsys, [*base, "--zero-shot=ptb,gone"], "'gone' is not one of")
  fails(capsys, [*base, "--zero-shot=wikitext2"], "has no wikitext2.txt")
  fails(capsys, base, "--zero-shot-data", "needs --zero-shot")
  (tmp_path / "wikitext2.txt").write_text("short\n")
  fails(capsys, [*base, "--zero-shot=wikitext2"], "data.length = 16", "at most 8")


def test_a_damaged_checkpoint(home, tmp_path, capsys):
  for part in ("state", "meta"):
    run = tmp_path / part
    shutil.copytree(home / "set", run)
    shutil.rmtree(run / "checkpoints" / "4" / part)
    fails(capsys, ["evaluate", f"--checkpoint={run}"], "checkpoints/4", "damaged")


def test_what_changed_since_a_step_is_said(home, tmp_path, capsys):
  run = shutil.copytree(home / "set", tmp_path / "run")
  command = ["train", f"--config={home}/config.py", f"--workdir={run}"]
  capsys.readouterr()
  assert cli.main(command) == 0
  assert "since step" not in capsys.readouterr().err
  meta = run / "checkpoints" / "4" / "meta" / "metadata"
  stored = json.loads(meta.read_text())
  stored["versions"] |= {"jax": "0.10.1", "libtpu": "9", "source": "0123456789ab"}
  meta.write_text(json.dumps(stored))
  libtpu = versions().get("libtpu", "none")
  line = f"since step 4: source changed, jax 0.10.1 -> {jax.__version__}, "
  line += f"libtpu 9 -> {libtpu}\n"
  assert cli.main(command) == 0
  assert line in capsys.readouterr().err
  assert cli.main(["inspect", str(run), f"--output={tmp_path}/figures.json"]) == 0
  assert f"note: {line}" in capsys.readouterr().out
  figures = json.loads((tmp_path / "figures.json").read_text())
  assert figures["versions"]["jax"] == "0.10.1"
  del stored["versions"]  # written before versions were recorded
  meta.write_text(json.dumps(stored))
  assert cli.main(["inspect", str(run)]) == 0
  assert "since step" not in capsys.readouterr().out


def test_a_step_stands_on_its_own(home, tmp_path):
  shutil.copytree(home / "set" / "checkpoints" / "4", tmp_path / "4")
  alone = set_diffusion_jax.load(tmp_path / "4")
  whole = set_diffusion_jax.load(home / "set")
  assert alone.weights_digest == whole.weights_digest and alone.config == whole.config


def test_a_run_that_starts_from_another(home, tmp_path, capsys):
  """The set model from the AR model's weights; the report is kept."""
  run = tmp_path / "run"
  command = ["train", f"--config={home}/config.py", f"--workdir={run}"]
  capsys.readouterr()
  assert cli.main([*command, f"--config.init_from={home}/ar"]) == 0
  assert f"from {home}/ar: 12 parameters loaded" in capsys.readouterr().err
  with Checkpoints(run / "checkpoints") as checkpoints:
    meta = checkpoints.restore_meta(4)
  assert meta["weights_from"]["checkpoint"] == f"{home}/ar"
  assert "embedding" in meta["weights_from"]["loaded"]
  wrong = [*command[:2], f"--workdir={tmp_path}/new"]
  fails(capsys, [*wrong, f"--config.init_from={tmp_path}"], "not a work directory")
  wider = [f"--config.init_from={home}/ar", "--config.model.width=32"]
  fails(capsys, [*wrong, *wider], "init_from", "has shape", "model.*")


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


NO_EOS = "--config.decode.stop_at_eos=false"


@pytest.mark.parametrize("method", ["ar", "set"])
def test_sample(home, tmp_path, capsys, method):
  output = tmp_path / "samples.jsonl"
  base = ["sample", f"--checkpoint={home}/{method}", "--prompt=It", "--prompt=was"]
  capsys.readouterr()
  assert cli.main([*base, "--num=2", f"--output={output}", NO_EOS]) == 0
  text = capsys.readouterr().out
  samples = list(map(json.loads, output.read_text().splitlines()))
  assert [s["prompt"] for s in samples] == ["It", "It", "was", "was"]
  assert [s["text"][:2] for s in samples] == ["It", "It", "wa", "wa"]
  assert all(len(s["tokens"]) == 16 for s in samples)
  assert [s["steps"] for s in samples] == [13, 13, 12, 12]
  assert all(s["tokens_per_step"] == 1 for s in samples)
  assert {s["ended_by"] for s in samples} == {"length"}
  assert len(re.findall("--- sample", text)) == 4
  # The same seed and row give the same text, in another batch too.
  model = set_diffusion_jax.load(home / method)
  free = dataclasses.replace(model.config.decode, stop_at_eos=False)
  again = model.generate(["It", "It"], options=free)
  assert [s["tokens"] for s in again] == [s["tokens"] for s in samples[:2]]


def test_sample_reads_prompts_from_files(home, tmp_path, monkeypatch):
  (tmp_path / "lines.txt").write_text("It\n\nwas\n")
  (tmp_path / "prompts.jsonl").write_text('{"prompt": "It"}\n{"prompt": "was"}\n')
  monkeypatch.setattr("sys.stdin", io.StringIO("It\nwas"))
  found = []
  for name in (f"{tmp_path}/lines.txt", f"{tmp_path}/prompts.jsonl", "-"):
    output = tmp_path / "out.jsonl"
    command = ["sample", f"--checkpoint={home}/set", f"--input={name}"]
    assert cli.main([*command, "--temperature=0", f"--output={output}"]) == 0
    rows = list(map(json.loads, output.read_text().splitlines()))
    found.append([(row["prompt"], row["text"]) for row in rows])
  assert found[0] == found[1] == found[2] and len(found[0]) == 2


def test_infill(home, tmp_path, capsys):
  output = tmp_path / "filled.jsonl"
  base = ["infill", f"--checkpoint={home}/set"]
  texts = ["It [MASK:3]the [MASK:2]", "[MASK]was"]
  capsys.readouterr()
  assert cli.main([*base, *texts, f"--output={output}", NO_EOS]) == 0
  assert len(re.findall("--- sample", capsys.readouterr().out)) == 2
  first, second = map(json.loads, output.read_text().splitlines())
  assert first["text"].startswith("It ") and first["tokens"][7:11] == list(b"the ")
  assert len(first["tokens"]) == 1 + len("It ") + 3 + len("the ") + 2
  assert second["tokens"][2:] == list(b"was") and first["steps"] == 5
  (tmp_path / "texts.jsonl").write_text(json.dumps({"text": texts[0]}))
  assert cli.main([*base, f"--input={tmp_path}/texts.jsonl", f"--output={output}"]) == 0
  fails(capsys, base, "give texts")
  fails(capsys, [*base, "no gap"], "has no gap")
  fails(capsys, [*base, "[MASK:0]"], "[MASK:0]")
  fails(capsys, [*base, "[MASK]", "--top-p=2"], "decode.top_p = 2.0")
  fails(capsys, [*base, "[MASK]", "--stop-regex=("], "--stop-regex=(")
  fails(capsys, [*base, "[MASK]", "--stop-repeats=1"], "--stop-repeats=1")
  fails(capsys, [*base, "[MASK]", "--stop-entropy=3"], "--stop-entropy=3: must be N:X")
  fails(capsys, [*base, "[MASK]", "--stop-confidence=0:1"], "--stop-confidence=0:1")
  fails(capsys, [*base, "[MASK]", "--drafts=0"], "decode.drafts = 0")
  fails(capsys, [*base, "[MASK]", "--drafts=2", "--commit=margin"], "decode.drafts = 2")
  fails(capsys, [*base, "[MASK]", "--batch-size=0"], "--batch-size=0")
  fails(capsys, [*base, f"--input={tmp_path}/gone"], "gone", "No such file")
  (tmp_path / "bad.jsonl").write_text('{"body": 3}')
  fails(capsys, [*base, f"--input={tmp_path}/bad.jsonl"], "line 1", '"text"')
  gap = ["infill", f"--checkpoint={home}/ar", "It [MASK] was"]
  fails(capsys, gap, "cannot fill gaps")
  tail = ["infill", f"--checkpoint={home}/ar", "It [MASK]"]
  fails(capsys, [*tail, "--commit=posterior"], "no noise schedule")
  fails(capsys, [*tail, "--drafts=2"], "decode.drafts = 2: must be null")


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


def test_convert_and_use_what_came_out(home, tmp_path, capsys):
  """To PyTorch and back by command; every command takes both."""
  command = ["convert", f"{home}/set", f"{tmp_path}/torch", "--verify"]
  capsys.readouterr()
  assert cli.main(command) == 0
  assert "verified: 12 parameters" in capsys.readouterr().out
  assert cli.main(["convert", f"{tmp_path}/torch", f"{tmp_path}/back"]) == 0
  text = ["--config.data.source=text", f"--config.data.validation_path={home}/text.txt"]
  found = []
  for name in (home / "set", tmp_path / "torch", tmp_path / "back"):
    output = tmp_path / f"{name.name}.json"
    evaluate = ["evaluate", f"--checkpoint={name}", f"--output={output}"]
    ids = name == home / "set"
    if not ids:
      fails(capsys, evaluate, 'data.source = "none"')
    assert cli.main([*evaluate, *text, *([] if ids else BYTES)]) == 0
    found.append(json.loads(output.read_text()))
    sample = [
      "sample",
      f"--checkpoint={name}",
      "--temperature=0",
      *([] if ids else BYTES),
    ]
    assert cli.main(sample) == 0
  assert found[0]["nats_per_token"] == found[1]["nats_per_token"]
  assert found[0]["nats_per_token"] == found[2]["nats_per_token"]
  capsys.readouterr()
  for name in ("set", "torch", "back"):
    folder = home / name if name == "set" else tmp_path / name
    assert cli.main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "S_max = 4 positions active at once" in text
    assert re.search("blocks/qkv/kernel +float32 +1 x 16 x 3 x 2 x 8", text)
  fails(capsys, command, "torch", "exists")
  fails(
    capsys, ["convert", f"{tmp_path}/gone", f"{tmp_path}/x"], "gone", "no such file"
  )
  fails(capsys, [*command[:2], f"{tmp_path}/x", "--dtype=int8"], "--dtype=int8")
  fails(capsys, ["inspect"], "give a checkpoint, or --mask")
  assert not (tmp_path / "x").exists()


BYTES = ["--config.data.tokenizer=byte"]


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_backend_that_is_not_there(tmp_path, platform):
  """One line, whatever jax raises; a new process, since jax looks once."""
  words = [sys.executable, "-m", "set_diffusion_jax", "inspect", str(tmp_path)]
  variables = {**os.environ, "JAX_PLATFORMS": platform}
  done = subprocess.run(
    words, env=variables, cwd=jobs.ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: JAX_PLATFORMS={platform}: ")
