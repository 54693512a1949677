"""A model and a configuration small enough for every test."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.config import Config, default_config
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.diffusion import corruption
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.model import build_network

TEXT = (
  "It was the best of times, it was the worst of times, it was the age of wisdom.\n"
)

# A file for --config, with the path of a text in the place of PATH.
CONFIG = """
from set_diffusion_jax.config import config_arguments, default_config
def get_config(arguments=""):
  given = config_arguments(arguments, method="set")
  config = default_config()
  config.method.name = given.method
  config.method.max_set_size = 4.0
  config.model.update({"layers": 1, "width": 16, "heads": 2, "ffn": 64})
  config.data.update({"source": "text", "train_path": "PATH", "length": 16})
  config.optimizer.update({"warmup_steps": 1, "ema_decay": 0.5, "learning_rate": 1e-2})
  config.train.update({"steps": 4, "batch_size": 4, "log_every": 2,
    "evaluate_every": 4, "checkpoint_every": 2})
  return config
"""


def settings(**changes):
  """The default configuration, made tiny; `group__field=value` changes a field."""
  config = default_config()
  config.model.update({"layers": 2, "width": 16, "heads": 2, "ffn": 32})
  config.method.max_set_size = 4.0
  config.data.length = 16
  config.optimizer.update({"warmup_steps": 2, "ema_decay": 0.9, "learning_rate": 1e-2})
  config.train.update(
    {
      "steps": 6,
      "batch_size": 4,
      "log_every": 2,
      "evaluate_every": 3,
      "checkpoint_every": 2,
    }
  )
  config.evaluate.batch_size = 8
  for name, value in changes.items():
    *groups, field = name.split("__")
    target = config
    for group in groups:
      target = target[group]
    target[field] = value
  return config


def config(**changes) -> Config:
  return Config.from_dict(settings(**changes).to_dict())


def objective(vocab_size=12, **changes) -> Objective:
  """The last three ids are EOS, padding and [MASK]."""
  c = config(**changes)
  network = build_network(c.model, vocab_size)
  return Objective(c, network, mask_id=vocab_size - 1, eos_id=vocab_size - 3)


@functools.cache
def _params(network, seed, scale):
  params = jax.jit(network.init)(jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noisy = [
    x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(tree, noisy)


def params(obj: Objective, seed=0, scale=0.3):
  """Weights far from their initial values, so that every part of the model matters."""
  return _params(obj.network, seed, scale)


def batch(rows=3, length=16, vocab_size=12, seed=0, bos=False) -> Batch:
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, vocab_size - 3, (rows, length)).astype(np.int32)
  context = np.zeros(tokens.shape, bool)
  context[:, 0] = bos
  valid = np.ones(tokens.shape, bool)
  return Batch(*map(jnp.asarray, (tokens, valid, context, np.arange(rows))))


def streams(obj, batch, order, train=True):
  """Of methods whose sets are fully masked."""
  return obj.streams(batch, order, corruption.full_noise(batch), train)


nats = jax.jit(
  lambda obj, params, streams, keys=None: obj.nats(params, streams, keys),
  static_argnums=0,
)
CLIP = jnp.array([0.0, 1.0])


def drawn_nats(obj, params, batch, keys):
  """Of what training draws, with a sum that has their gradient."""
  streams = obj.training_streams(batch, keys, CLIP)
  prices = jnp.ones_like(streams.weight)[None]
  totals, nats = obj.priced_nats(params, streams, keys.dropout, prices)
  return totals[0], nats


training_nats = jax.jit(
  lambda obj, params, batch, keys: drawn_nats(obj, params, batch, keys)[1],
  static_argnums=0,
)


def text_file(folder: pathlib.Path, lines=40) -> pathlib.Path:
  path = folder / "text.txt"
  path.write_text("".join(f"{i}. {TEXT}" for i in range(lines)))
  return path


def vocabulary(size: int) -> Vocabulary:
  """The last three ids are EOS and BOS, padding and [MASK]."""
  return Vocabulary(size, size - 3, size - 3, size - 2, size - 1)
