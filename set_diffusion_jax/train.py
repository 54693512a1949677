"""Training: the loop around the step."""

import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax import data, order, sharding, state, workdir
from set_diffusion_jax.checkpoint import Checkpoints
from set_diffusion_jax.config import Config
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.errors import NonFiniteError
from set_diffusion_jax.evaluate import Clip, Evaluator, Likelihood
from set_diffusion_jax.metrics import MetricsWriter, Progress
from set_diffusion_jax.state import TrainState
from set_diffusion_jax.step import Program, make_mesh
from set_diffusion_jax.version import VERSION
from set_diffusion_jax.weights import graft, read_weights


@dataclasses.dataclass
class Run(Program):
  """A program together with the data that it is run on."""

  corpus: data.Corpus

  @classmethod
  def build(cls, config: Config) -> "Run":
    """Loads the data and checks all that can be checked; writes nothing."""
    mesh = make_mesh(config)
    corpus = data.load(config.data)
    program = Program.of(config, corpus.tokenizer.vocabulary, mesh)
    return cls(**vars(program), corpus=corpus)

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
    stored = read_weights(where)
    params, report = graft(fresh.params, stored.params, where)
    params = jax.device_put(params, self.shardings.params)
    current = fresh.replace(params=params, ema=jax.tree.map(jnp.copy, params))
    origin = {"checkpoint": where, **dataclasses.asdict(report)}
    lines = report.lines()
    if stored.tokenizer.describe() != self.corpus.tokenizer.describe():
      lines.append("its tokenizer is another: an id need not mean the same text")
    return current, origin, [f"from {where}: {line}" for line in lines]

  def batches(self):
    """This process's grain iterator over training examples."""
    return data.training_iterator(
      self.corpus.train,
      self.config.train.batch_size,
      self.config.train.seed,
      jax.process_index(),
      jax.process_count(),
    )

  def put(self, examples: data.Examples) -> Batch:
    """This process's examples as its part of the global batch."""
    rows = self.config.train.batch_size // jax.process_count()
    row = np.arange(rows, dtype=np.int32) + rows * jax.process_index()
    return jax.make_array_from_process_local_data(
      sharding.batch_sharding(self.mesh), Batch(**examples, row=row)
    )

  def put_clip(self, clip: Clip) -> jax.Array:
    """A range of noise levels as it stands in the state."""
    return jax.device_put(
      jnp.array([clip.t_min, clip.t_max], jnp.float32), self.shardings.clip
    )

  def meta(self, current: TrainState, weights_from: dict) -> dict:
    """What a checkpoint needs to be understood without its work directory.

    Args:
      current: what is saved.
      weights_from: where the weights of step 0 came from.
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
      "code_version": VERSION,
      "weights_from": weights_from,
    }


def train(config: Config, directory: pathlib.Path, label: str = "") -> None:
  """Trains in a work directory, or goes on from its last checkpoint.

  Raises:
    UserError: the configuration, the data or the directory cannot be used; nothing
      has been written then.
    NonFiniteError: the loss or the gradient diverged; the last checkpoint is good.
  """
  run = Run.build(config)
  if not workdir.has_checkpoint(directory):
    start, weights_from, news = run.start()  # before anything is written
  workdir.claim(directory, config, run.corpus.fingerprint)
  evaluator = Evaluator(run.objective, run.corpus.validation, run.mesh)
  cadence = config.train
  with Checkpoints(
    directory / workdir.CHECKPOINTS, cadence.keep_latest, cadence.keep_best
  ) as checkpoints:
    batches = run.batches()
    first = max(checkpoints.steps, default=0)
    if first:
      current = checkpoints.restore(first, run.abstract_state(), batches)
      weights_from = checkpoints.restore_meta(first)["weights_from"]
      done = first >= cadence.steps
      news = [f"{'is already at' if done else 'continues from'} step {first}"]
    else:
      current = start
    with (
      MetricsWriter(directory, first) as writer,
      Progress(cadence.steps, first, label) as progress,
    ):
      for line in news:
        progress.say(line)
      log = _Log(config, writer, progress, first)
      for step in range(first + 1, cadence.steps + 1):
        current, metrics = run.step(current, run.put(next(batches)))
        log.add(step, metrics)
        last = step == cadence.steps
        quality = None
        if step % cadence.log_every == 0 or last:
          log.flush()
        if step % cadence.evaluate_every == 0 or last:
          log.flush()
          quality, clip = evaluator.run(current.ema)
          if clip is not None:
            current = current.replace(clip=run.put_clip(clip))
          log.evaluation(step, quality, clip)
        if step % cadence.checkpoint_every == 0 or last:
          log.flush()  # a state with a non-finite history is never saved
          nats = None if quality is None else quality.nats_per_token
          meta = run.meta(current, weights_from)
          checkpoints.save(step, current, batches, meta, nats)


class _Log:
  """Collects the metrics of steps without waiting for them until they are needed."""

  def __init__(self, config: Config, writer: MetricsWriter, progress: Progress, step):
    self._rate = state.learning_rate(config.optimizer, config.train)
    self._writer, self._progress = writer, progress
    self._pending: list[tuple[int, dict]] = []
    self._since, self._last = time.perf_counter(), step
    self._length = config.data.length * config.train.batch_size

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Remembers a step; waits for the one before it, so that few are in flight."""
    if self._pending:
      jax.block_until_ready(self._pending[-1][1])
    self._pending.append((step, metrics))
    self._progress.advance()

  def flush(self) -> None:
    """Writes what is pending, checked to be finite."""
    if not self._pending:
      return
    pending, self._pending = jax.device_get(self._pending), []
    for step, metrics in pending:
      for name in ("loss", "gradient_norm"):
        if not np.isfinite(metrics[name]):
          raise NonFiniteError(f"step {step}: {name} is {metrics[name]}")
    step, metrics = pending[-1]
    now = time.perf_counter()
    rate = (step - self._last) * self._length / (now - self._since)
    loss = float(np.mean([metrics["loss"] for _, metrics in pending]))
    values = {
      "train/loss": loss,
      "train/gradient_norm": float(metrics["gradient_norm"]),
      "train/learning_rate": float(self._rate(step - 1)),
      "train/tokens_per_second": rate,
    }
    if "gradient_variance" in metrics:
      variances = [float(m["gradient_variance"]) for _, m in pending]
      values["train/gradient_variance"] = float(np.mean(variances))
    self._writer.write(step, values)
    self._progress.say(f"step {step}  loss {loss:.4f} nats/token  {rate:,.0f} tokens/s")
    self._since, self._last = now, step

  def evaluation(self, step: int, quality: Likelihood, clip: Clip | None) -> None:
    """Writes the held-out figures of a step, and the range of noise levels found."""
    if not np.isfinite(quality.perplexity):
      raise NonFiniteError(f"step {step}: held-out perplexity is {quality.perplexity}")
    figures = quality.summary()
    names = ("nats_per_token", "perplexity", "bits_per_byte")
    values = {f"validation/{name}": figures[name] for name in names}
    if clip is not None:
      values |= {f"clip/{name}": value for name, value in clip._asdict().items()}
      self._progress.say(
        f"step {step}  noise levels from [{clip.t_min:g}, {clip.t_max:g}]: variance of "
        f"a set's loss {clip.variance:.3f}, on [0, 1] {clip.full_variance:.3f}"
      )
    self._writer.write(step, values)
    self._progress.say(
      f"step {step}  held out: {quality.bits_per_byte:.3f} bits/byte  "
      f"perplexity {quality.perplexity:.3f}"
    )
    self._since = time.perf_counter()
