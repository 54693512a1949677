"""Training: the loop around the step."""

import functools
import pathlib
import time

from set_diffusion_jax import data
from set_diffusion_jax.config import Config
from set_diffusion_jax.errors import disk_told
from set_diffusion_jax.evaluate import Evaluator
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.jobs.phases import here
from set_diffusion_jax.jobs.preemption import Preemption
from set_diffusion_jax.numerics import settled
from set_diffusion_jax.storage import places, refusals, workdir
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.storage.lease import TIMEOUT
from set_diffusion_jax.training.compilation_cache import CompilationCache
from set_diffusion_jax.training.goodput import Goodput, read_starts
from set_diffusion_jax.training.home import Home
from set_diffusion_jax.training.loop import Loop
from set_diffusion_jax.training.metrics import MetricsWriter, Progress
from set_diffusion_jax.training.reporting import Journal
from set_diffusion_jax.training.run import Run
from set_diffusion_jax.training.throughput import CompileTime, Trace
from set_diffusion_jax.version import changes, versions


@settled()
def train(
  config: Config,
  directory: pathlib.Path,
  label: str = "",
  profile: bool = False,
  lease_timeout: float = TIMEOUT,
  whole_process: bool = False,
) -> None:
  """Trains in a work directory, or goes on from its last whole checkpoint.

  Every process of a job calls this; the first one writes metrics and prints.

  Args:
    config: the same in all processes.
    directory: one that all processes see, on a disk or in a bucket; no other run trains
      in it meanwhile.
    label: stands before what is printed.
    profile: whether a trace of a few steps goes to `directory`/profile.
    lease_timeout: seconds, see `Lease`.
    whole_process: whether the time before this call, of imports and of meeting the
      others, counts as the run's.

  Raises:
    UserError: the configuration, the data or the directory cannot be used; nothing
      has been written then. Raised in all processes if it is in one. Also before a
      save, if another run has taken the directory over.
    NonFiniteError: the loss or the gradient diverged; the last checkpoint is good.
    Preempted: SIGTERM came, and where the run stands is saved.
    DiskError: the disk or a quota is full, or a store refuses what it took before.
    StoreError: a store could not be reached for about a minute.
  """
  before = here.seconds()
  if whole_process:
    before = dict.fromkeys(before, 0.0)
  processes.check_same(_facts(config, directory))
  processes.from_first(lambda: places.reach(directory, "--workdir"))
  with here.phase("data"):
    run = processes.together(lambda: Run.build(config))
    processes.check_same({f"data.{k}": v for k, v in run.corpus.fingerprint.items()})
  evaluator = Evaluator(run.objective, run.corpus.validation, run.mesh)
  told = functools.partial(_told, directory)
  identity = directory, config, run.corpus.fingerprint
  told(workdir.check, *identity)  # before the lease is written
  first, owed, total = 0, False, config.train.steps
  there = told(workdir.has_checkpoint, directory)
  finished = there and told(workdir.newest_step, directory) >= total
  if not there:
    with here.phase("init"):
      current, weights_from, news = run.start()  # before anything is written
  batches = run.batches()
  checkpoints = Checkpoints(
    directory / workdir.CHECKPOINTS, config.train.keep_latest, config.train.keep_best
  )
  with Preemption() as preemption, Home(directory, lease_timeout) as home:
    told(workdir.claim, *identity)
    with CompilationCache(directory) as cache, CompileTime() as compiled:
      # While the step is compiled, the state is restored and the first batch is read.
      with here.phase("compile"):
        ahead = None if finished else run.compile_ahead()
      with here.phase("restore"):
        found = checkpoints.restore_newest(run.abstract_state(), batches)
      if found is not None:
        first, current = found.step, found.state
        weights_from, owed = found.meta["weights_from"], found.meta["evaluation_owed"]
        at = f"{'is already at' if first >= total else 'continues from'} step {first}"
        since = changes(f"step {first}", found.meta.get("versions", {}))
        news = [*found.news, at, *since]
      writes = processes.is_first()
      with (
        disk_told(f"--workdir={directory}", "steps that are whole are kept"),
        refusals.told(f"--workdir={directory}"),
        MetricsWriter(directory, first, owed, writes) as writer,
        Progress(total, first, label, active=writes) as progress,
        Goodput(
          *(read_starts(directory) if writes else [], first, total, before),
          *(writer, progress),
        ) as goodput,
        checkpoints,
        Trace(directory / "profile" if profile and writes else None, first) as trace,
      ):
        lost = data.lost_text(run.corpus.tokenizer)
        about = [run.objective.where(), lost, *run.corpus.notes]
        for line in filter(None, [*home.news, *cache.news, *about, *news]):
          progress.say(line)
        journal = Journal(run, writer, progress, compiled, goodput, first)
        loop = Loop(
          *(run, evaluator, batches, home, checkpoints, journal, preemption),
          *(weights_from, cache),
        )
        if owed:
          current, _ = loop.evaluate(first, current)

        def fetch():
          with here.phase("input"):
            return run.put(next(batches))

        if first < total:
          ready = [fetch()]
          with here.phase("compile"):
            step_fn = run.compiled_step(ahead or run.compile_ahead())
          cache.record()
          journal.begin()
        for step in range(first + 1, total + 1):
          with here.phase("step", step):
            trace.before(step, journal.pending)
            began = time.perf_counter()
            batch = ready.pop() if ready else fetch()
            waited = time.perf_counter() - began
            current, metrics = step_fn(current, batch)
            journal.add(step, metrics, waited)
            current = loop.after(step, current)


def _told(directory: pathlib.Path, act, *arguments):
  """What `act` returns in the first process; UserError for what a store refuses."""

  def asked():
    with refusals.explained(f"--workdir={directory}"):
      return act(*arguments)

  return processes.from_first(asked)


def _facts(config: Config, directory: pathlib.Path) -> dict:
  """What all processes must agree on before they compute together.

  Text is compared by its content, so its path may differ.
  """
  paths = ("data.train_path", "data.validation_path", "data.directory")
  flat = config.flat()
  fields = {name: flat[name] for name in flat if name not in (*paths, "data.tokenizer")}
  code = {f"version of {name}": value for name, value in versions().items()}
  code.pop("version of Python")  # hosts may differ in it
  return {**fields, "--workdir": str(places.absolute(directory)), **code}
