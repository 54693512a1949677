"""Reading where a read may fail today and succeed in a moment."""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds before each further attempt
_PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN)
# These are about what is in a folder; all others about how it is reached.
_ABOUT_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_REFUSALS = re.compile(
  r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED|PERMISSION_DENIED"
  r"|UNAUTHENTICATED)\b"
)


def retried(act: Callable[[], T]) -> T:
  """What `act` returns, which is called again, a few times, after a passing fault.

  Raises:
    Exception: the last fault of `act`, or at once one that is not passing.
  """
  for pause in PAUSES:
    try:
      return act()
    except Exception as error:
      if not _passes(error):
        raise
    time.sleep(pause)
  return act()


def unread(error: BaseException) -> str | None:
  """Why nothing is known about the bytes; None if the error says something of them.

  Args:
    error: of the system, or of a library that says in its text, or in the error that
      it arose from, what the system or a store said.
  """
  for link in _chain(error):
    if isinstance(link, MemoryError):
      return "out of memory"
    number = _number(link)
    if number is not None and number not in _ABOUT_CONTENT:
      return os.strerror(number)
    if found := _REFUSALS.search(str(link)):
      return found[1]
  return None


def _passes(error: BaseException) -> bool:
  """Whether the same read may succeed in a moment."""
  return any(
    _number(link) in _PASSING
    or re.search(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b", str(link))
    for link in _chain(error)
  )


def _number(error: BaseException) -> int | None:
  """The system's number of an error, which tensorstore puts into its text."""
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  found = re.search(r"OS error (\d+)\b", str(error))
  return int(found[1]) if found else None


def _chain(error: BaseException | None) -> list[BaseException]:
  """An error and those that it arose from."""
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    seen.append(error)
    error = error.__cause__ or error.__context__
  return seen
