"""A trained model as an object: `set_diffusion_jax.load(path)`."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax import data, sharding, workdir
from set_diffusion_jax.checkpoint import Checkpoints, abstract
from set_diffusion_jax.config import Config, DecodeConfig, MeshConfig
from set_diffusion_jax.corrupt import Batch, full_noise
from set_diffusion_jax.decode import Decoder, decode
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.evaluate import Evaluator, mixture_nats
from set_diffusion_jax.loss import weighted
from set_diffusion_jax.model import build_network
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.order import singletons
from set_diffusion_jax.rng import DECODE, EVALUATE, SHARED_DRAW, row_keys, stream_key


@dataclasses.dataclass(frozen=True)
class Model:
  """Weights with what is needed to use them rightly.

  Likelihoods are in nats, summed over each row. The first token of a row is context
  if the model was trained with BOS (`config.data.bos`), and is not counted then.

  Attributes:
    config: the configuration that it was trained with.
    params: the parameter tree.
    tokenizer: text to ids and back.
    step: optimiser steps that the weights have seen.
  """

  config: Config
  params: dict
  tokenizer: data.ByteTokenizer
  step: int

  @functools.cached_property
  def objective(self) -> Objective:
    """The pure functions behind the methods."""
    vocabulary = self.tokenizer.vocabulary
    network = build_network(self.config.model, vocabulary.size)
    return Objective(self.config, network, vocabulary.mask, vocabulary.eos)

  def evaluator(self) -> Evaluator:
    """Evaluates on the held-out text of the configuration, over all devices."""
    corpus = data.load(self.config.data)
    return Evaluator(self.objective, corpus, sharding.make_mesh(MeshConfig()))

  def protocol(self) -> dict:
    """What a perplexity of `evaluator` depends on besides the weights."""
    c = self.config
    return {
      "checkpoint_step": self.step,
      "method": c.method.name,
      "source": c.data.source,
      "split": "validation",
      "tokenizer": self.tokenizer.name,
      "cut": f"wrapped to {c.data.length}",
      "special_tokens": "EOS after each document, counted"
      + ("; BOS before each sequence, not counted" if c.data.bos else ""),
      "denominator": "counted tokens of the data set",
      "seed": c.evaluate.seed,
      "compat": c.compat,
    }

  def nelbo(self, tokens: np.ndarray, draws: int = 1, seed: int = 0) -> np.ndarray:
    """The bound of -log p(tokens), the mean over `draws` orders: float32 [B]."""
    return self._drawn_nats(tokens, draws, seed).mean(0)

  def log_prob_bound(
    self, tokens: np.ndarray, orders: int = 1, seed: int = 0
  ) -> np.ndarray:
    """A lower bound of log p(tokens) from `orders` drawn orders together: float32 [B].

    The log of the mean probability; it tightens with more orders. For methods that go
    one position at a time in a drawn order.
    """
    if not self.objective.has_drawn_orders:
      name = self.config.method.name
      raise ValueError(f"log_prob_bound: method {name} draws no orders; use nelbo")
    return -np.asarray(mixture_nats(self._drawn_nats(tokens, orders, seed)))

  def _drawn_nats(self, tokens: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Nats of each draw and row: float32 [draws, B]."""
    if draws < 1:
      raise ValueError(f"draws = {draws}: must be at least 1")
    batch, root = self._batch(tokens), stream_key(seed, EVALUATE)
    shared = row_keys(root, SHARED_DRAW, batch.row)
    totals = [
      self._evaluate(
        self.params, batch, row_keys(root, draw, batch.row), shared, draw, draws
      )
      for draw in range(draws)
    ]
    return np.stack(jax.device_get(totals))

  def log_prob(self, tokens: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Exact log p(tokens | order), one token at a time: float32 [B].

    Args:
      tokens: int [B, L].
      position: int [B, L], the text position generated at each turn. Context comes
        first. One-stream AR knows one order only, 0 .. L - 1.
    """
    if not self.objective.one_at_a_time:
      raise ValueError(
        f"log_prob: method {self.config.method.name} has sets of several positions; "
        "use nelbo"
      )
    batch = self._batch(tokens)
    position = np.asarray(position, np.int32)
    if not (np.sort(position, axis=-1) == np.arange(batch.tokens.shape[1])).all():
      raise ValueError("position: each row must be a permutation of 0 .. L - 1")
    if self.config.data.bos and (position[:, 0] != 0).any():
      raise ValueError("position: BOS at position 0 is context and must come first")
    if self.objective.one_stream and (np.diff(position, axis=-1) != 1).any():
      raise ValueError("position: an autoregressive model goes from left to right")
    return -np.asarray(self._ordered(self.params, batch, jnp.asarray(position)))

  def generate(
    self,
    prompts: list[str],
    length: int | None = None,
    seed: int = 0,
    options: DecodeConfig | None = None,
  ) -> list[dict]:
    """Continues texts.

    Args:
      prompts: any texts, empty ones too.
      length: tokens of each result, prompt and BOS included; None: the training length.
      seed: of the draws; row i is keyed by (seed, i).
      options: how to decode; None: as the configuration says.

    Returns:
      For each prompt: "text", "tokens" (ids) and "steps" (forward passes).

    Raises:
      UserError: a prompt that leaves nothing to generate, or a length that the order
        was not trained for.
    """
    if not self.objective.one_at_a_time:
      raise UserError(
        f"method.name = {self.config.method.name}: cannot be sampled yet; "
        "ar, any_order and set can"
      )
    vocabulary, options = self.tokenizer.vocabulary, options or self.config.decode
    length = self.config.data.length if length is None else length
    if not self.objective.one_stream and length > self.config.data.length:
      raise UserError(
        f"--length={length}: must be at most data.length={self.config.data.length}"
      )
    if self.objective.one_stream and options.tokens_per_step != 1:
      raise UserError(
        f"decode.tokens_per_step = {options.tokens_per_step}: must be 1 for method ar"
      )
    start = [vocabulary.bos] if self.config.data.bos else []
    rows = [np.concatenate([start, self.tokenizer.encode(text)]) for text in prompts]
    for text, row in zip(prompts, rows, strict=True):
      if len(row) >= length:
        raise UserError(
          f"--prompt={text[:20]!r}...: has {len(row)} tokens, must be fewer than "
          f"--length={length}"
        )
      if self.objective.one_stream and not len(row):
        raise UserError("--prompt='': must not be empty, the model has no BOS")
    prompt = np.zeros((len(rows), length), np.int32)
    given = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
      prompt[i, : len(row)], given[i, : len(row)] = row, True
    keys = row_keys(stream_key(seed, DECODE), 0, jnp.arange(len(rows)))
    decoder = Decoder(self.objective, options)
    prefill = max(0, max(map(len, rows), default=0) - 1)
    state = _decode(decoder, self.params, prompt, given, keys, prefill)
    filled, steps = jax.device_get((state.tokens, state.steps))
    return [
      {
        "text": self.tokenizer.decode(tokens),
        "tokens": tokens.tolist(),
        "steps": int(count),
      }
      for tokens, count in zip(filled, steps, strict=True)
    ]

  @functools.cached_property
  def _evaluate(self):
    def total(params, batch, keys, shared, draw, draws):
      nats, streams = self.objective.evaluation_nats(
        params, batch, keys, shared, draw, draws
      )
      return weighted(nats, streams.weight).sum(-1)

    return jax.jit(total, static_argnums=5)

  @functools.cached_property
  def _ordered(self):
    def total(params, batch, position):
      order = singletons(position)
      streams = self.objective.streams(batch, order, full_noise(batch), train=False)
      nats = self.objective.nats(params, streams)
      return weighted(nats, streams.weight).sum(-1)

    return jax.jit(total)

  def _batch(self, tokens: np.ndarray) -> Batch:
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or not 0 < tokens.shape[1] <= self.config.data.length:
      raise ValueError(
        f"tokens: must be [B, L] with L at most {self.config.data.length}, "
        f"is {tokens.shape}"
      )
    size = self.tokenizer.vocabulary.size
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
      raise ValueError(f"tokens: ids must be in [0, {size})")
    context = np.zeros(tokens.shape, bool)
    context[:, 0] = self.config.data.bos
    rows = np.arange(len(tokens), dtype=np.int32)
    return Batch(*map(jnp.asarray, (tokens, np.ones_like(context), context, rows)))


_decode = jax.jit(decode, static_argnums=(0, 5))


def load(path: str | pathlib.Path, weights: str | None = None) -> Model:
  """The model of a work directory's last checkpoint, or of one step's directory.

  The weights are replicated on all devices, whatever mesh they were trained on.

  Args:
    path: a work directory, or its `checkpoints/STEP`.
    weights: "ema" or "raw"; None: what the configuration evaluates.

  Raises:
    UserError: there is no checkpoint.
  """
  path = pathlib.Path(path)
  step = None
  if path.parent.name == workdir.CHECKPOINTS and path.name.isdigit():
    path, step = path.parent.parent, int(path.name)
  config, _ = workdir.read(path)
  if not (path / workdir.CHECKPOINTS).is_dir():
    raise UserError(f"{path}: has no checkpoint yet")
  with Checkpoints(path / workdir.CHECKPOINTS) as checkpoints:
    if step is None:
      step = max(checkpoints.steps, default=None)
    if step not in checkpoints.steps:
      which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
      raise UserError(f"{path}: has {which}")
    meta = checkpoints.restore_meta(step)
    config = Config.from_dict(meta["config"])
    tokenizer = data.ByteTokenizer()
    network = build_network(config.model, tokenizer.vocabulary.size)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    layout = sharding.state_shardings(shapes, sharding.make_mesh(MeshConfig()))
    name = {"ema": "ema", "raw": "params"}[weights or config.evaluate.weights]
    params = checkpoints.restore_weights(step, name, abstract(shapes, layout))
  return Model(config, params, tokenizer, step)
