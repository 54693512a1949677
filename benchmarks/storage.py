"""What saving to a bucket costs, next to a disk: both in turn, medians.

A server of buckets runs on this machine (the extras `dev`, `gcs` and `storage-tests`),
so there is no latency of a network; the number of requests says what that would add.
Requests are counted apart from the times, by a proxy that they go through.
"""

import contextlib
import os
import pathlib
import re
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator

import grain
import jax
import numpy as np

from benchmarks import measure
from set_diffusion_jax.storage import places
from set_diffusion_jax.storage.checkpoint import Checkpoints, abstract
from tests import buckets

BYTES, REPEATS = 256 * 2**20, 5
_LEAVES = 8
_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) \S+ HTTP/1\.1\r\n")


def state_of(size: int) -> dict[str, jax.Array]:
  """Arrays of random values, `size` bytes together."""
  rng = np.random.default_rng(0)
  shape = (size // 4 // _LEAVES // 256, 256)
  names = [f"leaf{number}" for number in range(_LEAVES)]
  return {name: jax.numpy.asarray(rng.random(shape, np.float32)) for name in names}


def _position():
  """A data iterator, whose place is saved as well."""
  return iter(grain.MapDataset.range(1).to_iter_dataset())


def save(folder: pathlib.Path, step: int, state) -> dict[str, float]:
  """Seconds that a save holds its caller up, and until it is finished."""
  with Checkpoints(folder, keep_latest=1) as checkpoints:
    start = time.perf_counter()
    checkpoints.save(step, state, _position(), {}, None)
    blocked = time.perf_counter() - start
  return {"blocked": blocked, "finished": time.perf_counter() - start}


def restore(folder: pathlib.Path, step: int, state) -> float:
  """Seconds of reading a step back, with its checksums."""
  shapes = abstract(state, jax.tree.map(lambda x: x.sharding, state))
  reader = Checkpoints(folder)
  return measure.seconds(lambda: reader.restore(step, shapes, _position()))


def objects(folder: pathlib.Path) -> int:
  """How many files or objects there are below a folder."""
  if places.is_remote(folder):
    return len(places.store().find(os.fspath(folder)))
  return sum(path.is_file() for path in folder.rglob("*"))


def rates(folders: dict[str, pathlib.Path], size: int) -> dict[str, float]:
  """Bytes a second of one file that is written by itself."""
  content = np.random.default_rng(1).bytes(size)
  runs = {}
  for name, folder in folders.items():
    file = folder / "bytes"
    runs[name] = lambda file=file: places.write_text(file, content)
  times = measure.alternating(runs, REPEATS)
  return {name: size / statistics.median(found) for name, found in times.items()}


def times(disk: str, url: str, size: int, repeats: int) -> dict:
  """Medians of each place, the places in turn; the first round is not counted."""
  folders = {"disk": places.path(disk), "bucket": places.path(url)}
  state = jax.block_until_ready(state_of(size))
  found: dict = {name: [] for name in folders}
  for step in range(1, repeats + 2):
    for name, folder in folders.items():
      figures = save(folder / "checkpoints", step, state)
      figures["restore"] = restore(folder / "checkpoints", step, state)
      found[name].append(figures)
  results = {}
  for name, folder in folders.items():
    counted = found[name][1:]
    medians = {f: statistics.median(each[f] for each in counted) for f in counted[0]}
    results[name] = {
      **medians,
      "finished_spread": sorted(each["finished"] for each in counted)[:: repeats - 1],
      "objects": objects(folder / "checkpoints" / str(repeats + 1)),
    }
  written = rates(folders, min(size, 64 * 2**20))
  return {"places": results, "bytes_per_second_of_one_file": written}


def saves(url: str, size: int, count: int) -> None:
  """Saves `count` steps and keeps all of them."""
  folder = places.path(url) / "checkpoints"
  state = state_of(size)
  with Checkpoints(folder, keep_latest=count) as checkpoints:
    for step in range(1, count + 1):
      checkpoints.save(step, state, _position(), {}, None)


def restored(url: str, size: int, step: int) -> None:
  """Restores one step."""
  restore(places.path(url) / "checkpoints", step, state_of(size))


class Proxy:
  """Counts the requests that pass through it to a server of this machine.

  Attributes:
    url: where it listens.
    requests: that have passed.
  """

  def __init__(self, server: str):
    self._server = server.removeprefix("http://").split(":")
    self._listening = socket.create_server(("127.0.0.1", 0))
    self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
    self.requests = 0
    self._lock = threading.Lock()
    self._accepting = threading.Thread(target=self._accept)
    self._accepting.start()

  def _accept(self) -> None:
    connections = []
    with contextlib.suppress(OSError):  # it is closed
      while True:
        client, _ = self._listening.accept()
        connections.append(threading.Thread(target=self._connect, args=(client,)))
        connections[-1].start()
    for connection in connections:
      connection.join()

  def _connect(self, client: socket.socket) -> None:
    host, port = self._server
    with client, socket.create_connection((host, int(port))) as server:
      answers = threading.Thread(target=self._pass, args=(server, client, False))
      answers.start()
      self._pass(client, server, True)
      answers.join()

  def _pass(self, source: socket.socket, target: socket.socket, count: bool) -> None:
    with contextlib.suppress(OSError):
      while part := source.recv(2**18):
        # A client waits for an answer, so a request begins a part.
        if count and _REQUEST.match(part):
          with self._lock:
            self.requests += 1
        target.sendall(part)
    for end in (source, target):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

  def close(self) -> None:
    """Listens no more, and waits for clients to end."""
    with contextlib.suppress(OSError):
      self._listening.shutdown(socket.SHUT_RDWR)
    self._listening.close()
    self._accepting.join()


@contextlib.contextmanager
def counted(server: str) -> Iterator[Proxy]:
  """A proxy that processes which are started meanwhile go through."""
  before = {name: os.environ[name] for name in buckets.ADDRESSES}
  proxy = Proxy(server)
  os.environ.update(dict.fromkeys(buckets.ADDRESSES, proxy.url))
  try:
    yield proxy
  finally:
    os.environ.update(before)
    proxy.close()


def requests(server: str, size: int) -> dict[str, int]:
  """HTTP requests of one more save of a run, and of a process that restores a step."""
  found = []
  for count in (1, 2):
    url = buckets.fresh()
    with counted(server) as proxy:
      measure.in_process(saves, url, size, count)
      found.append(proxy.requests)
  with counted(server) as proxy:
    measure.in_process(restored, url, size, 1)
    return {"save": found[1] - found[0], "restore": proxy.requests}


def main(size: int = BYTES, repeats: int = REPEATS) -> dict:
  """Measures; seconds of each place, objects and requests.

  Args:
    size: bytes of the state that is saved.
    repeats: rounds that count, at least 2.
  """
  server = buckets.server()
  with tempfile.TemporaryDirectory(prefix="storage-") as disk:
    found = measure.in_process(times, disk, buckets.fresh(), size, repeats)
  counts = requests(server, size)
  for name, figures in found["places"].items():
    seconds = ", ".join(
      f"{what} {figures[what]:.3f} s" for what in ("blocked", "finished", "restore")
    )
    print(f"{name:8}{size / 2**20:,.0f} MiB: {seconds}, {figures['objects']} files")
  print(f"requests: {counts['save']} a save, {counts['restore']} a restore")
  one = found["bytes_per_second_of_one_file"]
  print("one file: " + ", ".join(f"{n} {r / 1e6:,.0f} MB/s" for n, r in one.items()))
  return {"bytes": size, "repeats": repeats, **found, "requests": counts}
