"""What a run says about itself while it trains: metrics, lines, and who is slow."""

import time

import jax
import numpy as np

from set_diffusion_jax.errors import NonFiniteError
from set_diffusion_jax.evaluate import Clip, Likelihood
from set_diffusion_jax.hardware.chips import peak_flops
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.jobs.phases import here
from set_diffusion_jax.training import state
from set_diffusion_jax.training.goodput import Goodput
from set_diffusion_jax.training.metrics import MetricsWriter, Progress
from set_diffusion_jax.training.step import Program
from set_diffusion_jax.training.throughput import CompileTime


class Journal:
  """Collects the metrics of steps without waiting for them until they are needed.

  All processes keep one and come to the same conclusions; the first one's is written.
  """

  def __init__(
    self,
    program: Program,
    writer: MetricsWriter,
    progress: Progress,
    compiled: CompileTime,
    goodput: Goodput,
    step: int,
  ):
    config = program.config
    self._rate = state.learning_rate(config.optimizer, config.train)
    self._writer, self._progress, self._compiled = writer, progress, compiled
    self._goodput = goodput
    self.pending: list[tuple[int, dict]] = []
    self._length = config.data.length * config.train.batch_size
    peak = peak_flops(jax.devices()[0].device_kind)
    self._peak = None if peak is None else peak * jax.device_count()
    self._flops = None if peak is None else program.flops().model
    self._last, self._input = step, 0.0
    self._optimizer = config.optimizer
    self._ahead = 0.0
    self._restart()

  def begin(self) -> None:
    """To be called before the first step; its row has what was compiled until here."""
    self._ahead = self._compiled.seconds
    self._restart()

  def _restart(self) -> None:
    """Time is counted from here."""
    self._since, self._compiled_before = time.perf_counter(), self._compiled.seconds

  def add(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
    """Remembers a step; waits for the one before it, so that few are in flight.

    Args:
      step: its number.
      metrics: of `train_step`.
      waited: seconds that this process took to get the step's examples.
    """
    if self.pending:
      jax.block_until_ready(self.pending[-1][1])
    self.pending.append((step, metrics))
    self._input += waited
    self._progress.advance()

  def publish(self) -> None:
    """Writes what is pending, and makes sure that it outlives this machine."""
    self.flush()
    self._writer.publish()

  def flush(self) -> None:
    """Writes what is pending, checked to be finite."""
    if not self.pending:
      return
    pending, self.pending = jax.device_get(self.pending), []
    for step, metrics in pending:
      for name in ("loss", "gradient_norm"):
        if not np.isfinite(metrics[name]):
          raise NonFiniteError(f"step {step}: {name} is {metrics[name]}")
    step, metrics = pending[-1]
    compiling = self._compiled.seconds - self._compiled_before
    passed = time.perf_counter() - self._since - compiling
    seconds = max(passed, 1e-9) / (step - self._last)
    loss = float(np.mean([metrics["loss"] for _, metrics in pending]))
    values = {
      "train/loss": loss,
      "train/gradient_norm": float(metrics["gradient_norm"]),
      "train/learning_rate": float(self._rate(step - 1)),
      "train/tokens_per_second": self._length / seconds,
      "train/seconds_per_step": seconds,
      "train/compile_seconds": compiling + self._ahead,
    }
    if self._peak is not None:
      values["train/mfu"] = self._flops / seconds / self._peak
    if "gradient_variance" in metrics:
      variances = [float(m["gradient_variance"]) for _, m in pending]
      values["train/gradient_variance"] = float(np.mean(variances))
    values |= self._stragglers(step, seconds) | self._goodput.reached(step)
    self._writer.write(step, values)
    line = f"step {step}  loss {loss:.4f} nats/token"
    line += f"  {values['train/tokens_per_second']:,.0f} tokens/s"
    if self._peak is not None:
      line += f"  MFU {values['train/mfu']:.1%}"
    if values["train/compile_seconds"] > 1:
      line += f"  (besides, {values['train/compile_seconds']:.1f} s compiling)"
    self._progress.say(line)
    here.note = line
    self._last, self._input, self._ahead = step, 0.0, 0.0
    self._restart()

  def _stragglers(self, step: int, seconds: float) -> dict[str, float]:
    """How long processes wait for their examples; a line where one holds up the rest.

    Args:
      step: the last one.
      seconds: of a step.
    """
    waited = self._input / (step - self._last)
    every = processes.gather_numbers([waited])[:, 0]
    slowest = int(every.argmax())
    longest = float(every[slowest])
    if len(every) > 1 and longest > 0.1 * seconds and longest > 2 * np.median(every):
      self._progress.say(
        f"step {step}  process {slowest} waits {longest:.3f} s a step for its "
        f"examples, the median is {np.median(every):.3f} s"
      )
    values = {"hosts/input_seconds": float(every.mean())}
    if len(every) > 1:
      values |= {"hosts/input_seconds_longest": longest, "hosts/slowest": slowest}
    return values

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
    self._writer.write(step, values | self._goodput.reached(step))
    self._progress.say(
      f"step {step}  held out: {quality.bits_per_byte:.3f} bits/byte  "
      f"perplexity {quality.perplexity:.3f}"
    )
    young = state.young_average(self._optimizer, step)
    if young is not None:
      self._progress.say(f"step {step}  {young}")
    self._restart()
