"""The command line: `python -m set_diffusion_jax VERB`."""

import argparse
import contextlib
import io
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import jax

from set_diffusion_jax import numerics, sharding
from set_diffusion_jax.cli.evaluate import evaluate
from set_diffusion_jax.cli.files import check_folder, check_output, drop_output
from set_diffusion_jax.cli.generate import infill, sample
from set_diffusion_jax.cli.inspect import convert, inspect
from set_diffusion_jax.cli.parser import make_parser
from set_diffusion_jax.cli.plan import plan
from set_diffusion_jax.cli.prepare import prepare
from set_diffusion_jax.config.files import read_config
from set_diffusion_jax.errors import (
  NO_SCRATCH,
  AgreedError,
  NonFiniteError,
  Preempted,
  StoreError,
  UserError,
  disk_reason,
)
from set_diffusion_jax.inputs import terminal
from set_diffusion_jax.jobs import cluster, ending, outcomes, processes, watch
from set_diffusion_jax.jobs.phases import here
from set_diffusion_jax.storage.refusals import refusal

__all__ = ["guarded", "main", "quiet", "read_config"]


# Ways of an output that raise for what it cannot encode; the second is the locale C's.
_FAILING = ("strict", "surrogateescape")


def quiet() -> None:
  """Keeps libraries from logging what is not for the user."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  for name in ("absl", "orbax", "jax"):
    logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(name).addFilter(_is_news)
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its errors are told here
  for name in ("stdout", "stderr"):
    if getattr(sys, name) is None:  # it was closed before the start
      setattr(sys, name, io.StringIO())


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a log says more than the line that a disk or a store is told in."""
  error = record.exc_info[1] if record.exc_info else OSError(record.getMessage())
  return disk_reason(error) is None and refusal(error) is None


def main(argv: Sequence[str] | None = None, watched: bool = False) -> int:
  """Runs one verb; returns the exit code.

  Args:
    argv: the words after the program's name; None: those of this process.
    watched: whether the process is there for this alone. Then `train` and `evaluate`
      take its signals, and end it where another process of the job fails.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  return guarded(lambda: _run(argv, watched))


def guarded(act: Callable[[], int]) -> int:
  """The exit code of what `act` does; the ways it may end early in a line each.

  In a job of several processes it does not return while others would wait for this one.
  """
  quiet()
  # What it cannot encode is escaped.
  if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in _FAILING:
    sys.stdout.reconfigure(errors="backslashreplace")
  line, agreed = "", True
  try:
    code = act()
    sys.stdout.flush()
  except (UserError, StoreError) as error:
    away = isinstance(error, StoreError)
    code = outcomes.UNREACHABLE if away else outcomes.MISTAKE
    line, agreed = f"error: {terminal.line(str(error))}", isinstance(error, AgreedError)
  except NonFiniteError as error:
    code = outcomes.DIVERGED
    line = f"error: {error}; the last checkpoint is from before"
  except Preempted as stop:
    code, line = outcomes.PREEMPTED, f"{stop}; the same command continues"
  except BrokenPipeError:  # a reader such as `head` has seen enough
    drop_output()
    code = outcomes.DONE
  except KeyboardInterrupt:
    code, agreed = outcomes.INTERRUPTED, False
    line = "interrupted; the same command continues"
  except Exception as error:
    reason = disk_reason(error) if isinstance(error, OSError) else None
    if reason is None:
      _fail(error)
      raise
    other = "TMPDIR" if NO_SCRATCH in reason else "standard output"
    where = terminal.line(f"{error.filename or other}")
    code, line, agreed = outcomes.MISTAKE, f"error: {where}: {reason}", False
  with here.phase("exit"):
    return _leave(code, line, agreed)


def _leave(code: int, line: str, agreed: bool) -> int:
  """Says how this process ends, to the user and to the other processes of its job."""
  watching = watch.current()
  if line:
    if watching is not None and not ending.claim():
      ending.wait_for_end()
    ending.say(line)
  if watching is not None:
    watching.leave(code, line.removeprefix("error: "), agreed)
    with contextlib.suppress(Exception):  # of one that is gone: all is done
      jax.distributed.shutdown()
  return code


def _fail(error: Exception) -> None:
  """Ends a process of a job after an error that is none of the user's; else returns.

  Those of jax's runtime mostly come from another process: that one is named then.
  """
  watching = watch.current()
  if watching is None:
    return
  if isinstance(error, jax.errors.JaxRuntimeError):
    first = terminal.line(str(error).strip().splitlines()[0])
    if "RESOURCE_EXHAUSTED" in first and "memory" in first.lower():
      right = "a smaller batch, train.accumulate or another mesh need less; ask plan"
      watching.fail(f"error: {first}; {right}", outcomes.MISFIT)
    watching.fail(f"error: a device or a peer failed: {first}")
  text = traceback.format_exc()
  watching.fail(f"{text}error: {terminal.line(repr(error))}", code=1)


def _run(argv: list[str], watched: bool) -> int:
  configuration = [a for a in argv if a.split("=")[0].split(".")[0] == "--config"]
  _check_equals(argv)
  numerics.settle()
  arguments = make_parser().parse_args([a for a in argv if a not in configuration])
  if arguments.verb in ("train", "evaluate"):
    if watched:
      watch.begin(arguments.stuck_after)
    _join(arguments)
  if arguments.verb not in ("prepare", "plan"):  # these need no device
    sharding.check_backend()
  if arguments.verb == "train":
    from set_diffusion_jax.training.train import train

    config = processes.together(lambda: read_config(configuration))
    train(
      config,
      arguments.workdir,
      profile=arguments.profile,
      lease_timeout=arguments.lease_timeout,
      whole_process=True,
    )
  elif arguments.verb == "prepare":
    prepare(arguments, configuration)
  elif arguments.verb == "plan":
    return plan(arguments, configuration)
  elif arguments.verb == "inspect":
    inspect(arguments, configuration)
  elif arguments.verb == "convert":
    if configuration:
      raise UserError(f"{configuration[0]}: convert takes no configuration")
    convert(arguments)
  else:
    named = [a for a in configuration if not a.startswith("--config.")]
    if named:
      raise UserError(f"{named[0]}: {arguments.verb} has the checkpoint's own")
    names = ("checkpoint", "input", "backbone_config")
    check_output(arguments.output, inputs=[getattr(arguments, n, None) for n in names])
    verbs = {"evaluate": evaluate, "sample": sample, "infill": infill}
    verbs[arguments.verb](arguments, configuration)
  return 0


def _check_equals(argv: list[str]) -> None:
  """UserError for `--config FILE`, `--config.a.b VALUE` and a value of two hyphens.

  argparse takes such a value out of the arguments, as the end of the options.
  """
  for word in itertools.takewhile(lambda word: word != "--", argv):
    if word.startswith("--") and word.endswith("=--"):
      raise UserError(f"{word}: two hyphens alone cannot be the value of an option")
  for word, following in itertools.pairwise([*argv, "--"]):
    field = word.startswith("--config.") and "infill" not in argv  # it takes texts
    bare = (word == "--config" or field) and "=" not in word
    if bare and not following.startswith("--"):
      raise UserError(f"{word} {following}: write {word}={following}")
  if "--config" in argv:
    raise UserError("--config: must name a configuration, as --config=FILE or NAME")


def _join(arguments: argparse.Namespace) -> None:
  """Meets the other processes of the job, if there are any."""
  cluster.start(
    arguments.coordinator,
    arguments.processes,
    arguments.process,
    arguments.meeting_timeout,
  )
  if arguments.compilation_cache is not None:
    check_folder(arguments.compilation_cache, "--compilation-cache")
    jax.config.update("jax_compilation_cache_dir", str(arguments.compilation_cache))
