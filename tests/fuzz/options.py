"""Command lines and configurations that are wrong somewhere; no model runs.

What a verb would do once everything is known to be right is replaced by its acceptance.
"""

import contextlib
import functools
import pathlib
import random
import re
from unittest import mock

import jax

from set_diffusion_jax import api, cli, data, plan
from set_diffusion_jax.cli import batch
from set_diffusion_jax.config import COMMITS, Config
from set_diffusion_jax.figures import masks
from set_diffusion_jax.training import train
from tests.fuzz import links, mutate
from tests.fuzz.check import Case

_load = api.load


class Accepted(BaseException):
  """The work that was asked for would begin now."""


_VALUES = [
  *("", " ", "0", "-1", "1", "2", "3", "0.5", "-0.5", "1e5", "1e400", "nan", "inf"),
  *(
    "-inf",
    "1e-400",
    "4294967295",
    "4294967296",
    "9" * 30,
    "9" * 5000,
    "1_000",
    "0x10",
  ),
  *("²", "１２", "٣", "1.", ".5", "+1", "1,5", "True", "true", "None", "null", "[]"),
  *("[1", "(1,)", "{}", "'", '"', "'a'", "a", "a b", "a" * 3000, "é", "\u2028", "a\nb"),
  *("\x1b[31m", "\udcff", "%s", "{0}", "$HOME", "~", "~/x", "/", ".", "..", "-", "--"),
  *("../../escape", "a=b", "a:b", "a,b", "@file", "*", "[a]", "0:0", "3:-1", "3:nan"),
  *("32:0.5", "v4:2x2x2", "gpu:h100x8", "v5e:0x0", f"v4:{'9' * 30}x1x1", "gpu:h100x0"),
  *(r"\s*", "(", "(a+)+$", "[[:alpha:]]", "left_to_right", "all", "ptb,ptb", "lambada"),
]
# Some are right for some options, so that what comes after them is reached.
_NUMBERS = "0 1 2 3 4 8 16 64 -1 0.5 0.9 1.5 1e-9 1e9 4294967295 4294967296".split()
_OPTIONS = {
  "train": """--workdir --profile! --coordinator --processes --process
    --meeting-timeout --compilation-cache""",
  "prepare": "--output --text! --workers --shard-size --check",
  "evaluate": """--checkpoint --weights --output --coordinator --processes --process
    --draws --sequences --batch-size --seed --order --by --by-output --zero-shot
    --zero-shot-data""",
  "sample": """--checkpoint --weights --output --prompt --length --input --num
    --batch-size --seed --commit --tokens-per-step --threshold --window --drafts
    --temperature --top-k --top-p --stop --stop-regex --stop-repeats --stop-confidence
    --stop-entropy --stream!""",
  "plan": "--topology --slices --vocabulary-size --json",
  "convert": "--weights --dtype --shard-size --verify! --evaluation",
  "inspect": "--mask! --data! --rows --length --seed --methods --output",
}
_OPTIONS["infill"] = _OPTIONS["sample"].replace("--prompt --length ", "")
_OPTIONS = {verb: names.split() for verb, names in _OPTIONS.items()}
_FIELDS = dict(sorted(Config().flat().items()))
_OF_CHECKPOINTS = ("evaluate", "sample", "infill")
_CHANGEABLE = ("data.", "evaluate.", "decode.", "method.", "compat", "model.dtype")
_CHOICES = {
  "--commit": COMMITS,
  "--weights": ("raw",),
  "--by": ("token",),
  "--stop-confidence": ("3:0.5",),
  "--stop-entropy": ("3:0.5",),
  "--zero-shot": ("ptb", "all"),
  "--dtype": ("float16", "bfloat16"),
}
_FILES = ("--output", "--by-output", "--json", "--workdir", "--compilation-cache")


@contextlib.contextmanager
def stubs(home: pathlib.Path):
  """In place of all that would compute."""

  def accept(*_, **__):
    raise Accepted

  def load(path, weights=None, backbone_config=None):
    if str(path) == str(home / "orbax") and weights != "ema" and not backbone_config:
      return _model(home)
    return _load(path, weights, backbone_config)

  cache = jax.config.jax_compilation_cache_dir
  with contextlib.ExitStack() as stack:
    for place, name in (
      *((jax.distributed, "initialize"), (train, "train"), (plan, "make_plan")),
      *((batch, "batch_figures"), (data, "prepare"), (masks, "drawn_index")),
      *((api.Model, "generation"), (api.Model, "evaluator")),
    ):
      stack.enter_context(mock.patch.object(place, name, accept))
    stack.enter_context(mock.patch.object(api, "load", load))
    try:
      yield
    finally:
      jax.config.update("jax_compilation_cache_dir", cache)


@functools.cache
def _model(home: pathlib.Path):
  return _load(home / "orbax")


def run(home: pathlib.Path, arguments: list[str]) -> int:
  """The exit code of a command line; 0 where its work would begin."""
  with stubs(home):
    try:
      return cli.main(arguments)
    except Accepted:
      return 0


def _override(rng: random.Random, verb: str) -> str:
  """A change of a field of the configuration, which may not exist."""
  field = rng.choice(list(_FIELDS))
  if verb in _OF_CHECKPOINTS and rng.random() < 0.8:  # others are fixed there
    field = rng.choice([f for f in _FIELDS if f.startswith(_CHANGEABLE)])
  value = rng.choice(_VALUES)
  if rng.random() < 0.5:
    value = mutate.near(rng, _FIELDS[field])
  act = rng.randrange(12)
  if act == 0:
    field = rng.choice([field.upper(), field + "x", field.split(".")[0], "", "."])
  elif act == 1:
    field = rng.choice(["a.b.c", "model..width", "__class__", "model.__init__", "é"])
  if act == 2:
    return rng.choice([f"--config.{field}", f"--config.{field}=", f"--config{field}=1"])
  return f"--config.{field}={value}".replace("\0", "")  # no argument can have it


def _value(rng: random.Random, box: pathlib.Path, option: str) -> str:
  if option in _FILES:  # never outside of the box
    place = rng.choice(["out/", "out/none/", "", "out/a file/"])
    return str(box / place) + "/" + links.name(rng)
  if option in _CHOICES and rng.random() < 0.5:
    return rng.choice(_CHOICES[option])
  return rng.choice(_NUMBERS if rng.random() < 0.5 else _VALUES)


def _base(rng, home, box, verb) -> list[str]:
  """A command line that is right."""
  if verb in _OF_CHECKPOINTS:
    where = home / "orbax" if rng.random() < 0.8 else box / "nothing"
    more = ["The [MASK:3] sat."] if verb == "infill" else []
    return [verb, f"--checkpoint={where}", *more]
  if verb == "convert":
    return [verb, str(home / "nothing"), str(box / "out" / "result")]
  found = [verb, f"--config={home}/config.py"]
  if verb == "train":
    found.append(f"--workdir={box}/out/run")
  elif verb == "prepare":
    found.append(f"--output={box}/out/prepared")
  elif verb == "plan":
    found += ["--topology=v4:2x2x2", "--vocabulary-size=64"]
  elif verb == "inspect":
    found.append(rng.choice(["--data", "--mask"]))
  return found


def _command(verb: str, rng, home, box) -> Case:
  (box / "out").mkdir()
  (box / "out" / "a file").write_text("x")
  arguments = _base(rng, home, box, verb)
  for _ in range(rng.choice([1, 1, 2, 3])):
    act = rng.randrange(12)
    option = rng.choice(_OPTIONS[verb])
    flag = option.rstrip("!")
    if act < 6:
      given = flag if option.endswith("!") else f"{flag}={_value(rng, box, flag)}"
      arguments.append(given)
    elif act < 9:
      arguments.append(_override(rng, verb))
    elif act == 9:
      arguments.append(
        rng.choice([flag, f"{flag}x=1", f"{flag}=", flag[:-1], "--help"])
      )
    elif act == 10:
      file = rng.choice(
        ["nothing.py", "", "broken.py", f"{home}/config.py:method=x", "é"]
      )
      arguments.append(f"--config={file}")
    else:
      del arguments[rng.randrange(len(arguments))]
  if rng.random() < 0.1:
    rng.shuffle(arguments)
  what = " ".join(arguments)[:300]
  right = lambda _: _must_not(arguments)
  act = functools.partial(run, home, arguments)
  known = {name for part in arguments for name in re.split(r"[=.]", part.lstrip("-"))}
  names = (*(known - {""}), "arguments", verb)
  return Case(verb, what, box, act, arguments, names, (box / "out",), right)


def _must_not(arguments: list[str]) -> str | None:
  """What of an accepted command line should have been refused."""
  for argument in arguments:
    name, _, value = argument.partition("=")
    if name in ("--stop", "--stop-regex") and not value and "=" in argument:
      return f"{argument}: is empty, but accepted"
    if name in ("--seed", "--config.train.seed", "--config.evaluate.seed"):
      with contextlib.suppress(ValueError):
        if not 0 <= int(value) < 2**32:
          return f"{argument:.40}: is out of range, but accepted"
  return None


KINDS = {verb: functools.partial(_command, verb) for verb in _OPTIONS}
SHARES = {verb: 3 if verb in ("sample", "train", "evaluate") else 2 for verb in KINDS}


def good(home: pathlib.Path) -> list:
  """What must be accepted before anything is mutated."""
  lines = [_base(random.Random(1), home, home, verb) for verb in KINDS]
  return [
    functools.partial(run, home, line)
    for line in lines
    if not any("nothing" in part for part in line)
  ]
