"""Held-out likelihood: nats, perplexity and bits per byte, with standard errors."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from set_diffusion_jax import data, sharding
from set_diffusion_jax.config import EvaluateConfig
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.loss import weighted
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.rng import EVALUATE, SHARED_DRAW, row_keys, stream_key


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Sums per sequence; every figure is derived from them.

  Attributes:
    nats: float64 [n], the mean over draws of each sequence's summed nats.
    mixed: float64 [n], the bound of each sequence's nats from all its draws together
      (`mixture_nats`), where draws are orders of single positions; otherwise `nats`.
    tokens: float64 [n], counted tokens of each sequence.
    bytes: float64 [n], bytes of text that the counted tokens stand for.
    draws: Monte Carlo draws of a sequence.
    exact: whether nats are -log p itself (one fixed order) or an upper bound of it.
  """

  nats: np.ndarray
  mixed: np.ndarray
  tokens: np.ndarray
  bytes: np.ndarray
  draws: int
  exact: bool

  @property
  def nats_per_token(self) -> float:
    """Total nats / total counted tokens, over the data set."""
    return float(self.nats.sum() / self.tokens.sum())

  @property
  def perplexity(self) -> float:
    """exp(nats per token)."""
    return math.exp(self.nats_per_token)

  @property
  def bits_per_byte(self) -> float:
    """Total bits / total bytes of text: comparable across tokenizers."""
    return float(self.nats.sum() / math.log(2) / self.bytes.sum())

  @property
  def standard_error(self) -> float:
    """Of nats per token, over sequences (ratio estimator); NaN for one sequence."""
    return self._standard_error(self.nats)

  def _standard_error(self, nats: np.ndarray) -> float:
    n = len(nats)
    if n < 2:
      return math.nan
    residual = nats - nats.sum() / self.tokens.sum() * self.tokens
    return float(math.sqrt(n / (n - 1) * (residual**2).sum()) / self.tokens.sum())

  def summary(self) -> dict:
    """The figures as plain JSON values."""
    per_byte = float(self.tokens.sum() / self.bytes.sum() / math.log(2))
    mixture = {}
    if self.mixed is not self.nats:
      nats = float(self.mixed.sum() / self.tokens.sum())
      mixture = {
        "mixture_nats_per_token": nats,
        "mixture_perplexity": math.exp(nats),
        "mixture_perplexity_standard_error": math.exp(nats)
        * self._standard_error(self.mixed),
      }
    return {
      "nats_per_token": self.nats_per_token,
      "nats_per_token_standard_error": self.standard_error,
      "perplexity": self.perplexity,
      "perplexity_standard_error": self.perplexity * self.standard_error,
      "bits_per_byte": self.bits_per_byte,
      "bits_per_byte_standard_error": per_byte * self.standard_error,
      **mixture,
      "bound": "exact" if self.exact else "upper bound (NELBO)",
      "tokens": int(self.tokens.sum()),
      "bytes": int(self.bytes.sum()),
      "sequences": len(self.nats),
      "draws": self.draws,
    }


class Evaluator:
  """Evaluates parameters on held-out sequences; compiles once."""

  def __init__(self, objective: Objective, corpus: data.Corpus, mesh: Mesh):
    config = objective.config.evaluate
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = min(config.batch_size, len(corpus.validation))
    self._batch_size = -(-rows // ways) * ways
    self.corpus = corpus
    self._objective = objective
    self._sharding = sharding.batch_sharding(mesh)
    lengths = jnp.asarray(corpus.tokenizer.token_bytes)
    self._sums = jax.jit(functools.partial(_row_sums, objective, config, lengths))

  @property
  def batches(self) -> int:
    """How many batches a run takes."""
    return -(-self._total // self._batch_size)

  @property
  def _total(self) -> int:
    limit, held_out = self._objective.config.evaluate.sequences, self.corpus.validation
    return len(held_out) if limit is None else min(limit, len(held_out))

  def run(self, params, advance: Callable[[], None] = lambda: None) -> Likelihood:
    """The likelihood of the held-out sequences; calls `advance` after each batch."""
    parts = []
    for examples, rows in data.evaluation_batches(
      self.corpus.validation, self._batch_size, self._total
    ):
      batch = jax.device_put(Batch(**examples, row=rows), self._sharding)
      parts.append(jax.device_get(self._sums(params, batch)))
      advance()
    nats, mixed, tokens, sizes = (
      np.concatenate(column)[: self._total].astype(np.float64)
      for column in zip(*parts, strict=True)
    )
    counted = tokens > 0  # a last row that holds nothing but BOS
    config = self._objective.config
    several = config.evaluate.draws > 1 and self._objective.has_drawn_orders
    nats = nats[counted]
    return Likelihood(
      nats,
      mixed[counted] if several else nats,
      tokens[counted],
      sizes[counted],
      config.evaluate.draws,
      exact=self._objective.one_stream,
    )


def _row_sums(
  objective: Objective, config: EvaluateConfig, lengths, params, batch: Batch
):
  """Nats (mean over draws and mixture), counted tokens and their bytes of each row."""
  root = stream_key(config.seed, EVALUATE)
  shared = row_keys(root, SHARED_DRAW, batch.row)

  def draw(_, number):
    keys = row_keys(root, number, batch.row)
    nats, streams = objective.evaluation_nats(
      params, batch, keys, shared, number, config.draws
    )
    sizes = jnp.where(streams.counted, lengths[streams.target], 0).sum(-1)
    rows = weighted(nats, streams.weight).sum(-1)
    return None, (rows, streams.counted.sum(-1), sizes)

  _, (nats, tokens, sizes) = jax.lax.scan(draw, None, jnp.arange(config.draws))
  return nats.mean(0), mixture_nats(nats), tokens[0], sizes[0]


def mixture_nats(nats: Float[Array, "K *B"]) -> Float[Array, "*B"]:
  """Minus the log of the mean over K orders of exp(-nats) (METHOD section 4).

  For orders drawn from the policy this is, in expectation, an upper bound of -log p
  that decreases in K; for K = 1 it is the NELBO.
  """
  return math.log(nats.shape[0]) - jax.nn.logsumexp(-nats, axis=0)


def unigram_bits_per_byte(corpus: data.Corpus) -> float:
  """Bits per byte of the training text's token frequencies on the held-out text.

  Frequencies are smoothed by one, BOS and padding are not counted: the baseline that
  any model of text has to beat.
  """

  def counts(blocks: data.Blocks) -> np.ndarray:
    vocabulary = corpus.tokenizer.vocabulary
    found = np.bincount(blocks.tokens.ravel(), minlength=vocabulary.size)
    found[[vocabulary.bos, vocabulary.pad, vocabulary.mask]] = 0
    return found

  train, held_out = counts(corpus.train) + 1, counts(corpus.validation)
  bits = -(held_out * np.log2(train / train.sum())).sum()
  return float(bits / (held_out * corpus.tokenizer.token_bytes).sum())
