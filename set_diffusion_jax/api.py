"""A trained model as an object: `set_diffusion_jax.load(path)`."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from set_diffusion_jax import data, sharding
from set_diffusion_jax.config import Config, DecodeConfig, MeshConfig
from set_diffusion_jax.data.detokenize import detokenizer_digest
from set_diffusion_jax.decode import Generation, Progress, Stops, template
from set_diffusion_jax.diffusion.corruption import Batch, full_noise
from set_diffusion_jax.diffusion.draws import (
  EVALUATE,
  SHARED_DRAW,
  row_keys,
  stream_key,
)
from set_diffusion_jax.diffusion.order import singletons
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.evaluate import Evaluator, mixture_nats
from set_diffusion_jax.likelihood.loss import weighted
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.model import build_network
from set_diffusion_jax.numerics import settled
from set_diffusion_jax.weights import read_weights


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
    origin: where they come from if not from this disk: gs://BUCKET/PATH, of a work
      directory with its step, or hf://ORG/NAME@COMMIT.
  """

  config: Config
  params: dict
  tokenizer: data.Tokenizer
  step: int
  origin: str | None = None

  @functools.cached_property
  def objective(self) -> Objective:
    """The pure functions behind the methods, on any rows."""
    return self._objective(None)

  def _objective(self, mesh: Mesh | None) -> Objective:
    tokenizer, vocabulary = self.tokenizer, self.tokenizer.vocabulary
    network = build_network(self.config.model, vocabulary.size, mesh)
    ids = vocabulary.mask, vocabulary.eos
    return Objective(self.config, network, *ids, tokenizer.unused)

  @functools.cached_property
  def weights_digest(self) -> str:
    """SHA-256 of every parameter's name, shape, dtype and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
      digest.update(np.ascontiguousarray(leaf))  # one leaf at a time is on the host
    return digest.hexdigest()

  def evaluator(self, by: str | None = None) -> Evaluator:
    """Evaluates on the held-out text of the configuration, over all devices.

    With `by` nats by "token" or by "rank" stand beside the sums; see `Evaluator`.
    """
    c = self.config
    held_out = data.load_validation(c.data, self.tokenizer, c.evaluate.stride)
    mesh = sharding.make_mesh(MeshConfig())
    return Evaluator(self._objective(mesh), held_out, mesh, by)

  def protocol(self, evaluator: Evaluator) -> dict:
    """What a perplexity of an `evaluator` depends on besides the weights."""
    c = self.config
    windows = "side by side"
    if c.evaluate.stride:
      windows = f"{c.evaluate.stride} tokens apart"
    cut = {
      "wrapped": f"wrapped to {c.data.length}, windows {windows}",
      "sentence": f"a document a sequence, cut off at {c.data.length}",
      "prompt": "a record a sequence, its prompt not counted, prompt and target each "
      f"cut off at {c.data.length // 2}",
    }
    special = (
      "BOS before each sequence, not counted" if c.data.bos else None,
      "no BOS: the first token of each sequence is given and not counted"
      if self.objective.one_stream and not c.data.bos
      else None,
      {
        "documents": "EOS after each document, counted",
        "sequences": "EOS after each sequence, counted",
        "both": "EOS after each document and each sequence, counted",
        "none": None,
      }[c.data.eos],
    )
    without = data.count(self.tokenizer.unused)
    over = {
      "rows": f"all rows, {without} of them without a token",
      "tokens": f"rows with a token; {without} without one are left out",
    }
    return {
      "checkpoint_step": self.step,
      "method": c.method.name,
      "method_settings": dataclasses.asdict(c.method),
      "dtype": c.model.dtype,
      "order": c.evaluate.order,
      "order_sha256": evaluator.order_digest,
      "sequences": c.evaluate.sequences,
      "source": c.data.source,
      "split": "validation",
      "sequences_sha256": evaluator.held_out.digest,
      "detokenizer": c.data.detokenizer,
      "detokenizer_sha256": detokenizer_digest(c.data.detokenizer),
      "tokenizer": self.tokenizer.name,
      "vocabulary": self.tokenizer.vocabulary.size,
      "cut": cut[c.data.cut],
      "special_tokens": "; ".join(filter(None, special)) or "none",
      "denominator": "counted tokens of the data set",
      "draws": c.evaluate.draws,
      "levels": c.evaluation_levels,
      "seed": c.evaluate.seed,
      "compat": c.compat,
      **({"softmax": over[c.evaluate.softmax]} if without else {}),
    }

  def nelbo(
    self,
    tokens: np.ndarray,
    draws: int = 1,
    seed: int = 0,
    rows: np.ndarray | None = None,
  ) -> np.ndarray:
    """The bound of -log p(tokens), the mean over `draws`: float32 [B].

    What is drawn, orders and what sets mask, is drawn as `evaluate` does it.

    Args:
      tokens: int [B, L].
      draws: of each row.
      seed: of the draws, which are keyed by (seed, row).
      rows: int [B], the numbers of these rows; None: 0 .. B - 1. With the numbers that
        they have in a corpus, its chunks have the figures of the whole.
    """
    return self._drawn_nats(tokens, draws, seed, rows).mean(0)

  @settled()
  def log_prob_bound(
    self,
    tokens: np.ndarray,
    orders: int = 1,
    seed: int = 0,
    rows: np.ndarray | None = None,
  ) -> np.ndarray:
    """A lower bound of log p(tokens) from `orders` drawn orders together: float32 [B].

    The log of the mean probability; it tightens with more orders. For methods whose
    order is drawn and whose sets are fully masked. `seed` and `rows` are those of
    `nelbo`.
    """
    method = self.config.method
    if self.objective.one_stream:
      raise ValueError("log_prob_bound: method ar has one order only; use log_prob")
    if not method.mixes:
      raise ValueError(
        f"log_prob_bound: method {method.name} draws noise levels, whose nats are no "
        "log-probabilities to mix; use nelbo"
      )
    return -np.asarray(mixture_nats(self._drawn_nats(tokens, orders, seed, rows)))

  @settled()
  def _drawn_nats(
    self, tokens: np.ndarray, draws: int, seed: int, rows: np.ndarray | None
  ) -> np.ndarray:
    """Nats of each draw and row: float32 [draws, B]."""
    if draws < 1:
      raise ValueError(f"draws = {draws}: must be at least 1")
    batch, root = self._batch(tokens, rows), stream_key(seed, EVALUATE)
    shared = row_keys(root, SHARED_DRAW, batch.row)
    totals = [
      self._evaluate(
        self.params, batch, row_keys(root, draw, batch.row), shared, draw, draws
      )
      for draw in range(draws)
    ]
    return np.stack(jax.device_get(totals))

  @settled()
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
    prompts: Sequence[str],
    length: int | None = None,
    seed: int = 0,
    options: DecodeConfig | None = None,
    stops: Stops | None = None,
    position: np.ndarray | None = None,
  ) -> list[dict]:
    """Continues texts.

    Args:
      prompts: any texts, empty ones too.
      length: tokens of each result, prompt and BOS included; None: the training length.
        Beyond that length the oldest tokens are no longer seen.
      seed: of the draws; row i is keyed by (seed, i).
      options: how to decode; None: as the configuration says.
      stops: what ends a text besides EOS and its length.
      position: int [S] or [B, S], positions in the order of their generation.

    Returns:
      For each prompt "text", "tokens" (ids), "steps" (forward passes that predict),
      "tokens_per_step", "ended_by" and "seconds" (of the whole batch).

    Raises:
      UserError: a prompt that leaves nothing to generate, or that the method cannot
        continue.
    """
    templates = self.continued(prompts, length)
    return self.generation(templates, seed, options, position).finish(stops)

  def infill(
    self,
    texts: Sequence[str],
    seed: int = 0,
    options: DecodeConfig | None = None,
    stops: Stops | None = None,
  ) -> list[dict]:
    """Fills the gaps of texts.

    "The [MASK:3] sat on the [MASK:5]." has gaps of three and of five tokens. Both sides
    of a gap condition it from the start. See `generate` for the rest.
    """
    return self.generation(self.templates(texts), seed, options).finish(stops)

  def stream(
    self,
    texts: Sequence[str],
    seed: int = 0,
    options: DecodeConfig | None = None,
    every: int = 1,
  ) -> Iterator[Progress]:
    """Fills the gaps of texts; yields a `Progress` every so many steps.

    A continuation is a text that ends with a gap. For the results as well, iterate over
    `generation(templates(texts)).run(every=1)` and ask for its `results()`.
    """
    yield from self.generation(self.templates(texts), seed, options).run(every=every)

  def generation(
    self,
    templates: Sequence[np.ndarray],
    seed: int = 0,
    options: DecodeConfig | None = None,
    position: np.ndarray | None = None,
    first_row: int = 0,
  ) -> Generation:
    """A batch of texts on its way; see `Generation` for the arguments."""
    return Generation(
      self.objective,
      self.params,
      self.tokenizer,
      options or self.config.decode,
      templates,
      seed,
      position,
      first_row,
    )

  def where(self) -> str:
    """A line: the device that texts are generated on, dtype, and kind of attention."""
    uncached = self.config.method.single_set
    if uncached:
      return self.objective.where()
    device = sharding.devices_line(None)
    return f"{device}, {self.config.model.dtype}; attention: XLA over a cache"

  def templates(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of texts with gaps, [MASK] where a token is wanted."""
    return [template(text, self.tokenizer, self.config.data.bos) for text in texts]

  def continued(
    self, prompts: Sequence[str], length: int | None = None
  ) -> list[np.ndarray]:
    """Ids of prompts, with [MASK] up to a length; None: the training length."""
    length = self.config.data.length if length is None else length
    vocabulary = self.tokenizer.vocabulary
    start = np.array([vocabulary.bos] * self.config.data.bos, np.int32)
    found = []
    for text in prompts:
      ids = np.concatenate([start, self.tokenizer.encode(text)])
      if len(ids) >= length:
        raise UserError(
          f"--prompt={text[:20]!r}...: has {len(ids)} tokens, must be fewer than "
          f"--length={length}"
        )
      rest = np.full(length - len(ids), vocabulary.mask, np.int32)
      found.append(np.concatenate([ids, rest]))
    return found

  @functools.cached_property
  def _evaluate(self):
    def total(params, batch, keys, shared, draw, draws):
      nats, streams, _ = self.objective.evaluation_nats(
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

  def _batch(self, tokens: np.ndarray, rows: np.ndarray | None = None) -> Batch:
    tokens = np.asarray(tokens)
    right = tokens.ndim == 2 and 0 < tokens.shape[1] <= self.config.data.length
    if not (right and len(tokens) and np.issubdtype(tokens.dtype, np.integer)):
      raise ValueError(
        "tokens: must be whole numbers [B, L] with B at least 1 and L at most "
        f"{self.config.data.length}, is {tokens.dtype} {list(tokens.shape)}"
      )
    size = self.tokenizer.vocabulary.size
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
      raise ValueError(f"tokens: ids must be in [0, {size})")
    context = np.zeros(tokens.shape, bool)
    context[:, 0] = self.config.data.bos
    rows = np.arange(len(tokens)) if rows is None else np.asarray(rows)
    whole = rows.shape == (len(tokens),) and np.issubdtype(rows.dtype, np.integer)
    if not whole or (rows < 0).any() or (rows >= 2**31).any():
      raise ValueError(
        f"rows: must be [{len(tokens)}] whole numbers from 0 to 2**31 - 1, "
        f"is {rows.dtype} {list(rows.shape)}"
      )
    tokens, rows = tokens.astype(np.int32), rows.astype(np.int32)
    return Batch(*map(jnp.asarray, (tokens, np.ones_like(context), context, rows)))


def load(
  path: str | pathlib.Path,
  weights: str | None = None,
  backbone_config: str | pathlib.Path | None = None,
) -> Model:
  """The model of a checkpoint; see `read_weights` for the arguments.

  The weights are replicated on all devices, whatever mesh they were trained on.
  """
  sharding.check_backend()
  stored = read_weights(path, weights, backbone_config=backbone_config)
  return Model(
    stored.config, stored.params, stored.tokenizer, stored.step, stored.origin
  )
