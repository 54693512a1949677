"""One saved step of a run as it is read, and whether it is what was saved."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import TypeVar

import jax
from etils import epath

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import part, shown
from set_diffusion_jax.inputs.paths import Opened
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.storage import event_loops, places, refusals
from set_diffusion_jax.storage.checksums import checksums
from set_diffusion_jax.storage.faults import retried, unread

T = TypeVar("T")

FORMAT_VERSION = 3


class DamagedError(UserError):
  """A step is incomplete, cannot be decoded, or holds other values than were saved."""


class SavedStep:
  """One step, whose items every process reads by itself.

  Args:
    path: the folder, on a disk or in a bucket.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path

  def meta(self) -> dict:
    """What describes the step.

    Raises:
      DamagedError: it is not there, or is no JSON object.
      UserError: it could not be read though it may be whole, or another format version
        wrote it.
    """
    path = self._path
    file = path / "meta" / "metadata"
    try:
      file = file if places.is_remote(file) else part(file, path)
      meta = parse_json(retried(lambda: places.read_bytes(file)), "meta")
      if not isinstance(meta, dict):
        raise UserError("meta: must be a JSON object")
    except (OSError, UserError) as error:
      raise _failure(path, error) from error
    check_version(meta, f"checkpoint step {path.name}")
    return meta

  def read(self, name: str, handler, args):
    """One item, as this process reads it.

    The handlers are used by themselves: a checkpoint manager would let the other
    processes wait for one that failed.

    Args:
      name: of the item, such as "state".
      handler: of Orbax for such an item; it is closed.
      args: how it restores.

    Raises:
      DamagedError: it is not there, or cannot be decoded.
      UserError: it could not be read though it may be whole.
    """
    path = self._path

    def once():
      with _opened(path) as opened, event_loops.orderly():
        return handler.restore(epath.Path(opened / name), args=args)

    try:
      return retried(once)
    except jax.errors.JaxRuntimeError:  # out of memory is no damage
      raise
    except Exception as error:  # Orbax raises just that, among others
      raise _failure(path, error) from error
    finally:
      handler.close()

  def check(self, meta: dict, tree, prefix: str) -> None:
    """DamagedError unless a tree has the checksums of the parameters after a prefix.

    All processes compute them together, and come to one verdict.

    Args:
      meta: of the step, with its checksums; a converted step has none.
      tree: the arrays that were read.
      prefix: of their names among the checksums, such as "ema/"; "" is all of a step.
    """
    stored = meta.get("checksums")
    if stored is None:  # a converted checkpoint
      return
    sums = jax.device_get(checksums(tree))

    def compare():
      if not isinstance(stored, dict):
        what = "checksums must be numbers by name"
        raise DamagedError(f"{self._path}: is damaged ({what})")
      for name, value in sums.items():
        if stored.get(prefix + name) != int(value):
          what = f"{prefix}{name} is not what was saved"
          raise DamagedError(f"{self._path}: is damaged ({what})")

    agreed(compare)


def _failure(path: pathlib.Path, error: Exception) -> UserError:
  """What a step that was not read is: damaged on evidence about its bytes only."""
  if places.is_remote(path) and (refusal := refusals.refusal(error)):
    return UserError(f"{path}: {refusal}")
  reason = unread(error)
  if reason is not None:
    return UserError(
      f"{path}: cannot be read ({reason}); it may be whole, so try again once the disk "
      "or the network is well"
    )
  if places.is_remote(path) and isinstance(error, FileNotFoundError):
    # The message would be the address that the store was asked for.
    return DamagedError(f"{path}: is damaged or incomplete (a file is missing)")
  reason = str(error).strip().splitlines()[0][:160] if str(error) else repr(error)
  return DamagedError(f"{path}: is damaged or incomplete ({reason})")


def agreed(act: Callable[[], T]) -> T:
  """What `act` returns here, if it does so in all processes.

  Raises:
    UserError: `act` raised it in some process, in all of them then: one that is no
      DamagedError if there is one, as a step that one cannot read may be whole.
  """
  result, verdict = None, None
  try:
    result = act()
  except UserError as error:
    verdict = [isinstance(error, DamagedError), str(error)]
  found = [each for each in processes.gather(verdict) if each is not None]
  if found:
    damaged, line = min(found, key=lambda each: each[0])
    raise (DamagedError if damaged else UserError)(line)
  return result


@contextlib.contextmanager
def _opened(folder: pathlib.Path):
  """A folder under a name that every library takes for what it is."""
  if places.is_remote(folder):
    yield folder
  else:
    with Opened(folder) as opened:
      yield opened.path


def check_version(meta: dict, where: str) -> None:
  """UserError if another format version wrote a step's `meta`; `where` names it."""
  version = meta.get("format_version")
  if type(version) is not int or version != FORMAT_VERSION:
    raise UserError(
      f"{where}: format version {shown(str(version), 40)}, this code reads "
      f"{FORMAT_VERSION}"
    )
