"""Cases of `convert` and `inspect` of a checkpoint of which one file is another."""

import json
import pathlib
import random
import shutil

from set_diffusion_jax import cli
from tests.fuzz import mutate, results
from tests.fuzz.check import Case


def verb(
  rng: random.Random, box: pathlib.Path, source: pathlib.Path, orbax: bool, wanted
):
  """Arguments, what they may write, and the check of a result.

  Args:
    rng: decides.
    box: of the case.
    source: what is read.
    orbax: whether it is a work directory.
    wanted: called for the tensors that the result must hold.
  """
  if rng.random() < 0.5:
    return ["inspect", str(source)], (), None
  destination = box / "out" / "result"
  arguments = ["convert", str(source), str(destination)]
  if rng.random() < 0.1:
    arguments += [rng.choice(["--weights=ema", "--weights=raw", "--shard-size=1e-5"])]
  right = lambda _: results.converted(destination, wanted(), not orbax)
  return arguments, (destination,), right


def case(kind, what, box, arguments, names=(), writes=(), right=None) -> Case:
  """A case of the command line."""
  run = lambda: cli.main(arguments)
  names = ("source", *names)
  return Case(kind, what, box, run, arguments, names, tuple(writes), right)


def copy(home: pathlib.Path, box: pathlib.Path, base: str) -> pathlib.Path:
  """A fresh copy of a base, in the box."""
  (box / "out").mkdir()
  return shutil.copytree(home / base, box / "source")


def changed(kind, rng, box, source, file, data, what, **known) -> Case:
  """The case of one file that has other bytes now."""
  file.write_bytes(data)
  wanted = known.get("wanted", lambda: results.stored(source))
  arguments, writes, right = verb(
    rng, box, known.get("given", source), known.get("orbax", False), wanted
  )
  name = file.name
  return case(kind, f"{name}: {what}", box, arguments, (name,), writes, right)


def json_file(rng, file, keys) -> tuple[bytes, str, mutate.Change | None]:
  """The changed bytes of a JSON file."""
  data = file.read_bytes()
  if rng.random() < 0.12:
    return *mutate.change_file(rng, data), None
  change = mutate.change_json(rng, json.loads(data), keys)
  return mutate.dumps(change.value).encode(), change.what, change
