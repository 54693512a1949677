"""A lease: one run at a time writes in a work directory.

WORKDIR/.lease/N.json names the process that holds the directory. The file with the
highest number counts. To take over is to create number N + 1, which the store lets one
process do only; a process that ends writes `{}` into its own file, and that file stays,
so that numbers never begin again. By touching its file, a process shows
that it is there.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import socket
import threading

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import folders, places, refusals

FOLDER = ".lease"
HEARTBEAT = 15.0  # seconds
TIMEOUT = 600  # seconds; a file system of a network may show a heartbeat a minute late
# What launchers set: the name of a job, and a number that grows whenever it is started.
_JOBS = (
  ("SET_DIFFUSION_JOB", "SET_DIFFUSION_ATTEMPT"),
  ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
)


class Lease:
  """The lease of one work directory, for the process that writes there.

  Args:
    workdir: the directory; it is made where it is missing.
    timeout: seconds after which a process of another machine that has not shown itself
      is taken to be gone.
  """

  def __init__(self, workdir: pathlib.Path, timeout: float = TIMEOUT):
    self._workdir, self._timeout = workdir, timeout
    self._folder = workdir / FOLDER
    self._number: int | None = None
    self._nonce = secrets.token_hex(8)
    self._text = json.dumps({**_this_process(), "nonce": self._nonce}) + "\n"
    self._ended = threading.Event()
    self._heart: threading.Thread | None = None

  @property
  def nonce(self) -> str:
    """What only this lease says."""
    return self._nonce

  def take(self) -> str | None:
    """Takes the lease; what is to be said if it was another's that is gone.

    Raises:
      UserError: another run has it, or the directory cannot be written.
    """
    try:
      with refusals.explained(f"--workdir={self._workdir}"):
        places.make_folder(self._folder)
        return self._take()
    except OSError as error:
      raise UserError(f"--workdir={self._workdir}: {error.strerror or error}") from None

  def _take(self) -> str | None:
    while True:
      last = max(_numbers(self._folder), default=0)
      news = self._judge(last) if last else None
      file = self._file(last + 1)
      if not places.create(file, self._text):
        continue
      others = [number for number in _numbers(self._folder) if number != last + 1]
      first = last + 1 > max(others, default=0)
      if first and (news is not None or not self._says(last)):
        break
      folders.remove(file)  # others came and went meanwhile, and one of them is there
    self._number = last + 1
    for number in others:
      folders.remove(self._file(number))
    self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
    self._heart.start()
    return news

  def _file(self, number: int) -> pathlib.Path:
    return self._folder / f"{number}.json"

  def _says(self, number: int) -> bool:
    """Whether a lease that said nothing has been written since."""
    try:
      return bool(number and _read(self._file(number)))
    except FileNotFoundError:
      return False

  def _judge(self, number: int) -> str | None:
    """UserError if a lease holds; a line if its process is gone; None if given back."""
    file = self._file(number)
    try:
      holder = _read(file)
      if holder == {}:
        return None
      age = self._age(file)
    except FileNotFoundError:  # taken over or removed meanwhile
      return None
    who = f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
    why = _gone(holder)
    if why is None and holder.get("machine") != _machine() and age > self._timeout:
      why = f"has not been heard of for {age:.0f} s"
    if why is not None:
      return f"WARNING: --workdir={self._workdir}: taken over from {who}, which {why}"
    right = (
      f"wait for its end, or stop it; after {self._timeout:g} s without a sign of "
    )
    right += "life (--lease-timeout) it counts as gone"
    if holder.get("machine") == _machine():
      right = "wait for its end, or stop it"
    raise UserError(
      f"--workdir={self._workdir}: is held by another run, {who}, last heard of "
      f"{max(age, 0.0):.0f} s ago; {right}"
    )

  def _age(self, file: pathlib.Path) -> float:
    """Seconds since a file was touched, both by the clock of the store."""
    modified = places.modified(file)
    probe = self._folder / f"{secrets.token_hex(8)}.now"
    places.write_text(probe, "")
    try:
      return places.modified(probe) - modified
    finally:
      folders.remove(probe)

  def _beat(self) -> None:
    file = self._file(self._number)
    while not self._ended.wait(HEARTBEAT):
      with contextlib.suppress(Exception):  # one that is missed is no harm
        if not places.is_remote(file):
          os.utime(file)
        elif not self._lost():
          places.write_text(file, self._text)

  def _lost(self) -> bool:
    """Whether another lease counts, or none."""
    try:
      mine = _read(self._file(self._number)).get("nonce") == self._nonce
    except FileNotFoundError:
      return True
    return not mine or max(_numbers(self._folder)) != self._number

  def check(self) -> None:
    """To be called before what others would be disturbed by, such as a save.

    Raises:
      UserError: another run has taken the lease, or it was removed.
    """
    try:
      lost = self._lost()
    except Exception:  # it could not be asked for: what is written next says why
      lost = False
    if lost:
      self._number = None
      raise UserError(
        f"--workdir={self._workdir}: another run has taken it over from this one, "
        "which ends and saves nothing more; stop one of the two"
      )

  def release(self) -> None:
    """Gives the lease back, if it is held."""
    self._ended.set()
    if self._heart is not None:
      self._heart.join()
    if self._number is not None:
      with contextlib.suppress(Exception):  # a full disk: this process will be gone
        if not self._lost():
          places.write_text(self._file(self._number), "{}\n")
    self._number = None


def holds(workdir: pathlib.Path, nonce: str) -> bool:
  """Whether a lease of this nonce can be seen in a directory, from this process.

  Raises:
    OSError: the directory is there and cannot be read.
  """
  try:
    numbers = _numbers(workdir / FOLDER)
    files = [workdir / FOLDER / f"{number}.json" for number in numbers]
    return any(_read(file).get("nonce") == nonce for file in files)
  except (FileNotFoundError, NotADirectoryError):
    return False


def _numbers(folder: pathlib.Path) -> list[int]:
  names = (re.fullmatch(r"([1-9][0-9]*)\.json", n) for n in places.names(folder))
  return [int(match[1]) for match in names if match]


def _read(file: pathlib.Path) -> dict:
  """What a lease says; of one that is only half there, that nothing is known.

  An empty one is nobody's: who made it was killed, or writes it and sees then that
  there is a higher number.
  """
  unknown = {"machine": "unknown"}
  try:
    text = places.read_bytes(file)
    if not text:
      return {}
    found = json.loads(text)
  except (ValueError, RecursionError):
    return unknown
  return found if isinstance(found, dict) else unknown


def _this_process() -> dict:
  """What identifies this process and the job that it is of."""
  job, attempt = _job()
  return {
    "host": socket.gethostname(),
    "machine": _machine(),
    "pid": os.getpid(),
    "started": _started(os.getpid()),
    "job": job,
    "attempt": attempt,
  }


def _job() -> tuple[str | None, int]:
  """The launcher's name of this job, None without one, and how often it was started."""
  for name, count in _JOBS:
    if job := os.environ.get(name):
      attempt = os.environ.get(count, "0")
      return f"{name}={job}", int(attempt) if attempt.isdecimal() else 0
  return None, 0


def _machine() -> str:
  """Where numbers of processes mean the same: a boot, and a namespace of processes."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # no Linux
    return socket.gethostname()


def _started(pid: int) -> int | None:
  """When a process started, in ticks since the boot; None if it has ended.

  None, too, for every process where the system has no /proc.
  """
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  state, *fields = text.rpartition(")")[2].split()
  return None if state in "ZX" else int(fields[18])


def _gone(holder: dict) -> str | None:
  """Why a lease's process is surely gone, for a line; None if it may be there."""
  job, attempt = _job()
  before = holder.get("attempt")
  same = job is not None and holder.get("job") == job and type(before) is int
  if same and attempt > before:
    return f"was an earlier start of this job ({job})"
  pid = holder.get("pid")
  if holder.get("machine") != _machine() or type(pid) is not int or pid < 1:
    return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return "is gone"
  except OSError:  # another user's, so it is there
    pass
  return "is gone" if _started(pid) != holder.get("started") else None
