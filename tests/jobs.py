"""Jobs of several processes on this machine, for tests."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 400  # seconds; a job takes a tenth of it on a quiet machine


# What tests compile runs for milliseconds: making it fast costs more than it saves.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
# XLA ends at a flag that it does not have: later versions have no other emitters.
if metadata.version("jax").startswith("0.10."):
  QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
  QUICK_COMPILATION += " --xla_cpu_parallel_codegen_split_count=1"
# The same tiny programs are compiled by job after job.
CACHE = tempfile.TemporaryDirectory(prefix="set-diffusion-jobs-")


def config_file(folder, settings) -> pathlib.Path:
  """A configuration file with the fields of `settings`."""
  path = folder / "settings.py"
  path.write_text(
    "import json\nfrom set_diffusion_jax.config import default_config\n"
    "def get_config(_=''):\n"
    "  config = default_config()\n"
    f"  config.update(json.loads({settings.to_json()!r}))\n"
    "  return config\n"
  )
  return path


def xla_flags(devices: int) -> str:
  """Of a process with so many CPU devices."""
  return f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILATION}"


def environment(devices: int, **more: str) -> dict:
  """Of a process with so many CPU devices."""
  variables = {
    "XLA_FLAGS": xla_flags(devices),
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return {**os.environ, **variables, **more}


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def python(log: pathlib.Path, code: str, variables: dict):
  """A log file and the process that runs `code` and prints there."""
  with log.open("w") as file:
    words = [sys.executable, "-c", code]
    process = subprocess.Popen(
      words, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT
    )
  return log, process


class Job:
  """The processes of one command; the output of each is kept in a file."""

  def __init__(
    self,
    folder,
    count: int,
    devices: int,
    command,
    extra=None,
    module="set_diffusion_jax",
  ):
    """`extra[i]` are arguments of process i alone; `module` runs the command."""
    address = f"127.0.0.1:{free_port()}"
    self.logs, self.processes = [], []
    for index in range(count):
      log = folder / f"log-{time.monotonic_ns()}-{index}"
      words = [sys.executable, "-m", module, *command]
      if count > 1:
        words += [f"--coordinator={address}", f"--processes={count}"]
        words += [f"--process={index}"]
      words += (extra or {}).get(index, [])
      with log.open("w") as file:
        process = subprocess.Popen(
          words, cwd=ROOT, env=environment(devices), stdout=file, stderr=file
        )
      self.logs.append(log)
      self.processes.append(process)

  def wait(self) -> list[int]:
    """The exit codes, once all have ended."""
    deadline = time.monotonic() + TIMEOUT
    try:
      for process in self.processes:
        process.wait(max(1.0, deadline - time.monotonic()))
    finally:
      self.kill()
    return [process.returncode for process in self.processes]

  def kill(self) -> None:
    """Ends what still runs."""
    for process in self.processes:
      if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()

  def text(self, index: int = 0) -> str:
    """What a process has printed."""
    return self.logs[index].read_text()

  def reach(self, step: int) -> None:
    """Waits until the first process has printed a step."""
    deadline = time.monotonic() + TIMEOUT
    while not re.search(rf"^step {step} ", self.text(), re.MULTILINE):
      assert self.processes[0].poll() is None, self.text()
      assert time.monotonic() < deadline
      time.sleep(0.05)
