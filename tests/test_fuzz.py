"""Made-up inputs are right or refused in a line; planted faults are found.

A few inputs of each campaign; `python -m tests.fuzz` runs a whole one.
"""

import contextlib
import io
import pickle
import socket
import sys
import time
import zipfile

import pytest

import set_diffusion_jax.convert
from set_diffusion_jax import cli, data
from set_diffusion_jax.errors import UserError
from tests.fuzz import campaign, check, mutate, watch

QUICK = {"checkpoints": 30, "texts": 20, "options": 10}
ALL = {"checkpoints": 300, "texts": 140, "options": 60}


@pytest.fixture(scope="module")
def home():
  """The good inputs, each accepted once."""
  with campaign.home() as folder:
    for name in campaign.CAMPAIGNS:
      campaign.warm(folder, name)
    yield folder


@pytest.mark.parametrize("part", ["first", "rest"])
@pytest.mark.parametrize("name", QUICK)
def test_inputs(home, name, part):
  first, end = (0, QUICK[name]) if part == "first" else (QUICK[name], ALL[name])
  found = list(campaign.run(home, name, end - first, 0, first))
  faults = [one for one in found if one.outcome.fault]
  assert not faults, "\n".join(
    f"{one.number} {one.kind}: {one.what}: {one.outcome.group}" for one in faults
  )
  assert {one.outcome.code for one in found} == {0, 2}


def outcomes(home, name, kind, count=12, limits=check.ALLOWED):
  """How the first so many inputs of a kind end."""
  order = campaign.kinds(name)
  numbers = [n for n in range(20 * len(order)) if order[n % len(order)] == kind]
  return [
    one.outcome
    for number in numbers[:count]
    for one in campaign.run(home, name, 1, 1, number, limits=limits)
  ]


class Panic(BaseException):
  """As Rust's are: no Exception."""


def before(monkeypatch, act):
  """Does something before a checkpoint is described or converted."""
  module = set_diffusion_jax.convert
  describe, convert = module.describe, module.convert
  for name, real in (("describe", describe), ("convert", convert)):
    after = lambda p, *a, real=real, **k: act(p) or real(p, *a, **k)
    monkeypatch.setattr(module, name, after)


class Trusting(pickle.Unpickler):
  """Knows tensors, and does whatever else it is told."""

  def persistent_load(self, identity):
    return None

  def find_class(self, module, name):
    if module.startswith("torch"):
      return lambda *_: None
    return super().find_class(module, name)


def execute(path):
  for file in path.glob("*.bin"):
    with zipfile.ZipFile(file) as archive, contextlib.suppress(Exception):
      Trusting(io.BytesIO(archive.read("archive/data.pkl"))).load()


def fails(error):
  raise error


def says(text):
  """Refuses with just this on standard error."""
  sys.stderr.write(text)
  raise SystemExit(2)


def allocate(size):
  """Touches so many bytes."""
  return len(b"x" * size) < 0


# What is done before a checkpoint is read, and which rule that breaks.
PLANTED = {
  "traceback": lambda path: fails(KeyError("layers")),
  "traceback of Rust": lambda path: fails(Panic("index out of bounds")),
  "traceback of memory": lambda path: allocate(2**36),
  "not one line": lambda path: says(f"a warning\nerror: {path}: is wrong\n"),
  "unreadable line": lambda path: says(f"error: {path}: is \x1b[2J\n"),
  "names nothing": lambda path: fails(UserError("something is wrong")),
  "exit code": lambda path: fails(SystemExit(3)),
  "outside": lambda path: (path.parent / "planted").touch(),
  "outside the box": lambda path: (path.parents[2] / "planted").touch(),
  "source is changed": lambda path: (path / "config.json").touch(),
  "memory": lambda path: allocate(300 * 2**20),
  "time": lambda path: time.sleep(9),
  "executed": lambda path: socket.create_connection(("127.0.0.1", 9)),
}
RULE = {
  "traceback of Rust": "traceback",
  "traceback of memory": "traceback",
  "outside the box": "outside",
  "source is changed": "outside",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(home, monkeypatch, fault):
  before(monkeypatch, PLANTED[fault])
  limits = check.Limits(seconds=0.5) if fault == "time" else check.ALLOWED
  found = outcomes(home, "checkpoints", "generation_config.json", 2, limits)
  assert {one.fault for one in found} == {RULE.get(fault, fault)}


def test_a_pickle_that_is_executed_is_found(home, monkeypatch):
  before(monkeypatch, execute)
  found = outcomes(home, "checkpoints", "pickle", 40)
  assert "executed" in {one.fault for one in found}


def test_a_value_that_is_converted_wrongly_is_found(home, monkeypatch):
  real = set_diffusion_jax.convert.convert

  def convert(source, destination, **options):
    report = real(source, destination, **options)
    for path in destination.glob("*.safetensors"):
      content = path.read_bytes()
      path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return report

  monkeypatch.setattr(set_diffusion_jax.convert, "convert", convert)
  found = outcomes(home, "checkpoints", "meta of Orbax", 12)
  assert "wrong result" in {one.fault for one in found}


def test_what_is_left_after_a_refusal_is_found(home, monkeypatch):
  real = set_diffusion_jax.convert.convert

  def convert(source, destination, **options):
    destination.mkdir()
    return real(source, destination, **options)

  monkeypatch.setattr(set_diffusion_jax.convert, "convert", convert)
  found = outcomes(home, "checkpoints", "safetensors bytes")
  assert "left over" in {one.fault for one in found}


def test_a_key_that_is_ignored_is_found(home, monkeypatch):
  real = set_diffusion_jax.convert.describe
  whole = {base: real(home / base) for base in ("dit", "qwen3", "older")}

  def describe(path, **_):
    text = (path / "config.json").read_text(errors="replace")
    base = "qwen3" if "hidden_act" in text else "older" if "n_blocks" in text else "dit"
    return whole[base]

  monkeypatch.setattr(set_diffusion_jax.convert, "describe", describe)
  found = outcomes(home, "checkpoints", "config.json", 12)
  assert "wrong result" in {one.fault for one in found}


def test_a_line_that_is_lost_is_found(home, monkeypatch):
  real = data.load

  def load(config, *arguments):
    corpus = real(config, *arguments)
    return corpus._replace(validation=corpus.train)

  monkeypatch.setattr(data, "load", load)
  found = outcomes(home, "texts", "text and lines")
  assert "wrong result" in {one.fault for one in found}


def test_what_lies_outside_is_not_in_the_result(tmp_path):
  folder = tmp_path.resolve()
  run = lambda: print(watch.SECRET) or 0
  outcome = check.check(check.Case("a kind", "a secret", folder, run, []))
  assert outcome.fault == "outside read"


def test_a_good_input_has_no_fault(home, tmp_path):
  run = lambda: cli.main(["inspect", str(home / "dit")])
  outcome = check.check(check.Case("a kind", "as it was", tmp_path.resolve(), run, []))
  assert outcome == check.Outcome(0)


def test_the_same_seed_makes_the_same_inputs(home):
  runs = [list(campaign.run(home, "texts", 12, seed, 3)) for seed in (5, 5, 6)]
  first, again, other = ([one.what for one in run] for run in runs)
  assert first == again != other


def test_mutated_json_is_written_as_it_is_meant():
  value = {"a": mutate.Twice(1, mutate.Raw("NaN")), "b": [mutate.Raw("1e999")]}
  assert mutate.dumps(value) == '{"a": 1, "a": NaN, "b": [1e999]}'
