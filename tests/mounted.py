"""A folder that stands for a bucket mounted by gcsfuse, and runs that are killed there.

`python -m tests.mounted TASK COMMAND...` is `python -m set_diffusion_jax COMMAND...` in
a process whose table of mounts has that folder, where no folder can be renamed and no
file has two names. TASK is JSON: the folder, and when the process kills itself, if it
does (see `kills.Moment`).
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import signal
import sys
import threading
from unittest import mock

from set_diffusion_jax.storage import mounts

# Python's own operations on files, by the names of their audit events.
_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


@contextlib.contextmanager
def at(folder: pathlib.Path, kind: str = "fuse.gcsfuse"):
  """Has `folder` be such a mount in this process."""
  point = str(folder).replace(" ", r"\040")
  line = f"1 1 0:99 / {point} rw,nosuid,nodev - {kind} a-bucket rw,user_id=0\n"
  whole, replace, link = mounts.table() + line, os.replace, os.link

  def no_link(source, target, **_):
    if within(target, folder):
      raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
    link(source, target)

  def files_only(source, target, **_):
    if within(target, folder) and os.path.isdir(source):
      raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(source))
    replace(source, target)

  with (
    mock.patch.object(mounts, "table", lambda: whole),
    mock.patch.object(os, "link", no_link),
    mock.patch.object(os, "replace", files_only),
    mock.patch.object(os, "rename", files_only),
  ):
    yield folder


def within(path, folder: pathlib.Path) -> bool:
  """Whether a path is inside of a folder, links followed."""
  return os.path.realpath(path).startswith(os.path.realpath(folder) + "/")


def _operation(event: str, arguments) -> str | None:
  """What an audit event does, with the path; None if nothing is written."""
  if event not in _EVENTS or not isinstance(arguments[0], str | os.PathLike):
    return None
  if event == "open" and not (
    isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
  ):
    return None
  name, folder = os.fspath(arguments[0]), arguments[-1]
  if event in ("os.remove", "os.rmdir") and folder >= 0:  # as shutil.rmtree does it
    name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
  target = f" {os.fspath(arguments[1])}" if event == "os.rename" else ""
  return f"{event} {name}{target}"


def _die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def _kill_at(folder: str, pattern: str, number: int, act, done: bool) -> None:
  """Calls `act` before the n-th operation of a kind, or right after it."""
  lock, seen, doer = threading.Lock(), 0, None

  def hook(event, arguments):
    nonlocal seen, doer
    if doer == threading.get_ident():
      doer = None  # what is done now makes events, too
      act()
    line = _operation(event, arguments)
    if line is None or folder not in line or not re.search(pattern, line):
      return
    with lock:
      seen += 1
      if seen == number:
        if done:
          doer = threading.get_ident()
        else:
          act()

  sys.addaudithook(hook)


def main() -> None:
  from set_diffusion_jax.__main__ import main as command

  task = json.loads(sys.argv.pop(1))
  folder, pattern = task["folder"], task.get("pattern")
  if pattern is not None:
    _kill_at(folder, pattern, task["at"], _die, task["done"])
  elif "at" in task:
    timer = threading.Timer(task["at"], _die)
    _kill_at(folder, r"^os.mkdir .*/checkpoints/\d", 1, timer.start, True)
  with at(pathlib.Path(folder)):
    sys.exit(command())


if __name__ == "__main__":
  main()
