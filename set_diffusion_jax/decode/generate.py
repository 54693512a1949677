"""From texts with gaps to finished texts: batching, stopping, and streaming."""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.data import Tokenizer
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.loop import decode
from set_diffusion_jax.decode.state import Task
from set_diffusion_jax.decode.stops import Stops
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.order import (
  Order,
  given_order,
  groups,
  position_offset,
  step_sets,
)
from set_diffusion_jax.rng import DECODE, row_keys, split_rows, stream_key

# Texts are padded to a multiple of this, so that few shapes are compiled.
BUCKET = 64
# Steps between two looks at the text, where something is to be looked for.
LOOK_EVERY = 8


class Progress(NamedTuple):
  """A look at the texts while they are generated.

  Attributes:
    tokens: int32 [B, S], [MASK] where nothing is committed yet.
    committed: bool [B, S].
    steps: int32 [B], forward passes so far, see `DecodeState`.
  """

  tokens: np.ndarray
  committed: np.ndarray
  steps: np.ndarray


class Generation:
  """One batch of texts on its way; iterate to watch it, then ask for the results.

  Args:
    objective: what was trained.
    params: of its network.
    tokenizer: ids to text.
    options: how to decode.
    templates: ids of each text, [MASK] where a token is wanted.
    seed: text i is keyed by (seed, i), whatever else is in the batch.
    position: int [S] or [B, S], an order of the user's in which positions are generated
      one by one; needs commit=order.
    first_row: the number of the first text, where the batch is a part of many.

  Raises:
    UserError: a text that the method cannot complete.
  """

  def __init__(
    self,
    objective: Objective,
    params,
    tokenizer: Tokenizer,
    options: DecodeConfig,
    templates: Sequence[np.ndarray],
    seed: int,
    position: np.ndarray | None = None,
    first_row: int = 0,
  ):
    self._params, self._tokenizer, self._rows = params, tokenizer, len(templates)
    self._lengths = [len(t) for t in templates]
    _check(objective, options, templates)
    length = -(-max(self._lengths) // BUCKET) * BUCKET
    if objective.config.method.name == "masked":
      length = objective.config.data.length  # what is not wanted stays [MASK]
    mask = objective.mask_id
    tokens = np.full((self._rows, length), mask, np.int32)
    there = np.zeros((self._rows, length), bool)
    for i, template in enumerate(templates):
      tokens[i, : len(template)] = template
      there[i, : len(template)] = True
    given = there & (tokens != mask)
    numbers = first_row + jnp.arange(self._rows)
    keys = row_keys(stream_key(seed, DECODE), 0, numbers)
    order_keys, keys = split_rows(keys)
    order = _order(objective, options, tokens, there, given, order_keys, position)
    wanted = there & ~given
    widest = _widest(objective, np.asarray(order.rank), length)
    self._decoder = Decoder(objective, options, widest)
    task = Task(*map(jnp.asarray, (tokens, given, wanted)), order, keys)
    prefill = _bucket(int(given.sum(-1).max()))
    self.state = _start(self._decoder, params, task, prefill)
    self._given, self._began = given, time.perf_counter()
    self._stopped: dict[int, tuple[int, str]] = {}

  def run(self, stops: Stops | None = None, every: int = 2**30) -> Iterator[Progress]:
    """Generates; yields a `Progress` after every so many steps."""
    stops = stops or Stops()
    looking = stops != Stops()
    chunk = min(every, LOOK_EVERY) if looking else every
    while self._unfinished().any():
      self.state = _decode(self._decoder, self._params, self.state, chunk)
      if looking:
        self._look(stops)
      yield self._progress()

  def finish(self, stops: Stops | None = None) -> list[dict]:
    """Generates to the end; the results."""
    for _ in self.run(stops):
      pass
    return self.results()

  def _unfinished(self) -> np.ndarray:
    going = np.array(self._decoder.unfinished(self.state))
    for row in self._stopped:
      going[row] = False
    return going

  def _progress(self) -> Progress:
    state = self.state
    return Progress(*jax.device_get((state.tokens, state.committed, state.steps)))

  def _prefix(self, row: int, committed, *arrays) -> list[np.ndarray]:
    """What is generated without a gap from the first wanted position on."""
    wanted = np.flatnonzero(~self._given[row][: self._lengths[row]])
    done = committed[row, wanted]
    count = len(wanted) if done.all() else int(done.argmin())
    return [array[row, wanted[:count]] for array in arrays]

  def _look(self, stops: Stops) -> None:
    """Notes which rows have met a stop, and how many tokens they keep."""
    tokens, committed, _ = self._progress()
    confidence = np.asarray(self.state.confidence)
    for row in range(self._rows):
      if row not in self._stopped:
        ids, likely = self._prefix(row, committed, tokens, confidence)
        if (found := stops.found(ids, likely, self._tokenizer)) is not None:
          self._stopped[row] = found

  def results(self) -> list[dict]:
    """For each text its "text", "tokens", "steps", "tokens_per_step" and "ended_by"."""
    tokens, committed, steps = self._progress()
    seconds = time.perf_counter() - self._began
    rows = []
    for row in range(self._rows):
      length = self._lengths[row]
      ids = tokens[row, :length]
      ended_by = "length"
      wanted = np.flatnonzero(~self._given[row, :length])
      (new,) = self._prefix(row, committed, tokens)
      eos = np.flatnonzero(new == self._decoder.objective.eos_id)
      if row in self._stopped:
        keep, ended_by = self._stopped[row]
        ids = ids[: wanted[keep] if keep < len(wanted) else length]
      elif self._decoder.decode.stop_at_eos and len(eos):
        ids, ended_by = ids[: wanted[eos[0]] + 1], "eos"
      generated = int((committed[row] & ~self._given[row]).sum())
      rows.append(
        {
          "text": self._tokenizer.decode(ids),
          "tokens": ids.tolist(),
          "steps": int(steps[row]),
          "tokens_per_step": generated / max(int(steps[row]), 1),
          "ended_by": ended_by,
          "seconds": seconds,
        }
      )
    return rows


def _check(objective: Objective, options: DecodeConfig, templates) -> None:
  method, length = objective.config.method.name, objective.config.data.length
  for i, template in enumerate(templates):
    wanted = template == objective.mask_id
    if not wanted.any():
      raise UserError(f"text {i + 1}: has nothing to generate")
    if objective.one_stream and (not len(template) or wanted[0]):
      raise UserError(f"text {i + 1}: must not be empty, the model has no BOS")
    if objective.one_stream and (~wanted[wanted.argmax() :]).any():
      raise UserError(f"text {i + 1}: method ar cannot fill gaps, only continue")
    if method in ("masked", "general") and len(template) > length:
      raise UserError(
        f"text {i + 1}: has {len(template)} tokens, method {method} can complete at "
        f"most data.length = {length}"
      )
  if objective.one_stream and options.tokens_per_step != 1:
    raise UserError(
      f"decode.tokens_per_step = {options.tokens_per_step}: must be 1 for method ar"
    )
  drawn = objective.has_drawn_orders
  if options.commit == "posterior" and not (objective.has_levels or drawn):
    raise UserError(
      f'decode.commit = "posterior": method {method} has no noise schedule; use order'
    )
  if options.drafts is not None:
    longest = max(map(len, templates))
    if not drawn:
      raise UserError(f"decode.drafts = {options.drafts}: must be null for {method}")
    if longest > length:
      raise UserError(
        f"decode.drafts = {options.drafts}: needs texts of at most data.length = "
        f"{length} tokens, one has {longest}"
      )


def _order(objective, options, tokens, there, given, keys, position) -> Order:
  row = jnp.arange(len(tokens))
  if options.promotion == "passed":  # what waits has its turn like what is wanted
    given = given & (np.cumsum(there & ~given, axis=-1) == 0)
  batch = Batch(jnp.asarray(tokens), jnp.asarray(there), jnp.asarray(given), row)
  if position is None:
    grid = options.commit == "posterior" and objective.one_at_a_time
    each = options.tokens_per_step if grid else None
    return _draw(objective, each, batch, keys)
  if not objective.one_at_a_time or objective.one_stream:
    name = objective.config.method.name
    raise UserError(f"order: method {name} has an order of its own")
  length = tokens.shape[-1]
  rest = np.arange(position.shape[-1], length)
  position = np.broadcast_to(position, (len(tokens), position.shape[-1]))
  rest = np.broadcast_to(rest, (len(tokens), len(rest)))
  position = jnp.asarray(np.concatenate([position, rest], axis=-1), jnp.int32)
  return given_order(position, groups(batch.valid, batch.context))


def _widest(objective: Objective, rank: np.ndarray, length: int) -> int:
  """The most positions that a set of these orders has."""
  method = objective.config.method
  if objective.one_at_a_time:
    return 1
  if method.name == "block":
    return method.block_size
  if method.name == "masked":
    return length
  return _bucket(max(int(np.bincount(row).max()) for row in rank))


def _bucket(count: int) -> int:
  """The next power of two; 0 for 0."""
  return 1 << (count - 1).bit_length() if count else 0


_start = jax.jit(Decoder.start, static_argnums=(0, 3))
_decode = jax.jit(decode, static_argnums=0, donate_argnums=2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(objective: Objective, tokens_per_step: float | None, batch: Batch, keys):
  """An order; with a number of tokens a step, cut into the steps of a grid."""
  if tokens_per_step is None:
    return objective.draw_order(batch, keys, False)
  method = objective.config.method
  length = max(objective.config.data.length, batch.tokens.shape[-1])
  schedule = position_offset(method, length)
  group = groups(batch.valid, batch.context)
  return step_sets(schedule, math.ceil(length / tokens_per_step), keys, group)
