"""Held-out likelihood: nats, perplexity and bits per byte, with standard errors."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from set_diffusion_jax import data, sharding
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.evaluate.clip import Clip, SetLosses, search_clip, set_losses
from set_diffusion_jax.evaluate.partial import Row
from set_diffusion_jax.loss import weighted
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.order import given_order, groups
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
    """exp(nats per token); infinite where that overflows."""
    return _exp(self.nats_per_token)

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
    """The figures as plain JSON values; None for what is not finite."""
    per_byte = float(self.tokens.sum() / self.bytes.sum() / math.log(2))
    mixture = {}
    if self.mixed is not self.nats:
      nats = float(self.mixed.sum() / self.tokens.sum())
      mixture = {
        "mixture_nats_per_token": nats,
        "mixture_perplexity": _exp(nats),
        "mixture_perplexity_standard_error": _exp(nats)
        * self._standard_error(self.mixed),
      }
    figures = {
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
    infinite = lambda x: isinstance(x, float) and not math.isfinite(x)
    return {name: None if infinite(x) else x for name, x in figures.items()}


def _exp(x: float) -> float:
  return math.exp(x) if x < 700 else math.inf


class Evaluation(NamedTuple):
  """What one run over the held-out sequences yields.

  Attributes:
    likelihood: the figures.
    clip: with corruption.clip_width, the range of noise levels that training is to
      draw from next; None where there was no search, or too little to search in.
  """

  likelihood: Likelihood
  clip: Clip | None


class Evaluator:
  """Evaluates parameters on held-out sequences; compiles once.

  Draws are keyed by the number of a sequence, so that its figures depend neither on the
  devices nor on the batch size.

  Raises:
    UserError: a given order does not fit the sequences.
  """

  def __init__(self, objective: Objective, held_out: data.Blocks, mesh: Mesh):
    config = objective.config.evaluate
    total = len(held_out)
    self.total = total if config.sequences is None else min(config.sequences, total)
    ways = sharding.row_ways(mesh)
    self._batch_size = -(-min(config.batch_size, self.total) // ways) * ways
    self.held_out = held_out
    self.objective = objective
    self._order = _read_order(config.order, objective.config.data.length, self.total)
    self._sharding = sharding.batch_sharding(mesh)
    # Every process has all figures, and goes through the same batches.
    self._sums = jax.jit(
      functools.partial(_row_sums, objective), out_shardings=sharding.replicated(mesh)
    )

  def run(
    self,
    params,
    advance: Callable[[dict[int, Row]], None] = lambda rows: None,
    before: Mapping[int, Row] = MappingProxyType({}),
  ) -> Evaluation:
    """Evaluates the held-out sequences.

    Args:
      params: of the network.
      advance: is told after each batch which rows it did, with their figures.
      before: rows that were done before, in all processes the same.
    """
    done: dict[int, Row] = dict(before)
    todo = np.array([row for row in range(self.total) if row not in done], np.int64)
    losses = []
    for rows, used, (columns, batch_losses) in self._batches(params, todo):
      figures = np.stack(columns, axis=-1)[used].tolist()
      new = dict(zip(rows[used].tolist(), map(tuple, figures), strict=True))
      done |= new
      if batch_losses is not None:
        losses.append(batch_losses)
      advance(new)
    columns = np.array([done[row] for row in range(self.total)], np.float64).T
    clip = None
    if losses:
      parts = zip(*losses, strict=True)
      together = SetLosses(*(np.concatenate([p.ravel() for p in x]) for x in parts))
      clip = search_clip(together, self.objective.config.corruption.clip_width)
    return Evaluation(self._likelihood(*columns), clip)

  def _batches(self, params, todo: np.ndarray):
    """The row numbers, used rows and figures of each batch.

    A batch is computed while the one before it is looked at and the next one is read.
    """
    computed: collections.deque = collections.deque()
    for examples, sizes, rows in data.evaluation_batches(
      self.held_out, todo, self._batch_size
    ):
      order = None if self._order is None else self._order[rows % len(self._order)]
      batch = Batch(**examples, row=rows)
      arguments = sharding.place((batch, sizes, order), self._sharding)
      used = examples["valid"].any(-1)
      computed.append((rows, used, self._sums(params, *arguments)))
      if len(computed) > 1:
        yield jax.device_get(computed.popleft())
    while computed:
      yield jax.device_get(computed.popleft())

  def _likelihood(self, nats, mixed, tokens, sizes) -> Likelihood:
    counted = tokens > 0  # a last row that holds nothing but context
    nats, mixed, tokens, sizes = (x[counted] for x in (nats, mixed, tokens, sizes))
    objective, draws = self.objective, _draws(self.objective)
    exact = objective.one_stream or self._order is not None
    mixed = mixed if draws > 1 and objective.has_drawn_orders else nats
    return Likelihood(nats, mixed, tokens, sizes, draws, exact)


def _draws(objective: Objective) -> int:
  """Monte Carlo draws of a sequence; where nothing is drawn, one."""
  return 1 if objective.one_stream else objective.config.evaluate.draws


def _read_order(order: str, length: int, sequences: int) -> np.ndarray | None:
  """evaluate.order as int32 [1 or n, L]; None where orders are drawn."""
  if order == "drawn":
    return None
  if order == "left_to_right":
    return np.arange(length, dtype=np.int32)[None]
  where = f'evaluate.order = "{order}"'
  try:
    position = np.load(order, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    reason = getattr(error, "strerror", None) or "not an array of numbers"
    raise UserError(f"{where}: {reason}; give a .npy file of positions") from None
  position = np.atleast_2d(position)
  if position.shape not in ((1, length), (sequences, length)):
    right = f"must be [{length}] or [{sequences}, {length}]"
    raise UserError(f"{where}: has shape {list(position.shape)}, {right}")
  if not (np.sort(position, axis=-1) == np.arange(length)).all():
    raise UserError(f"{where}: each row must be a permutation of 0..{length - 1}")
  return position.astype(np.int32)


def _row_sums(objective: Objective, params, batch: Batch, sizes, position):
  """Sums of each row, and the losses of sets if a clip is to be searched.

  Args:
    objective: what is evaluated.
    params: of its network.
    batch: B rows.
    sizes: int32 [B, L], bytes of text by text position.
    position: a given order, int32 [B, L], or None.

  Returns:
    float32 [B] each: nats (mean over draws), nats (mixture of draws), counted tokens,
    their bytes. Then `SetLosses` [draws, B, R] or None.
  """
  config = objective.config
  draws = _draws(objective)
  root = stream_key(config.evaluate.seed, EVALUATE)
  shared = row_keys(root, SHARED_DRAW, batch.row)
  order = None
  if position is not None:
    order = given_order(position, groups(batch.valid, batch.context))

  def draw(_, number):
    keys = row_keys(root, number, batch.row)
    nats, streams, noise = objective.evaluation_nats(
      params, batch, keys, shared, number, draws, order
    )
    slots = streams.target.shape[-1]
    place = streams.index.position[:, -slots:] + int(objective.one_stream)
    place = jnp.minimum(place, slots - 1)
    counted_bytes = jnp.take_along_axis(sizes, place, axis=-1) * streams.counted
    rows = weighted(nats, streams.weight).sum(-1)
    losses = None
    if objective.has_levels and config.corruption.clip_width is not None:
      losses = set_losses(streams, nats, noise.level, config.loss.weighting)
    return None, (rows, streams.counted.sum(-1), counted_bytes.sum(-1), losses)

  _, results = jax.lax.scan(draw, None, jnp.arange(draws))
  nats, tokens, total_bytes, losses = results
  return (nats.mean(0), mixture_nats(nats), tokens[0], total_bytes[0]), losses


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
  size = corpus.tokenizer.vocabulary.size
  train, _ = corpus.train.text.read(0, corpus.train.text.tokens)
  held_out, sizes = corpus.validation.text.read(0, corpus.validation.text.tokens)
  train = np.bincount(train, minlength=size) + 1
  bits = -(np.bincount(held_out, minlength=size) * np.log2(train / train.sum())).sum()
  return float(bits / sizes.sum())
