"""Runs that are killed again and again: `python -m tests.kills --kills=20 --seed=0`.

A run trains in a bucket and is killed by SIGKILL at moments that a seed draws: when it
sends its n-th request, or one of a save, of the metrics, of the lease or of the move of
a damaged step, before or after the store has done what was asked, or after a random
time. With `--on=mount` it trains in a folder that stands for a mounted bucket, and
kills itself at its n-th operation on files. Each time the same command goes on. In the
end metrics and parameters must be, bit for bit, those of a run on a disk that nothing
happened to.
"""

import argparse
import contextlib
import json
import pathlib
import random
import re
import signal
import tempfile
import threading
import time
from typing import NamedTuple

from set_diffusion_jax.config import Config
from set_diffusion_jax.storage import places, steps
from tests import buckets, jobs, mounted
from tests.test_storage_runs import rows
from tests.test_train import assert_identical, final, settings

# What a request of each kind is of, and up to how many of them pass before the kill.
KINDS = {
  "any": (r"", 150),
  "save": (r"^(POST|PUT) .*/checkpoints/", 60),
  "marker": (r"^POST .*commit_success", 20),
  "clean": (r"^DELETE .*/checkpoints/", 30),
  "metrics": (r"^POST .*(metrics\.jsonl|/events\.)", 6),
  "lease": (r"/\.lease/", 5),
  # The newest step is damaged before: each of its objects is copied, then removed.
  "move": (r"/damaged/|^DELETE .*/checkpoints/", 36),
  "time": (None, 1.5),
}
# What an operation of each kind is of, in a mounted bucket.
OPERATIONS = {
  "any": r"",
  "save": r"^(open|os.mkdir) .*/checkpoints/",
  "marker": r"^open .*commit_success",
  "clean": r"^os.(rmdir .*/checkpoints/|remove .*/checkpoints/.*/(d/|metadata$))",
  "metrics": r"/(metrics\.jsonl|tensorboard)",
  "lease": r"/\.lease(/|$)",
  "move": r"/damaged(/|$)|^os.rmdir .*/checkpoints/",
  "time": None,
}
PREPARED = ("marker", 20, True)  # two more steps are whole then


class Moment(NamedTuple):
  """When a run is killed.

  Attributes:
    kind: of KINDS.
    at: which request of the kind, or operation, from 1 on; of "time" seconds after a
      first save.
    done: whether what the last one asks for is done.
  """

  kind: str
  at: float
  done: bool


def moments(kills: int, seed: int) -> list[Moment]:
  """Of a campaign: every kind comes before one comes twice."""
  rng = random.Random(f"kills {seed}")
  kinds: list[str] = []
  while len(kinds) < kills:
    again = list(KINDS)
    rng.shuffle(again)
    kinds += again
  found = []
  for kind in kinds[:kills]:
    pattern, most = KINDS[kind]
    at = rng.uniform(0, most) if pattern is None else rng.randint(1, most)
    found.append(Moment(kind, at, rng.random() < 0.5))
  return found


class InBucket:
  """A work directory in a bucket, and runs that train there."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self.workdir = folder, places.path(buckets.fresh())

  @contextlib.contextmanager
  def seen(self):
    """As this process sees it."""
    yield

  @contextlib.contextmanager
  def started(self, words: list[str], moment: Moment | None):
    """A run of a command that is killed at a moment, if one is given."""
    killer = Killer(moment) if moment else None
    with buckets.judged(killer) if killer else contextlib.nullcontext():
      job = jobs.Job(self._folder, 1, 1, words)
      if killer:
        killer.process = job.processes[0]
      yield job


class OnMount:
  """As `InBucket`, in a folder that stands for a mounted bucket."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._mount = folder, folder / "a bucket"
    self._mount.mkdir()
    self.workdir = self._mount / "run"

  def seen(self):
    return mounted.at(self._mount)

  @contextlib.contextmanager
  def started(self, words: list[str], moment: Moment | None):
    task = {"folder": str(self._mount)}
    if moment:
      task.update(moment._asdict(), pattern=OPERATIONS[moment.kind])
    words = [json.dumps(task), *words]
    yield jobs.Job(self._folder, 1, 1, words, module="tests.mounted")


class Killer:
  """A judge of requests (see `buckets.judged`) that kills a process at its moment."""

  def __init__(self, moment: Moment):
    self._moment, self._seen = moment, 0
    self._lock, self._done = threading.Lock(), False
    self.process = None

  def __call__(self, request) -> str | None:
    line = f"{request.method} {request.text}"
    pattern, _ = KINDS[self._moment.kind]
    with self._lock:
      if self._done:
        return "reset"
      if pattern is None:
        saves = re.search(KINDS["save"][0], line, re.DOTALL)
        if saves and not self._seen:
          self._seen = 1
          threading.Timer(self._moment.at, self._kill).start()
        return None
      self._seen += bool(re.search(pattern, line, re.DOTALL))
      if self._seen < self._moment.at:
        return None
      self._kill()
    return "lost" if self._moment.done else "reset"

  def _kill(self) -> None:
    self._done = True
    self.process.send_signal(signal.SIGKILL)


def campaign(
  folder: pathlib.Path, planned: list[Moment], say=lambda line: None, kind=InBucket
):
  """Kills a run at each moment, and compares it with one that was not killed.

  Args:
    folder: for what is on a disk.
    planned: of `moments`.
    say: is told each kill.
    kind: where the run is.

  Raises:
    AssertionError: the figures differ, or the run ended otherwise.
  """
  fields = settings(
    folder,
    train__steps=2 * len(planned) + 12,
    train__checkpoint_every=1,
    train__log_every=1,
    train__evaluate_every=10,
    train__keep_latest=3,
    mesh__data=-1,
    mesh__fsdp=1,
    mesh__tensor=1,
  )
  file, whole = jobs.config_file(folder, fields), folder / "whole"
  place = kind(folder)
  workdir = place.workdir

  def start(directory, moment=None):
    words = ["train", f"--config={file}", f"--workdir={directory}"]
    with place.started(words, moment) as job:
      assert job.wait() == [-signal.SIGKILL if moment else 0], job.text()
    return job.text()

  start(whole)
  with place.seen():
    _kills(workdir, planned, start, say)
    # A kill may leave a lease that says nothing.
    assert "which is gone" in start(workdir) or planned[-1].kind == "lease"
    c = Config.from_dict(fields.to_dict())
    assert rows(workdir) == rows(whole)
    assert_identical(final(c, workdir), final(c, whole))
  say(f"{len(planned)} kills: metrics and parameters are those of the run on a disk")


def _kills(workdir: pathlib.Path, planned: list[Moment], start, say) -> None:
  spoiled = set()
  for number, moment in enumerate(planned):
    found = steps.numbers(workdir / "checkpoints")
    if moment.kind == "move":
      while len(found) < 2:
        start(workdir, Moment(*PREPARED))
        found = steps.numbers(workdir / "checkpoints")
      places.write_text(workdir / f"checkpoints/{found[-1]}/meta/metadata", "{")
      spoiled.add(str(found[-1]))
    began = time.monotonic()
    start(workdir, moment)
    now = steps.numbers(workdir / "checkpoints")
    how = "done" if moment.done else "not done"
    say(
      f"{number + 1}: {moment.kind} {moment.at:.3g}, {how}, after "
      f"{time.monotonic() - began:.0f} s; steps {found} before, {now} after"
    )
  # What a kill leaves is torn, which is no damage.
  assert {name.split(".")[0] for name in places.names(workdir / "damaged")} <= spoiled


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--on", choices=["bucket", "mount"], default="bucket")
  arguments = parser.parse_args()
  kind = InBucket if arguments.on == "bucket" else OnMount
  with tempfile.TemporaryDirectory(prefix="set-diffusion-kills-") as folder:
    planned = moments(arguments.kills, arguments.seed)
    say = lambda line: print(line, flush=True)
    campaign(pathlib.Path(folder), planned, say, kind)


if __name__ == "__main__":
  main()
