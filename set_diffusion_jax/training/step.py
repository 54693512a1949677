"""The training step: one pure function, and how it is compiled on a mesh."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from set_diffusion_jax import sharding
from set_diffusion_jax.config import Config
from set_diffusion_jax.data import Runs, Vocabulary
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.diffusion.draws import TrainingKeys, training_keys
from set_diffusion_jax.hardware import work
from set_diffusion_jax.hardware.flops import Flops
from set_diffusion_jax.likelihood.loss import LossTerms, loss_terms, weighted
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.model import build_network
from set_diffusion_jax.storage.checkpoint import abstract
from set_diffusion_jax.training import state
from set_diffusion_jax.training.state import TrainState


class Sums(NamedTuple):
  """What micro-batches add up; the quotients are taken once, over all of them.

  Attributes:
    loss: its numerator and denominator.
    tokens: counted ones.
    predicted: those with a weight.
    gradient: of the numerator.
    signed: the gradient of sum_i e_i l_i with random signs e_i, one a token, l_i being
      the token's weighted nats; None without train.gradient_variance.
    plain: the gradient of sum_i l_i, likewise.
  """

  loss: LossTerms
  tokens: jax.Array
  predicted: jax.Array
  gradient: dict
  signed: dict | None
  plain: dict | None


def micro_gradients(
  objective: Objective, params, clip, batch: Batch, keys: TrainingKeys
) -> Sums:
  """The sums of one micro-batch: a forward pass, and a backward pass a gradient.

  In the output layer all gradients are taken in the forward pass.
  """
  config = objective.config
  streams = objective.training_streams(batch, keys, clip)
  weight = streams.weight

  def terms_of(nats):
    each = weighted(nats, weight)
    return loss_terms(each, weight, streams.counted, config.loss.denominator)

  # The loss is linear in the nats: what each of them costs does not depend on them.
  prices = [jax.grad(lambda nats: terms_of(nats).numerator)(jnp.zeros_like(weight))]
  if config.train.gradient_variance:
    sign = jax.vmap(
      lambda key: jax.random.rademacher(key, weight.shape[1:], jnp.float32)
    )
    prices += [weight * sign(keys.signs), weight]
  priced = lambda params: objective.priced_nats(
    params, streams, keys.dropout, jnp.stack(prices)
  )
  _, pullback, nats = jax.vjp(priced, params, has_aux=True)
  found = [pullback(one)[0] for one in jnp.eye(len(prices))]
  gradient, signed, plain = (*found, None, None)[:3]
  terms = terms_of(nats)
  tokens = streams.counted.sum().astype(jnp.float32)
  predicted = (streams.weight > 0).sum().astype(jnp.float32)
  return Sums(terms, tokens, predicted, gradient, signed, plain)


def gradient_variance(sums: Sums) -> jax.Array:
  """The trace of the covariance of one token's gradient (Set Diffusion, appendix K.1).

  Over the n tokens of the batch that are predicted. With g_i the gradient of token i,
  E |signed|^2 = sum_i |g_i|^2, so (|signed|^2 - n |mean g|^2) / (n - 1) is unbiased; it
  takes two backward passes instead of n.
  """
  squared = lambda tree: optax.tree.norm(tree, squared=True)
  n = jnp.maximum(sums.predicted, 1)
  return (squared(sums.signed) - squared(sums.plain) / n) / jnp.maximum(n - 1, 1)


def train_step(
  objective: Objective, current: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimiser step on one global batch.

  Draws are keyed by (seed, step, row), so they depend neither on the mesh nor on how
  many micro-batches the step is taken in.

  Args:
    objective: what is learnt.
    current: is donated when jitted.
    batch: B rows, `row` = 0 .. B - 1.

  Returns:
    The next state, and scalars: loss (nats), gradient_norm before clipping, tokens, and
    with train.gradient_variance that variance.
  """
  config = objective.config
  keys = training_keys(current.key, current.step, batch.row)
  count = config.train.accumulate
  # Rows are dealt out in turn, so that each micro-batch is spread over all devices.
  deal = lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
  micros = jax.tree.map(deal, (batch, keys))
  one = functools.partial(micro_gradients, objective, current.params, current.clip)
  first = jax.tree.map(lambda x: x[0], micros)
  if count == 1:
    sums = one(*first)
  else:
    sums, _ = jax.lax.scan(
      lambda sums, micro: (jax.tree.map(jnp.add, sums, one(*micro)), None),
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, *first)),
      micros,
    )
  denominator = jnp.maximum(sums.loss.denominator, 1)
  gradients = jax.tree.map(lambda g: g / denominator, sums.gradient)

  updates, optimizer = state.make_optimizer(config).update(
    gradients, current.optimizer, current.params
  )
  params = optax.apply_updates(current.params, updates)
  rate = state.ema_rate(config.optimizer, current.step + 1)
  ema = optax.incremental_update(params, current.ema, rate)
  metrics = {
    "loss": sums.loss.numerator / denominator,
    "gradient_norm": optax.tree.norm(gradients),
    "tokens": sums.tokens,
  }
  if config.train.gradient_variance:
    metrics["gradient_variance"] = gradient_variance(sums)
  after = current.replace(
    step=current.step + 1, params=params, ema=ema, optimizer=optimizer
  )
  return after, metrics


def make_mesh(config: Config, devices: list[jax.Device] | None = None) -> Mesh:
  """The mesh of a configuration over all devices, or over those given.

  Raises:
    UserError: the mesh does not fit the devices, or the global batch the mesh.
  """
  mesh = sharding.make_mesh(config.mesh, devices)
  check_mesh(config, mesh)
  return mesh


def check_mesh(config: Config, mesh: Mesh | AbstractMesh) -> None:
  """UserError unless the global batch can be laid out on a mesh."""
  sharding.check_batch(
    "train.batch_size", config.train.batch_size, mesh, config.train.accumulate
  )


@dataclasses.dataclass
class Program:
  """What is compiled for a configuration on a mesh; needs neither data nor devices."""

  config: Config
  mesh: Mesh | AbstractMesh
  objective: Objective
  shardings: TrainState

  @classmethod
  def of(
    cls,
    config: Config,
    vocabulary: Vocabulary,
    mesh: Mesh | AbstractMesh,
    unused: Runs = (),
  ) -> "Program":
    """On a mesh that passes `check_mesh`; nothing runs on an abstract one.

    `unused` are runs of ids without a token.
    """
    network = build_network(config.model, vocabulary.size, mesh)
    objective = Objective(config, network, vocabulary.mask, vocabulary.eos, unused)
    shapes = jax.eval_shape(functools.partial(state.init_state, config, network))
    return cls(config, mesh, objective, sharding.state_shardings(shapes, mesh))

  @functools.cached_property
  def step(self):
    """`train_step`, compiled, its state donated."""
    return jax.jit(
      functools.partial(train_step, self.objective),
      in_shardings=(self.shardings, sharding.batch_sharding(self.mesh)),
      out_shardings=(self.shardings, sharding.replicated(self.mesh)),
      donate_argnums=0,
    )

  def init(self) -> TrainState:
    """The state before the first step, laid out on the mesh."""
    init = functools.partial(state.init_state, self.config, self.objective.network)
    return jax.jit(init, out_shardings=self.shardings)()

  def abstract_state(self) -> TrainState:
    """Shapes and layout of the state, without its values."""
    init = functools.partial(state.init_state, self.config, self.objective.network)
    return abstract(jax.eval_shape(init), self.shardings)

  def abstract_batch(self) -> Batch:
    """Shapes and layout of a global batch, without its values."""
    rows, length = self.config.train.batch_size, self.config.data.length
    shape = functools.partial(
      jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(self.mesh)
    )
    flags = shape((rows, length), jnp.bool)
    tokens, row = shape((rows, length), jnp.int32), shape((rows,), jnp.int32)
    return Batch(tokens, valid=flags, context=flags, row=row)

  def held(self) -> work.Held:
    """Bytes a device of the state and of a batch."""
    return work.held(self.abstract_state(), self.abstract_batch())

  def parameters(self) -> int:
    """How many there are."""
    return work.parameters(self.abstract_state().params)

  def gradients(self) -> int:
    """Bytes of them that a device adds to those of others, each micro-batch."""
    tensor = self.mesh.shape["tensor"]
    return work.gradients(self.config.model, self.abstract_state().params, tensor)

  def flops(self) -> Flops:
    """Operations of a step over the global batch."""
    return work.step_flops(self.objective, self.abstract_batch(), self.mesh)
