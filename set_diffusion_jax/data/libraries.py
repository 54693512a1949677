"""Calls of tokenizer libraries: what fails in them is told in one line."""

import contextlib
import os
import sys
from collections.abc import Iterator

from set_diffusion_jax.errors import UserError


@contextlib.contextmanager
def one_line(problem: str) -> Iterator[None]:
  """Turns whatever a library raises into a UserError: the problem, and its reason.

  The tokenizers library is written in Rust, where a panic is no `Exception`.
  """
  try:
    yield
  except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
    raise
  except BaseException as error:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    raise UserError(f"{problem} ({reason[:200]})") from None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
  """Holds back what libraries write to standard error while they read a file.

  They do so beside Python, where they panic or find something damaged.
  """
  sys.stderr.flush()
  try:
    kept = os.dup(2)
  except OSError:  # there is no standard error
    yield
    return
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  os.close(nowhere)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
