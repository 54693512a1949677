"""What is due between the steps of a run: logging, evaluations and saves."""

import time

from set_diffusion_jax.errors import Preempted
from set_diffusion_jax.evaluate import Evaluator
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.jobs.phases import here
from set_diffusion_jax.jobs.preemption import Preemption
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.training.compilation_cache import CompilationCache
from set_diffusion_jax.training.home import Home
from set_diffusion_jax.training.reporting import Journal
from set_diffusion_jax.training.run import Run
from set_diffusion_jax.training.state import TrainState


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
    cache: of compiled programs.
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
    cache: CompilationCache,
  ):
    self._run, self._evaluator, self._batches = run, evaluator, batches
    self._home, self._checkpoints, self._journal = home, checkpoints, journal
    self._preemption, self._weights_from = preemption, weights_from
    self._saved, self._cache = time.monotonic(), cache

  def evaluate(self, step: int, current: TrainState) -> tuple[TrainState, float]:
    """The state with what an evaluation changes in it, and nats per token."""
    self._journal.flush()
    with here.phase("evaluation"):
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
    self._checkpoints.check()
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
    with here.phase("save"):
      self._checkpoints.save(step, current, self._batches, meta, nats)
      self._cache.record()
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
