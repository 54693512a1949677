"""Training: the loop around the step."""

import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax import data, processes, sharding
from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion import order
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.errors import Preempted, disk_told
from set_diffusion_jax.evaluate import Clip, Evaluator
from set_diffusion_jax.numerics import settled
from set_diffusion_jax.preemption import Preemption
from set_diffusion_jax.storage import places, refusals, workdir
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.storage.lease import TIMEOUT
from set_diffusion_jax.training.home import Home
from set_diffusion_jax.training.metrics import MetricsWriter, Progress
from set_diffusion_jax.training.reporting import Journal
from set_diffusion_jax.training.state import TrainState
from set_diffusion_jax.training.step import Program, make_mesh
from set_diffusion_jax.training.throughput import CompileTime, Trace
from set_diffusion_jax.version import changes, versions
from set_diffusion_jax.weights import graft, read_weights


@dataclasses.dataclass
class Run(Program):
  """A program together with the data that it is run on."""

  corpus: data.Corpus
  share: tuple[int, int]  # which part of each batch this process feeds, of how many

  @classmethod
  def build(cls, config: Config) -> "Run":
    """Loads the data and checks all that can be checked; writes nothing."""
    mesh = make_mesh(config)
    share = sharding.row_share(mesh)
    corpus = data.load(config.data, share[1])
    tokenizer = corpus.tokenizer
    program = Program.of(config, tokenizer.vocabulary, mesh, tokenizer.unused)
    return cls(**vars(program), corpus=corpus, share=share)

  def start(self) -> tuple[TrainState, dict, list[str]]:
    """The state before the first step, with the weights of init_from if there is one.

    Returns:
      The state, where its weights come from, and what is to be said about it.

    Raises:
      UserError: the weights do not fit the model.
    """
    fresh, where = self.init(), self.config.init_from
    if where is None:
      return fresh, {"initialisation": f"seed {self.config.train.seed}"}, []
    stored = read_weights(where, mesh=self.mesh)
    processes.check_same({"init_from": stored.origin})
    params, report = graft(fresh.params, stored.params, where)
    params = jax.jit(lambda x: x, out_shardings=self.shardings.params)(params)
    current = fresh.replace(params=params, ema=jax.tree.map(jnp.copy, params))
    origin = {"checkpoint": stored.origin or where, **dataclasses.asdict(report)}
    lines = report.lines()
    if stored.tokenizer.describe() != self.corpus.tokenizer.describe():
      lines.append("its tokenizer is another: an id need not mean the same text")
    return current, origin, [f"from {where}: {line}" for line in lines]

  def compiled_step(self):
    """`step`, compiled in all processes.

    They go on together: where one still compiled, the others would not wait for it to
    take part in its first collective longer than the 30 s that Gloo has.
    """
    compiled = self.step.lower(self.abstract_state(), self.abstract_batch()).compile()
    processes.gather_numbers([0])
    return compiled

  def batches(self):
    """This process's grain iterator over training examples."""
    return data.training_iterator(
      self.corpus.train,
      self.config.train.batch_size,
      self.config.train.seed,
      *self.share,
    )

  def put(self, examples: data.Examples) -> Batch:
    """This process's examples as its part of the global batch."""
    part, parts = self.share
    rows = self.config.train.batch_size // parts
    row = np.arange(rows, dtype=np.int32) + rows * part
    return jax.make_array_from_process_local_data(
      sharding.batch_sharding(self.mesh), Batch(**examples, row=row)
    )

  def put_clip(self, clip: Clip) -> jax.Array:
    """A range of noise levels as it stands in the state."""
    levels = np.array([clip.t_min, clip.t_max], np.float32)
    return sharding.place(levels, self.shardings.clip)

  def meta(self, current: TrainState, weights_from: dict, owed: bool) -> dict:
    """What a checkpoint needs to be understood without its work directory.

    Args:
      current: what is saved.
      weights_from: where the weights of step 0 came from.
      owed: whether an evaluation that was due at this step has not been made.
    """
    config = self.config
    t_min, t_max = np.asarray(current.clip).tolist()
    schedule = order.recorded_schedule(
      config.method, config.data.length, config.corruption.schedule, t_min, t_max
    )
    return {
      "config": config.to_dict(),
      "data": self.corpus.fingerprint,
      "tokenizer": self.corpus.tokenizer.describe(),
      "schedule": schedule,
      "versions": versions(),
      "weights_from": weights_from,
      "evaluation_owed": owed,
    }


@settled()
def train(
  config: Config,
  directory: pathlib.Path,
  label: str = "",
  profile: bool = False,
  lease_timeout: float = TIMEOUT,
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

  Raises:
    UserError: the configuration, the data or the directory cannot be used; nothing
      has been written then. Raised in all processes if it is in one. Also before a
      save, if another run has taken the directory over.
    NonFiniteError: the loss or the gradient diverged; the last checkpoint is good.
    Preempted: SIGTERM came, and where the run stands is saved.
    DiskError: the disk or a quota is full.
  """
  processes.check_same(_facts(config, directory))
  processes.from_first(lambda: places.reach(directory, "--workdir"))
  run = processes.together(lambda: Run.build(config))
  processes.check_same({f"data.{k}": v for k, v in run.corpus.fingerprint.items()})
  evaluator = Evaluator(run.objective, run.corpus.validation, run.mesh)
  if not processes.from_first(lambda: workdir.has_checkpoint(directory)):
    current, weights_from, news = run.start()  # before anything is written
  first, owed, total = 0, False, config.train.steps
  batches = run.batches()
  checkpoints = Checkpoints(
    directory / workdir.CHECKPOINTS, config.train.keep_latest, config.train.keep_best
  )
  with Preemption() as preemption, Home(directory, lease_timeout) as home:
    processes.from_first(
      lambda: workdir.claim(directory, config, run.corpus.fingerprint)
    )
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
      refusals.explained(f"--workdir={directory}"),
      checkpoints,
      MetricsWriter(directory, first, owed, writes) as writer,
      Progress(total, first, label, active=writes) as progress,
      CompileTime() as compiled,
      Trace(directory / "profile" if profile and writes else None, first) as trace,
    ):
      lost = data.lost_text(run.corpus.tokenizer)
      lines = [*home.news, run.objective.where(), lost, *run.corpus.notes, *news]
      for line in filter(None, lines):
        progress.say(line)
      journal = Journal(run, writer, progress, compiled, first)
      loop = Loop(
        run, evaluator, batches, home, checkpoints, journal, preemption, weights_from
      )
      if owed:
        current, _ = loop.evaluate(first, current)
      step_fn = run.compiled_step() if first < total else None
      for step in range(first + 1, total + 1):
        trace.before(step, journal.pending)
        began = time.perf_counter()
        batch = run.put(next(batches))
        waited = time.perf_counter() - began
        current, metrics = step_fn(current, batch)
        journal.add(step, metrics, waited)
        current = loop.after(step, current)


class Loop:
  """What is due between the steps of a run.

  Args:
    run: the program and its data.
    evaluator: of the held-out sequences.
    batches: the iterator, whose place is saved.
    home: the work directory, which must be held to save.
    checkpoints: of the work directory.
    journal: of the steps.
    preemption: says when to stop.
    weights_from: where the weights of step 0 came from.
  """

  def __init__(
    self,
    run: Run,
    evaluator: Evaluator,
    batches,
    home: Home,
    checkpoints: Checkpoints,
    journal: Journal,
    preemption: Preemption,
    weights_from: dict,
  ):
    self._run, self._evaluator, self._batches = run, evaluator, batches
    self._home, self._checkpoints, self._journal = home, checkpoints, journal
    self._preemption, self._weights_from = preemption, weights_from
    self._saved = time.monotonic()

  def evaluate(self, step: int, current: TrainState) -> tuple[TrainState, float]:
    """The state with what an evaluation changes in it, and nats per token."""
    self._journal.flush()
    quality, clip = self._evaluator.run(current.ema)
    if clip is not None:
      current = current.replace(clip=self._run.put_clip(clip))
    self._journal.evaluation(step, quality, clip)
    return current, quality.nats_per_token

  def after(self, step: int, current: TrainState) -> TrainState:
    """Logs, evaluates and saves what is due after a step; returns the state then.

    Raises:
      NonFiniteError: see `train`.
      Preempted: see `train`.
    """
    cadence = self._run.config.train
    last = step == cadence.steps
    stop = self._preemption.reached(step) and not last
    save = step % cadence.checkpoint_every == 0 or last or stop
    if step % cadence.log_every == 0 or last:
      self._journal.flush()
      save |= _late(cadence.checkpoint_minutes, self._saved)
    owed, nats = step % cadence.evaluate_every == 0 or last, None
    if owed and not stop:
      current, nats = self.evaluate(step, current)
      owed = False
    if save:
      self._save(step, current, owed, nats)
    if stop:
      raise Preempted(step)
    return current

  def _save(
    self, step: int, current: TrainState, owed: bool, nats: float | None
  ) -> None:
    self._journal.publish()  # a state with a non-finite history is never saved
    self._home.check()
    meta = self._run.meta(current, self._weights_from, owed)
    self._checkpoints.save(step, current, self._batches, meta, nats)
    self._saved = time.monotonic()


def _late(minutes: float | None, saved: float) -> bool:
  """Whether it is time for another checkpoint, by the clock of the first process.

  Args:
    minutes: from one to the next.
    saved: when the last one was begun, by time.monotonic.
  """
  if minutes is None:
    return False
  passed = (time.monotonic() - saved) / 60
  return bool(processes.gather_numbers([passed])[0, 0] >= minutes)


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
