"""What all launchers share: the command that is launched, quoting, `--dry-run`.

A launcher says where and how often a command runs; everything about the training
itself stands after `--` and goes to set-diffusion as it is.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from set_diffusion_jax.config import files
from set_diffusion_jax.config.checks import check_text
from set_diffusion_jax.errors import UserError

VERBS = ("train", "evaluate")
# What tells processes who they are, which is not for --env.
_OWN = (
  "SET_DIFFUSION_JOB",
  "SET_DIFFUSION_ATTEMPT",
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
  "TPU_WORKER_ID",
  "TPU_WORKER_HOSTNAMES",
  "TPU_PROCESS_ADDRESSES",
)
# Seconds. A start that lasted longer did well: failures are counted from anew after it.
LASTING = 3600
# Options whose files are needed before or after the machines are there.
_KEPT = ("--workdir", "--checkpoint", "--output", "--by-output")


class Launcher(argparse.ArgumentParser):
  """Options of a launcher, then `--`, then a command of set-diffusion."""

  def __init__(self, description: str | None):
    super().__init__(
      description=description,
      usage="%(prog)s [options] -- train --config=NAME --workdir=DIR ...",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    self.add_argument(
      "--dry-run", action="store_true", help="print what would be run, and run nothing"
    )

  def error(self, message: str):
    """One line instead of a usage text."""
    fail(f"{message}; see {self.prog} --help")

  def parse(self) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the command that is to run."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options, command = self.parse_args(words[:cut]), words[cut + 1 :]
    for option in _KEPT:  # `--workdir DIR`, as `--workdir=DIR`
      if option in command[:-1]:
        at = command.index(option)
        command[at : at + 2] = [f"{option}={command[at + 1]}"]
    if not command:
      self.error("after -- there must be a command, such as -- train --config=FILE")
    if command[0] not in VERBS:
      self.error(f"{command[0]}: must be one of {', '.join(VERBS)}")
    for word in command:
      if word.split("=")[0] in ("--coordinator", "--processes", "--process"):
        self.error(f"{word}: the launcher sets this")
    names = [name for name, _ in getattr(options, "env", ())]
    for name in names:
      if names.count(name) > 1:
        self.error(f"--env={name}: is given {names.count(name)} times")
    if command[0] == "train":
      refuse(command[1:])
    return options, command


def fail(message: str) -> NoReturn:
  """Ends with the exit code of a mistake."""
  print(f"error: {message}", file=sys.stderr)
  raise SystemExit(2)


def refuse(arguments: Sequence[str]) -> None:
  """Ends where a configuration that can be read here could not be trained.

  A file that is not here may be where the job will run: in an image, on a cluster.
  """
  name = files.named(arguments).split(":")[0]
  if name.endswith(".py") and not pathlib.Path(name).exists():
    return
  configuration = [word for word in arguments if word.startswith("--config")]
  try:
    check_text(files.read_config(configuration).data)
  except UserError as error:
    fail(str(error))


def share(given: object, option: str, command: Sequence[str]) -> None:
  """Ends where a command has files on a disk, but machines get none that lasts.

  Args:
    given: the value of the launcher's option for that disk; None: it is left out.
    option: with how its value looks.
    command: all files may be in a bucket, or on the hub to be read.
  """
  places = [word for word in command if word.split("=")[0] in _KEPT]
  for word in places or [f"{command[0]}, without a place"]:
    value = word.partition("=")[2]
    if given is None and not value.startswith(("gs://", "hf://")):
      fail(f"{word}: needs {option}, or a place in a bucket: gs://BUCKET/PATH")


def whole(text: str) -> int:
  """A number of things, at least one."""
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 1")
  return int(text)


def count(text: str) -> int:
  """A number of things, or none."""
  if not text.isdigit():
    raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 0")
  return int(text)


def name(text: str) -> str:
  """A name that every scheduler takes: also one of a host."""
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", text):
    right = "must be lower-case letters, digits and dashes, at most 40"
    raise argparse.ArgumentTypeError(f"{text}: {right}")
  return text


def variable(text: str) -> tuple[str, str]:
  """NAME=VALUE of an environment; NAME alone has the value that it has here."""
  name, given, value = text.partition("=")
  if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
    right = "must be NAME=VALUE or NAME, of letters, digits and _"
    raise argparse.ArgumentTypeError(f"{text}: {right}")
  if name in _OWN or name.startswith("MEGASCALE_"):
    raise argparse.ArgumentTypeError(f"{name}: the launcher or the platform sets this")
  if not given and name not in os.environ:
    right = f"is not set here; must be {name}=VALUE, or set"
    raise argparse.ArgumentTypeError(f"{name}: {right}")
  return name, value if given else os.environ[name]


def machines(parser: Launcher) -> None:
  """The options that say which machines of a cloud run what image."""
  parser.add_argument("--name", type=name, required=True)
  parser.add_argument("--image", required=True)
  parser.add_argument("--topology", required=True, help="as plan has it")
  parser.add_argument("--slices", type=whole, default=1, metavar="N")
  parser.add_argument("--spot", action="store_true", help="may be taken back")
  parser.add_argument(
    "--env",
    type=variable,
    action="append",
    default=[],
    metavar="NAME[=VALUE]",
    help="in the environment of the run, several times; NAME alone: with the value "
    "that it has here. Whoever may look at the job can read it",
  )


def restarts(parser: Launcher, default: int = 3, in_all: bool = False) -> None:
  """Adds --restarts.

  Args:
    parser: gets the option.
    default: how many.
    in_all: failures are counted over the whole job, not only those in a row.
  """
  counted = "in all" if in_all else "in a row, each within an hour of its start"
  parser.add_argument(
    "--restarts",
    type=count,
    default=default,
    metavar="N",
    help=f"after failures {counted}; a run that saved and stopped is always started "
    f"again; default: {default}",
  )


def topology(name: str, slices: int = 1):
  """What `plan --topology` takes as well, such as v5e:16x16 and gpu:h100x64."""
  # Imports jax, which the other launchers do without.
  from set_diffusion_jax.plan import parse_topology

  try:
    return parse_topology(name, slices)
  except UserError as error:
    fail(str(error))


def lines(words: Sequence[str]) -> str:
  """A command as one can paste it, an option a line where it is long."""
  short = shlex.join(words)
  if len(short) <= 88:
    return short
  options = [i for i, word in enumerate(words) if word.startswith("--")]
  cuts = [0, *options, len(words)]
  rows = [shlex.join(words[a:b]) for a, b in itertools.pairwise(cuts) if a < b]
  return " \\\n  ".join(rows)


def say(line: str) -> None:
  """Something of a launcher's own, if there still is a terminal to say it to."""
  with contextlib.suppress(OSError):
    print(f"launch: {line}", file=sys.stderr, flush=True)


def show(text: str) -> None:
  """Prints a text, as far as it is read: `head` may have seen enough."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fed(words: Sequence[str], text: str) -> str:
  """A command with a text as its standard input, to be pasted whatever the text is."""
  end = "END"
  while end in text.splitlines():
    end += "_"
  return f"{lines(words)} <<'{end}'\n{text}{end}"


def run(words: Sequence[str], text: str, dry_run: bool) -> int:
  """Runs a command with a text as its standard input, or prints both to be pasted.

  Returns:
    The exit code.
  """
  if dry_run:
    show(fed(words, text))
    return 0
  try:
    return subprocess.run(words, input=text, text=True, check=False).returncode
  except FileNotFoundError:
    print(f"error: {words[0]}: is not installed on this machine", file=sys.stderr)
    return 2
