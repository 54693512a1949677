"""One or several processes on this machine, watched over and started again.

  python launch/local.py -- train --config=quickstart --workdir=runs/one
  python launch/local.py --processes=4 --devices=2 -- train --config=... --workdir=...

Exit code 42 of a process (stopped by SIGTERM, after saving) starts all of them again;
so does any other that is not final, but only --restarts times in a row, each within an
hour of its start. 0, 2, 3, 4 and 130 end it, with that code. SIGTERM, Ctrl-C or the
loss of the terminal lets the run save, and ends with 42. Where this program is killed,
its processes are killed with it (on Linux).
"""

import contextlib
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.launch import command as shared

# Seconds that the others have to end when one process has ended, badly or well; and
# after which they are told themselves that one was asked to stop.
GRACE, FAREWELL, HEARD = 20.0, 60.0, 5.0
_WELL = (outcomes.DONE, outcomes.PREEMPTED)
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Becomes the program after its first argument, the number of the process that started
# it, and is killed when that one ends, however it does. Only Linux has prctl.
TETHER = """\
import ctypes, os, signal, sys
if hasattr(ctypes.CDLL(None), "prctl"):
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which exec keeps
  if os.getppid() != int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)  # it had ended before
os.execv(sys.argv[2], sys.argv[2:])
"""


def environment(processes: int, devices: int | None, index: int, port: int) -> dict:
  """What process `index` finds in its environment besides what is there."""
  variables = {}
  if devices is not None:
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    variables |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
  if processes > 1:
    variables |= {
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": str(processes),
      "JAX_PROCESS_ID": str(index),
    }
  return variables


def free_port() -> int:
  """One that nothing listens at now."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


class Job:
  """The processes of one attempt; none of them is left at the end of the context."""

  def __init__(self, program: list[str], processes: int, devices: int | None):
    port = free_port()
    # -I and -S: nothing of the user's is imported, which makes it quick.
    tether = [sys.executable, "-I", "-S", "-c", TETHER, str(os.getpid())]
    self._ended: queue.Queue[tuple[int, int]] = queue.Queue()
    self.processes: list[subprocess.Popen] = []
    try:
      for index in range(processes):
        process = subprocess.Popen(
          [*tether, *program],
          env={**os.environ, **environment(processes, devices, index, port)},
          stdout=subprocess.PIPE if index else None,
          stderr=subprocess.STDOUT if index else None,
          text=True,
          errors="replace",
          start_new_session=True,  # Ctrl-C reaches them through this program alone
        )
        self.processes.append(process)
        threading.Thread(target=self._wait, args=(index, process), daemon=True).start()
    except BaseException:
      self.kill()
      raise

  def __enter__(self) -> "Job":
    return self

  def __exit__(self, *exception) -> None:
    self.kill()

  def _wait(self, index: int, process: subprocess.Popen) -> None:
    """Prints what a process prints, with its number, until it has ended."""
    if process.stdout is not None:
      with process.stdout:
        for line in process.stdout:
          with contextlib.suppress(OSError):  # a terminal may be gone
            print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)
    code = process.wait()
    self._ended.put((index, code if code >= 0 else 128 - code))

  def result(self) -> int:
    """Waits for all; the code of the first that ended badly, otherwise 42 or 0."""
    codes: list[int] = []
    waits: list[tuple[float, int]] = []  # until when, and the signal that comes then
    while len(codes) < len(self.processes):
      left = max(0.0, waits[0][0] - time.monotonic()) if waits else None
      try:
        index, code = self._ended.get(timeout=left)
      except queue.Empty:
        self.signal(waits.pop(0)[1])
        continue
      now, first = time.monotonic(), all(other in _WELL for other in codes)
      codes.append(code)
      if code not in _WELL and first:
        shared.say(f"process {index} ended with {code}")
        waits = [(now + GRACE, signal.SIGKILL)]
      elif len(codes) == 1:
        waits = [(now + FAREWELL, signal.SIGKILL)]
        if code == outcomes.PREEMPTED:  # who has not met it yet has not heard of it
          waits.insert(0, (now + HEARD, signal.SIGTERM))
    bad = [code for code in codes if code not in _WELL]
    return bad[0] if bad else max(codes)

  def signal(self, number: int) -> None:
    """Sends a signal to all that still run."""
    for process in self.processes:
      if process.poll() is None:
        process.send_signal(number)

  def kill(self) -> None:
    """Ends all that still run."""
    self.signal(signal.SIGKILL)


def supervise(
  program: list[str],
  processes: int,
  devices: int | None,
  restarts: int,
  clock: Callable[[], float] = time.monotonic,
) -> int:
  """Runs until it is through or cannot go on.

  Args:
    program: the command that each process runs.
    processes: how many.
    devices: CPU devices of each; None: whatever jax finds.
    restarts: after so many failures in a row, each within an hour of its start.
    clock: in seconds.

  Returns:
    The exit code.
  """
  stopped = threading.Event()
  running: list[Job] = []

  def stop(number, frame):
    stopped.set()
    for job in running:
      job.signal(signal.SIGTERM)

  for number in STOPS:
    if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants SIGHUP
      signal.signal(number, stop)
  left = restarts
  while not stopped.is_set():
    began = clock()
    with Job(program, processes, devices) as job:
      running[:] = [job]
      if stopped.is_set():  # while they were started
        job.signal(signal.SIGTERM)
      code = job.result()
    if stopped.is_set():
      return code
    if clock() - began > shared.LASTING:
      left = restarts
    then = outcomes.then(code)
    if then == "free":
      shared.say("stopped after saving; starting again")
    elif then == "counted" and left > 0:
      left -= 1
      shared.say(f"starting again; {left} restarts are left")
    else:
      return code
  return outcomes.PREEMPTED


def main() -> int:
  """The exit code of the run."""
  parser = shared.Launcher(__doc__)
  parser.add_argument("--processes", type=shared.whole, default=1, metavar="N")
  parser.add_argument(
    "--devices",
    type=shared.whole,
    metavar="N",
    help="CPU devices of each process; default: whatever jax finds",
  )
  shared.restarts(parser)
  options, command = parser.parse()
  if options.processes > 1 and options.devices is None:
    parser.error("--processes: needs --devices; one process drives all GPUs or TPUs")
  program = [sys.executable, "-m", "set_diffusion_jax", *command]
  if options.dry_run:
    port = free_port()
    for index in range(options.processes):
      variables = environment(options.processes, options.devices, index, port)
      words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
      shared.show(" ".join([*words, shlex.join(program)]))
    return 0
  return supervise(program, options.processes, options.devices, options.restarts)


if __name__ == "__main__":
  sys.exit(main())
