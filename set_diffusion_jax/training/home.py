"""The work directory of a job: one process holds it, and all see it."""

import contextlib
import pathlib
import time

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.jobs import ending, processes
from set_diffusion_jax.storage.lease import TIMEOUT, Lease, holds

SHOWS_AFTER = 30.0  # seconds until what one host has written shows on all others


class Home:
  """A work directory while a job trains in it; every process makes one, as a context.

  The first process holds the lease of the directory for all of them.

  Args:
    directory: the same in all processes.
    timeout: see `Lease`.

  Attributes:
    news: lines that are to be said.

  Raises:
    UserError: another run holds the directory, it cannot be written, or some process
      does not see what the first has written there.
  """

  def __init__(self, directory: pathlib.Path, timeout: float = TIMEOUT):
    self._directory = directory
    self._lease = Lease(directory, timeout)
    self.news: list[str] = []
    self._held = contextlib.ExitStack()

  def __enter__(self) -> "Home":
    line = processes.from_first(self._lease.take)
    self._held.enter_context(ending.at_end(self._lease.release))
    try:
      self.news = [] if line is None else [line]
      nonce = processes.from_first(lambda: self._lease.nonce)
      processes.together(lambda: self._check_shared(nonce))
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *exception) -> None:
    self._held.close()
    self._lease.release()

  def _check_shared(self, nonce: str) -> None:
    """UserError unless this process sees the lease of the first one."""
    deadline = time.monotonic() + SHOWS_AFTER
    pause, why = 0.05, ""
    while True:
      try:
        if holds(self._directory, nonce):
          return
      except OSError as error:
        why = f" ({error.strerror})"
      if time.monotonic() >= deadline:
        break
      time.sleep(pause)
      pause = min(2 * pause, 5.0)
    raise UserError(
      f"--workdir={self._directory}: what process 0 wrote there cannot be seen here"
      f"{why}; must be a directory that all hosts share"
    )

  def check(self) -> None:
    """To be called by all processes before a save.

    Raises:
      UserError: another run has taken the directory over.
    """
    processes.from_first(self._lease.check)
