"""What benchmarks share: alternating runs, the machine's own rates, rows of figures."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp


def seconds(run: Callable[[], object]) -> float:
  """Of one call, to the end of what it computes."""
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def alternating(runs: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
  """Seconds of each run, A B A B, after one call of each that is not counted."""
  for run in runs.values():
    seconds(run)
  found: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      found[name].append(seconds(run))
  return found


def in_process(function: Callable, *arguments):
  """The result of a call in a new process, so that its peak memory is its own."""
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    return pool.submit(function, *arguments).result()


def resident_bytes() -> dict[str, int]:
  """Resident size of this process: now, and the highest so far.

  From /proc and not from getrusage, which counts the parent's pages of before exec.
  """
  status = pathlib.Path("/proc/self/status").read_text().splitlines()
  sizes = {name: rest for name, _, rest in (line.partition(":") for line in status)}
  read = lambda name: int(sizes[name].split()[0]) * 1024
  return {"now": read("VmRSS"), "peak": read("VmHWM")}


def machine_rates(size: int = 2048) -> dict[str, float]:
  """Operations a second of a float32 matrix product, bytes a second of a copy."""
  x = jax.random.normal(jax.random.key(0), (size, size))
  product = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
  large = jnp.zeros(2**26)
  copy = jax.jit(lambda x: x + 1)
  found = alternating({"product": lambda: product(x), "copy": lambda: copy(large)}, 7)
  return {
    "flops_per_second": 2 * size**3 / min(found["product"]),
    "bytes_per_second": 2 * large.nbytes / min(found["copy"]),
  }


def row(
  name: str,
  shape: str,
  unit: str,
  work: float,
  ours: list[float],
  peer: list[float] | None = None,
  flops: float | None = None,
  transferred: float | None = None,
  rates: dict[str, float] | None = None,
  **more,
) -> dict:
  """One line of a table: rates are medians, spreads the slowest and the fastest run.

  Args:
    name: what is measured.
    shape: of what.
    unit: of `work` per second.
    work: of one run.
    ours: seconds of each run.
    peer: seconds of each of its runs.
    flops: that a run needs, counted by hand.
    transferred: bytes that a run must read or write in any case, counted by hand.
    rates: of `machine_rates`; with them the share of the roofline is given.
    more: further figures.
  """
  middle = statistics.median(ours)
  found = {
    "name": name,
    "shape": shape,
    "unit": unit,
    "ours": work / middle,
    "spread": [work / max(ours), work / min(ours)],
  }
  if peer is not None:
    found["peer"] = work / statistics.median(peer)
    found["peer_spread"] = [work / max(peer), work / min(peer)]
    found["ratio"] = found["ours"] / found["peer"]
  if flops is not None:
    found["flops"] = flops
    found["flops_per_second"] = flops / middle
  if transferred is not None:
    found["bytes"] = transferred
  if rates is not None:
    limits = [flops / rates["flops_per_second"]] if flops is not None else []
    if transferred is not None:
      limits.append(transferred / rates["bytes_per_second"])
    found["share_of_roofline"] = max(limits) / middle
  return found | more


class Table:
  """Rows of figures, printed as they come."""

  def __init__(self):
    self.rows: list[dict] = []

  def add(self, found: dict, note: str = "") -> None:
    """Prints a `row`, and below it what else there is to say."""
    if not self.rows:
      head = f"{'ours':>12}{'peer':>12}{'ratio':>7}{'roofline':>10}  unit"
      print(f"{'':28}{'':26}{head}", flush=True)
    peer, share = " " * 19, " " * 10
    if "peer" in found:
      peer = f"{found['peer']:12,.1f}{found['ratio']:7.2f}"
    if "share_of_roofline" in found:
      share = f"{found['share_of_roofline']:10.0%}"
    head = f"{found['name']:28}{found['shape']:26}"
    print(f"{head}{found['ours']:12,.1f}{peer}{share}  {found['unit']}", flush=True)
    if note:
      print(f"  {note}", flush=True)
    self.rows.append(found)

  def report(self, **more) -> dict:
    """The rows with where and with what they were measured."""
    return {
      "rows": self.rows,
      "device": jax.devices()[0].device_kind,
      "processor": platform.processor() or platform.machine(),
      "cores": len(os.sched_getaffinity(0)),
      "python": platform.python_version(),
      "versions": {name: version(name) for name in ("jax", "jaxlib", "torch")},
      **more,
    }
