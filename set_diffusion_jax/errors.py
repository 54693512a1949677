"""The ways a command ends early."""

import contextlib
import errno
import os
from collections.abc import Iterator


class UserError(Exception):
  """A mistake in a configuration, a path or an input: one line, exit code 2.

  The message names the field, its value, and what would be right.
  """


class AgreedError(UserError):
  """A mistake that ends all processes of a job with this line, each of which has it."""


class DiskError(UserError):
  """A disk or a quota is full, or fails, while a command writes: exit code 2.

  Raised in the processes that notice it; those of a job need not all do so.
  """


class StoreError(Exception):
  """A store cannot be reached, or is busy, while a command writes there: exit code 5.

  Its client has tried again for a while. What is saved is whole, and the same command
  goes on from there. Raised in the processes that notice it.
  """


NO_SCRATCH = "No usable temporary directory"  # as Python says it, of a full disk
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def disk_reason(error: BaseException) -> str | None:
  """What the system says of a disk that is full or fails; None for another error.

  Args:
    error: of the system, or of a library that says in its text, or in the error that
      it arose from, what the system said.
  """
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    if isinstance(error, OSError) and error.errno in _DISK:
      return os.strerror(error.errno)
    if NO_SCRATCH in str(error):
      return str(error).split("] ")[-1]
    for number in _DISK:
      if os.strerror(number) in str(error) or f"OS error {number}:" in str(error):
        return os.strerror(number)
    seen.append(error)
    error = error.__cause__ or error.__context__
  return None


class NonFiniteError(Exception):
  """The loss or its gradient became NaN or infinite: exit code 4."""


class Preempted(Exception):
  """The run was asked to stop and has saved where it is: exit code 42.

  Attributes:
    step: what was saved.
  """

  def __init__(self, step: int):
    super().__init__(f"stopped at step {step}, which is saved")
    self.step = step


@contextlib.contextmanager
def disk_told(where: str, kept: str) -> Iterator[None]:
  """Raises DiskError for a disk that is full or fails, whichever library noticed it.

  Args:
    where: what is written, as the user named it.
    kept: what is on disk nevertheless.
  """
  try:
    yield
  except (UserError, StoreError, NonFiniteError, Preempted):
    raise
  except Exception as error:
    reason = disk_reason(error)
    if reason is None:
      raise
    raise DiskError(
      f"{where}: {reason}; {kept}, and the same command goes on from there"
    ) from error
