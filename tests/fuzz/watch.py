"""What Python tells of a run: programs it starts, code it runs, files it changes."""

import os
import pathlib
import sys


class Stopped(BaseException):
  """Something was about to be executed, or written elsewhere: it is not done."""


_EXECUTES = {
  *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
  *("os.startfile", "subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind"),
  *("socket.sendto", "socket.getaddrinfo", "urllib.Request"),
}
_CHANGES = {
  *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"),
  *("os.truncate", "os.chmod", "os.chown", "os.utime", "os.mkfifo"),
}
CANARY = "fuzz_canary"  # in every hostile program; no such module can be imported
SECRET = "fuzz-secret-5d1f"  # in files that no input may reach


class Watch:
  """Hears of every event that Python's audit hooks report while a case runs."""

  def __init__(self):
    self.box: pathlib.Path | None = None
    self.executed: list[str] = []
    self.outside: list[str] = []

  def __call__(self, event: str, arguments: tuple) -> None:
    if self.box is None:
      return
    if event in _EXECUTES:
      self.executed.append(f"{event} {arguments!r:.200}")
      raise Stopped(self.executed[-1])
    if event in ("compile", "import", "exec", "pickle.find_class"):
      self._code(event, arguments)
    elif event == "open":
      path, _, flags = arguments
      if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        self._changed(event, path)
    elif event in _CHANGES:
      # What is relative to an open directory was reached through that directory.
      relative = [a for a in arguments if type(a) is int and a >= 0]
      paths = [a for a in arguments if isinstance(a, str | bytes)]
      if event in ("os.link", "os.symlink", "os.rename"):
        paths = paths[-1:]
      if not relative or event in ("os.mkdir", "os.chmod"):
        for path in paths:
          self._changed(event, path)

  def _code(self, event: str, arguments: tuple) -> None:
    told = repr(arguments[:2])
    if event == "exec":
      told = getattr(arguments[0], "co_filename", "")
      if told.startswith(str(self.box)):
        told = CANARY
    if CANARY in told:
      self.executed.append(f"{event} {told:.200}")
      raise Stopped(self.executed[-1])

  def _changed(self, event: str, path) -> None:
    if isinstance(path, int) or path is None:
      return
    where = os.path.abspath(os.fsdecode(path))
    if not where.startswith((str(self.box), "/dev/", "/proc/self/")):
      self.outside.append(f"{event} {where}")
      raise Stopped(self.outside[-1])


_watch: Watch | None = None


def watcher() -> Watch:
  """The one hook of this process: a hook cannot be taken back."""
  global _watch
  if _watch is None:
    _watch = Watch()
    sys.addaudithook(_watch)
  return _watch
