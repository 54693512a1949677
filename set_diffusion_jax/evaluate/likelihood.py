"""Evaluates held-out sequences: batches of them, and the sums of each one."""

import collections
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from set_diffusion_jax import data, sharding
from set_diffusion_jax.diffusion.corruption import Batch, Streams
from set_diffusion_jax.diffusion.draws import (
  EVALUATE,
  SHARED_DRAW,
  row_keys,
  stream_key,
)
from set_diffusion_jax.diffusion.order import given_order, groups
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.evaluate.clip import Clip, SetLosses, search_clip, set_losses
from set_diffusion_jax.evaluate.figures import Likelihood, draw_variance, mixture_nats
from set_diffusion_jax.evaluate.partial import Row
from set_diffusion_jax.inputs.arrays import read_array
from set_diffusion_jax.jobs.phases import here
from set_diffusion_jax.likelihood.loss import weighted
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.numerics import settled


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

  Args:
    objective: what is evaluated.
    held_out: the sequences.
    mesh: of the devices.
    by: the figures of a row are followed by `detail`, its nats by "token", which is by
      text position, or by "rank", which is by set in the order of generation.

  Raises:
    UserError: a given order does not fit the sequences.
  """

  def __init__(
    self,
    objective: Objective,
    held_out: data.Blocks,
    mesh: Mesh,
    by: str | None = None,
  ):
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
      functools.partial(_row_sums, objective, by),
      out_shardings=sharding.replicated(mesh),
    )

  @property
  def order_digest(self) -> str | None:
    """SHA-256 of the positions that a file of orders gives; None for other orders."""
    if self.objective.config.evaluate.order in _NAMED_ORDERS:
      return None
    return hashlib.sha256(self._order.tobytes()).hexdigest()

  @settled()
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
    for rows, used, (figures, batch_losses) in self._batches(params, todo):
      figures = map(tuple, figures[used].tolist())
      new = dict(zip(rows[used].tolist(), figures, strict=True))
      done |= new
      if batch_losses is not None:
        losses.append(batch_losses)
      advance(new)
      here.tick()
    sums = [done[row][:SUMS] for row in range(self.total)]
    columns = np.array(sums, np.float64).T
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

  def _likelihood(self, nats, mixed, tokens, sizes, variance) -> Likelihood:
    counted = tokens > 0  # a last row that holds nothing but context
    columns = nats, mixed, tokens, sizes, variance
    nats, mixed, tokens, sizes, variance = (x[counted] for x in columns)
    objective, draws = self.objective, _draws(self.objective)
    exact = objective.one_stream or self._order is not None
    mixed = mixed if draws > 1 and objective.config.method.mixes else nats
    return Likelihood(nats, mixed, tokens, sizes, variance, draws, exact)


def _draws(objective: Objective) -> int:
  """Monte Carlo draws of a sequence; where nothing is drawn, one."""
  return 1 if objective.one_stream else objective.config.evaluate.draws


_NAMED_ORDERS = ("drawn", "left_to_right")  # any other one is a file


def _read_order(order: str, length: int, sequences: int) -> np.ndarray | None:
  """evaluate.order as int32 [1 or n, L]; None where orders are drawn."""
  if order in _NAMED_ORDERS:
    every = np.arange(length, dtype=np.int32)[None]
    return every if order == "left_to_right" else None
  where = f'evaluate.order = "{order}"'
  position = np.atleast_2d(read_array(pathlib.Path(order), where))
  if position.shape not in ((1, length), (sequences, length)):
    right = f"must be [{length}] or [{sequences}, {length}]"
    raise UserError(f"{where}: has shape {list(position.shape)}, {right}")
  if not (np.sort(position, axis=-1) == np.arange(length)).all():
    raise UserError(f"{where}: each row must be a permutation of 0..{length - 1}")
  return position.astype(np.int32)


# Sums of a row, which stand before its figures by token.
SUMS = 5


def _row_sums(
  objective: Objective, by: str | None, params, batch: Batch, sizes, position
):
  """Sums of each row, and the losses of sets if a clip is to be searched.

  Args:
    objective: what is evaluated.
    by: of `Evaluator`.
    params: of its network.
    batch: B rows.
    sizes: int32 [B, L], bytes of text by text position.
    position: a given order, int32 [B, L], or None.

  Returns:
    float32 [B, SUMS]: nats (mean over draws), nats (mixture of draws), counted tokens,
    their bytes, variance of nats over draws; with `by` [B, SUMS + 2 L], followed by
    `detail`. Then `SetLosses` [draws, B, R] or None.
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
    each = weighted(nats, streams.weight)
    of = {None: None, "token": place, "rank": _target_rank(objective, streams)}[by]
    at = None if by is None else _added(of, each, streams.counted)
    losses = None
    if objective.has_levels and config.corruption.clip_width is not None:
      losses = set_losses(streams, nats, noise.level, config.loss.weighting)
    sums = each.sum(-1), streams.counted.sum(-1), counted_bytes.sum(-1)
    return None, (*sums, at, losses)

  _, results = jax.lax.scan(draw, None, jnp.arange(draws))
  nats, tokens, total_bytes, at, losses = results
  spread = draw_variance(nats)
  sums = nats.mean(0), mixture_nats(nats), tokens[0], total_bytes[0], spread
  figures = jnp.stack(sums, axis=-1)
  if by is not None:
    figures = jnp.concatenate([figures, at.mean(0)], axis=-1)
  return figures, losses


def _target_rank(objective: Objective, streams: Streams) -> Int[Array, "B R"]:
  """The rank of what each slot predicts; the last slot of one stream predicts none."""
  rank = streams.index.rank[:, -streams.target.shape[-1] :]
  return jnp.roll(rank, -1, axis=-1) if objective.one_stream else rank


def _added(
  at: Int[Array, "B R"], nats: Float[Array, "B R"], counted: Bool[Array, "B R"]
) -> Float[Array, "B 2*R"]:
  """Nats of the counted slots with each number, then how many slots these are."""

  def row(at, *values):
    found = [jnp.zeros_like(nats[0]).at[at].add(x, mode="drop") for x in values]
    return jnp.concatenate(found)

  nats = jnp.where(counted, nats, 0.0)
  return jax.vmap(row)(at, nats, counted.astype(nats.dtype))


class Detail(NamedTuple):
  """Figures of a sequence by token or by rank, means over its draws.

  Attributes:
    number: int [n], text positions or ranks that have counted tokens.
    nats: float64 [n], summed over them; all together are the nats of the sequence.
    tokens: float64 [n], how many they are.
  """

  number: np.ndarray
  nats: np.ndarray
  tokens: np.ndarray


def detail(row: Row) -> Detail:
  """What follows the sums of a row's figures, of an `Evaluator` with `by`."""
  nats, tokens = np.split(np.array(row[SUMS:], np.float64), 2)
  number = np.flatnonzero(tokens)
  return Detail(number, nats[number], tokens[number])


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
