"""A run: a program together with its data, and what they make of each other."""

import dataclasses
import threading
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax import data, sharding
from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion import order
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.evaluate import Clip
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.training.state import TrainState
from set_diffusion_jax.training.step import Program, make_mesh
from set_diffusion_jax.version import versions
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

  def compile_ahead(self) -> Future:
    """Has `step` compiled in a thread, for `compiled_step`.

    It is traced at once, in this thread, whose settings of JAX count for the result. A
    process that ends meanwhile does not wait for it.
    """
    lowered = self.step.lower(self.abstract_state(), self.abstract_batch())
    ahead: Future = Future()

    def work():
      try:
        ahead.set_result(lowered.compile())
      except BaseException as error:
        ahead.set_exception(error)

    threading.Thread(target=work, name="compile", daemon=True).start()
    return ahead

  def compiled_step(self, ahead: Future):
    """`step`, compiled in all processes; raises what compiling has raised.

    They go on together: where one still compiled, the others would not wait for it to
    take part in its first collective longer than the 30 s that Gloo has.
    """
    compiled = ahead.result()
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
