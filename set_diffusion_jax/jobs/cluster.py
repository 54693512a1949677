"""Starting as one of several processes: who the others are and how to meet them."""

import contextlib
import glob
import importlib.util
import os
import re
import sys
import threading

import jax
from jax.experimental import multihost_utils

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.jobs import processes, watch
from set_diffusion_jax.jobs.outcomes import UNREACHABLE
from set_diffusion_jax.jobs.phases import here

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = "SLURM_JOB_ID SLURM_STEP_NODELIST SLURM_NTASKS SLURM_PROCID SLURM_LOCALID"


def start(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  timeout: int = 300,
) -> None:
  """Joins the other processes of this job, if there are any.

  To be called before anything of jax is computed. What is given here counts first,
  then the environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID),
  then Slurm, then the TPU pods of GKE and Compute Engine as jax detects them; with
  none of these there is one process.

  A process that cannot meet the others ends with a line and exit code 5.

  Args:
    coordinator: HOST:PORT of process 0.
    processes: how many there are.
    process: which one this is, from 0.
    timeout: seconds to wait for all of them.

  Raises:
    UserError: some of the first three are missing or wrong, or tasks of Slurm would
      leave GPUs of a node unused.
  """
  gpus = None
  given = _explicit(coordinator, processes, process)
  if given is not None:
    address, count, index = given
    who = f"process {index} of {count}, coordinator {address}"
    detection = "deactivate"
  elif (found := _scheduler()) is not None:
    address = count = index = None
    who, detection, gpus = found, None, _slurm_gpus()
  else:
    return
  # jax's own time limit ends in a C++ stack trace: ours comes first.
  with here.phase("meeting"), _time_limit(who, timeout):
    try:
      jax.distributed.initialize(
        address,
        count,
        index,
        gpus,
        cluster_detection_method=detection,
        initialization_timeout=timeout + 60,
        shutdown_timeout_seconds=60,
      )
      # Gloo connects devices when they first compute together, and waits 30 s for it:
      # now, before one process compiles longer than another.
      multihost_utils.sync_global_devices("met")
      _link(address, who)
    except (RuntimeError, ValueError) as error:
      _give_up(who, str(error).strip().splitlines()[0])


def _link(address: str | None, who: str) -> None:
  """Lets the processes, which have met, know of each other's end."""
  if jax.process_count() == 1:
    return
  watching = watch.current() or watch.begin()
  watching.hear_signals()  # jax has a handler of its own, which sees them only in steps
  host = address.rpartition(":")[0] if address else None
  invite = lambda mine: processes.gather(mine)[0]
  failed = watching.connect(jax.process_index(), jax.process_count(), invite, host)
  if found := next(filter(None, processes.gather(failed)), None):
    _give_up(who, f"{found}: hosts of a job must reach each other at any port")


def _explicit(
  coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int] | None:
  """What flags and environment say; None if neither says anything."""
  flags = ("--coordinator", "--processes", "--process")
  values = []
  for flag, name, value in zip(
    flags, _VARIABLES, (coordinator, processes, process), strict=True
  ):
    where = f"{flag}={value}"
    if value is None:
      value = os.environ.get(name)
      where = f"{name}={value}"
    if value is not None and flag != "--coordinator":
      if not str(value).isdigit():
        raise UserError(f"{where}: must be a whole number")
      value = int(value)
    values.append((where, value))
  missing = [f for f, (_, value) in zip(flags, values, strict=True) if value is None]
  if len(missing) == 3:
    return None
  if missing:
    named = ", ".join(where for where, value in values if value is not None)
    raise UserError(f"{named}: {', '.join(missing)} must be given as well")
  (where, address), (_, count), (which, index) = values
  host, colon, port = address.rpartition(":")
  if not (host and colon and port.isdigit()):
    raise UserError(f"{where}: must be HOST:PORT")
  if not index < count:
    raise UserError(f"{which}: must be below the number of processes, {count}")
  return address, count, index


def _scheduler() -> str | None:
  """What started this process besides a user, where jax can tell the rest."""
  environment = os.environ
  if all(name in environment for name in _SLURM.split()):
    task, tasks = environment["SLURM_PROCID"], environment["SLURM_NTASKS"]
    return f"Slurm task {task} of {tasks}"
  if "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment:
    return f"TPU worker {environment.get('TPU_WORKER_ID', '?')} on GKE"
  on_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  wanted = "tpu" in environment.get("JAX_PLATFORMS", "tpu")
  if on_tpu and wanted and importlib.util.find_spec("libtpu"):
    return "Cloud TPU worker"
  return None


def _slurm_gpus() -> list[int] | None:
  """The GPUs of a task, by their numbers among those that it sees.

  None leaves the choice to jax, which gives each task the one of its local number.

  Raises:
    UserError: that would leave some unused, or be too few.
  """
  environment = os.environ
  by_hand = "JAX_LOCAL_DEVICE_IDS" in environment
  on_cpu = environment.get("JAX_PLATFORMS", "").startswith("cpu")
  if by_hand or on_cpu or "SLURM_STEP_TASKS_PER_NODE" not in environment:
    return None
  # Such as 8(x2),4: two nodes with eight tasks, and one with four.
  counts = environment["SLURM_STEP_TASKS_PER_NODE"]
  tasks = max(map(int, re.findall(r"(?:^|,)(\d+)", counts)))
  names = environment.get("CUDA_VISIBLE_DEVICES", "")
  names = names or environment.get("ROCR_VISIBLE_DEVICES", "")
  node = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
  seen = len(names.split(",")) if names else node
  if 0 < seen < node or (seen and tasks == 1):  # those bound to this task, or all
    return list(range(seen))
  if seen not in (0, tasks):
    raise UserError(
      f"SLURM_STEP_TASKS_PER_NODE={counts}: with {seen} GPUs on a node must be {seen}, "
      "a task for each, or 1 for all of them (--ntasks-per-node)"
    )
  return None


@contextlib.contextmanager
def _time_limit(who: str, seconds: int):
  """Ends the process where the body takes longer."""
  what = f"did not meet the others within {seconds} s; is each of them running, and "
  what += "can this host reach the coordinator?"
  timer = threading.Timer(seconds, _give_up, (who, what))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _give_up(who: str, what: str) -> None:
  """Ends the process at once: whatever jax is waiting for in C++ is not waited for."""
  print(f"error: {who}: {what}", file=sys.stderr, flush=True)
  os._exit(UNREACHABLE)
