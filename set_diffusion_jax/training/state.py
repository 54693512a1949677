"""What training carries from step to step, and the optimiser that changes it."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from set_diffusion_jax.config import Config, OptimizerConfig, TrainConfig
from set_diffusion_jax.diffusion.draws import INIT, TRAIN, stream_key
from set_diffusion_jax.model import Network


@flax.struct.dataclass
class TrainState:
  """Everything that a resumed run needs besides the data position.

  Attributes:
    step: optimiser steps taken.
    params: float32.
    ema: exponential moving average of the parameters, what is evaluated.
    optimizer: the state of `make_optimizer`.
    clip: float32 [2], the range [t_min, t_max] of noise levels in training.
    key: root key of the training draws; step and row are folded into it.
  """

  step: jax.Array
  params: dict
  ema: dict
  optimizer: optax.OptState
  clip: jax.Array
  key: jax.Array


def learning_rate(optimizer: OptimizerConfig, train: TrainConfig) -> optax.Schedule:
  """Linear warm-up from 0, then constant or a cosine down to the final fraction."""
  peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
  if optimizer.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, max(1, train.steps - warmup), optimizer.final_fraction
    )
  else:
    after = optax.constant_schedule(peak)
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup]
  )


def ema_rate(optimizer: OptimizerConfig, step):
  """The share that step n = 1, 2, .. gives the new parameters in the EMA.

  It is 1 - d with d = ema_decay, and with ema_warmup d = min(ema_decay, (1 + n) /
  (10 + n)), so at least 9 / (10 + n). `step` may be an array of numbers.
  """
  rate = 1 - optimizer.ema_decay
  return jnp.maximum(rate, 9 / (10 + step)) if optimizer.ema_warmup else rate


def initial_share(optimizer: OptimizerConfig, steps: int) -> float:
  """The share of the EMA after so many steps that is the weights it started from."""
  rates = ema_rate(optimizer, np.arange(1, steps + 1))
  return float(np.prod(np.broadcast_to(1 - rates, steps)))


def young_average(optimizer: OptimizerConfig, steps: int) -> str | None:
  """A line for an EMA that is younger than 1 / (1 - decay) steps; None for an older."""
  initial = initial_share(optimizer, steps)
  if initial <= math.exp(-1):
    return None
  return (
    f"that is of the EMA, {initial:.0%} of which are the weights that training started "
    "from: optimizer.ema_warmup forgets them sooner"
  )


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """AdamW after global-norm clipping; `OptimizerConfig` says what its decay means."""
  o = config.optimizer
  # The chain multiplies it by lr.
  decay = o.weight_decay / (o.learning_rate if o.decay == "relative" else 1.0)
  return optax.chain(
    optax.clip_by_global_norm(o.clip_norm),
    optax.adamw(
      learning_rate(o, config.train),
      b1=o.beta1,
      b2=o.beta2,
      eps=o.epsilon,
      weight_decay=decay,
    ),
  )


def init_state(config: Config, network: Network) -> TrainState:
  """The state before the first step, a pure function of the seed."""
  params = network.init(stream_key(config.train.seed, INIT))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=jax.tree.map(jnp.copy, params),
    optimizer=make_optimizer(config).init(params),
    clip=jnp.array([config.corruption.t_min, config.corruption.t_max]),
    key=stream_key(config.train.seed, TRAIN),
  )
