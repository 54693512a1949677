"""What all launchers share: the command that is launched, quoting, `--dry-run`.

A launcher says where and how often a command runs; everything about the training
itself stands after `--` and goes to set-diffusion as it is.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

VERBS = ("train", "evaluate")
PREEMPTED = 42  # saved and stopped: start again, as often as it takes
CRASHED = (134, 137)  # aborted, killed: a host or a process died; start again, counted


class Launcher(argparse.ArgumentParser):
  """Options of a launcher, then `--`, then a command of set-diffusion."""

  def __init__(self, description: str | None):
    super().__init__(
      description=description,
      usage="%(prog)s [options] -- train --config=FILE --workdir=DIR ...",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    self.add_argument(
      "--dry-run", action="store_true", help="print what would be run, and run nothing"
    )

  def error(self, message: str):
    """One line instead of a usage text."""
    print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
    raise SystemExit(2)

  def parse(self) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the command that is to run."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options, command = self.parse_args(words[:cut]), words[cut + 1 :]
    if not command:
      self.error("after -- there must be a command, such as -- train --config=FILE")
    if command[0] not in VERBS:
      self.error(f"{command[0]}: must be one of {', '.join(VERBS)}")
    for word in command:
      if word.split("=")[0] in ("--coordinator", "--processes", "--process"):
        self.error(f"{word}: the launcher sets this")
    return options, command


def whole(text: str) -> int:
  """A number of things, at least one."""
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 1")
  return int(text)


def lines(words: Sequence[str]) -> str:
  """A command as one can paste it, an option a line where it is long."""
  short = shlex.join(words)
  if len(short) <= 88:
    return short
  return " \\\n  ".join(shlex.quote(word) for word in words)


def run(commands: Sequence[Sequence[str]], files: dict[str, str], dry_run: bool) -> int:
  """Writes files and runs commands until one fails, or prints all of it.

  Args:
    commands: each a list of words.
    files: texts by path; "-" is printed only.
    dry_run: print, and do neither.

  Returns:
    The exit code.
  """
  if dry_run:
    for path, text in files.items():
      print(f"# {path}\n{text}" if path != "-" else text, end="")
    for command in commands:
      print(lines(command))
    return 0
  for path, text in files.items():
    pathlib.Path(path).write_text(text)
  for command in commands:
    try:
      code = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
      print(f"error: {command[0]}: is not installed on this machine", file=sys.stderr)
      return 2
    if code:
      return code
  return 0
