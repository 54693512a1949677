"""The end of a process that others may be waiting for, from whichever thread."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, NoReturn

_SECONDS = 5.0  # for what is still to be done
_claimed = threading.Lock()
_acts: list[Callable[[], None]] = []


@contextlib.contextmanager
def at_end(act: Callable[[], None]) -> Iterator[None]:
  """While the body runs, an end by `end_now` calls `act` first, such as to let go."""
  _acts.append(act)
  try:
    yield
  finally:
    _acts.remove(act)


def claim() -> bool:
  """Whether the caller is the one thread that says why the process ends."""
  return _claimed.acquire(blocking=False)


def wait_for_end() -> NoReturn:
  """To be called by a thread that was not the first one to `claim`."""
  while True:
    time.sleep(1.0)


def say(text: str) -> None:
  """Prints to where errors go, as far as that goes: the disk under it may be full."""
  with contextlib.suppress(OSError, ValueError):
    print(text, file=sys.stderr, flush=True)


@functools.cache
def errors() -> IO:
  """Where errors go, as a file of the system; where that is closed, nowhere."""
  try:
    sys.stderr.fileno()
  except (AttributeError, OSError, ValueError):
    return open(os.devnull, "w")  # to the end of the process
  return sys.stderr


def end_now(code: int) -> NoReturn:
  """Ends the process, whatever its other threads or jax are waiting for."""
  others = threading.Thread(target=_act, daemon=True)
  others.start()
  others.join(_SECONDS)
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  os._exit(code)


def _act() -> None:
  for act in reversed(_acts):
    with contextlib.suppress(Exception):
      act()
