"""From texts with gaps to finished texts: batching, stopping, and streaming."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.data import Tokenizer
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.loop import decode
from set_diffusion_jax.decode.request import bucket, check, orders, widest_set
from set_diffusion_jax.decode.state import Task
from set_diffusion_jax.decode.stops import Stops
from set_diffusion_jax.diffusion.draws import DECODE, row_keys, split_rows, stream_key
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.numerics import settled

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

  @settled()
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
    check(objective, options, templates)
    longest, trained = max(self._lengths), objective.config.data.length
    length = -(-longest // BUCKET) * BUCKET
    if objective.config.method.single_set or longest <= trained < length:
      length = trained  # of masked diffusion, what is not wanted stays [MASK]
    options = _within(options, length)
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
    wanted = there & ~given
    order = orders(objective, options, tokens, there, given, order_keys, position)
    widest = widest_set(objective, options, order, wanted)
    self._decoder = Decoder(objective, options, widest)
    task = Task(*map(jnp.asarray, (tokens, given, wanted)), order, keys)
    prefill = bucket(int(given.sum(-1).max()))
    self.state = _start(self._decoder, params, task, prefill)
    self._given, self._ends = given, np.asarray(self.state.end).tolist()
    self._began = time.perf_counter()
    # Row -> how many of its generated tokens it keeps, why, and the steps it took.
    self._stopped: dict[int, tuple[int, str, int]] = {}

  def run(self, stops: Stops | None = None, every: int = 2**30) -> Iterator[Progress]:
    """Generates; yields a `Progress` after every so many steps."""
    stops = stops or Stops()
    looking = stops != Stops()
    chunk = min(every, LOOK_EVERY) if looking else every
    while True:
      with settled():  # while this code runs, and not while it waits for its reader
        if not self._unfinished().any():
          return
        self.state = _decode(self._decoder, self._params, self.state, chunk)
        if looking:
          self._look(stops)
        progress = self._progress()
      yield progress

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

  def _written(self, row: int, committed: np.ndarray) -> slice:
    """What was generated after all given tokens, if nothing is missing before it.

    Only there a text can end early.
    """
    done = committed[row, : self._lengths[row]]
    return slice(self._ends[row], len(done) if done.all() else int(done.argmin()))

  def _look(self, stops: Stops) -> None:
    """Notes which rows have met a stop, and how many tokens they keep."""
    tokens, committed, steps = self._progress()
    confidence = np.asarray(self.state.confidence)
    for row in range(self._rows):
      if row not in self._stopped and self._ends[row] < self._lengths[row]:
        at = self._written(row, committed)
        found = stops.found(tokens[row, at], confidence[row, at], self._tokenizer)
        if found is not None:
          self._stopped[row] = (*found, int(steps[row]))

  def results(self) -> list[dict]:
    """For each text its "text", "tokens", "steps", "tokens_per_step" and "ended_by"."""
    tokens, committed, steps = self._progress()
    seconds = time.perf_counter() - self._began
    rows = []
    for row in range(self._rows):
      length = self._lengths[row]
      ids, taken = tokens[row, :length], int(steps[row])
      ended_by, end = "length", self._ends[row]
      generated = int((committed[row] & ~self._given[row]).sum())
      if row in self._stopped:
        keep, ended_by, taken = self._stopped[row]
        ids = ids[: end + keep]
      elif self._decoder.decode.stop_at_eos:
        at = self._written(row, committed)
        eos = np.flatnonzero(tokens[row, at] == self._decoder.objective.eos_id)
        if len(eos):
          ids, ended_by = ids[: end + eos[0] + 1], "eos"
      rows.append(
        {
          "text": self._tokenizer.decode(ids),
          "tokens": ids.tolist(),
          "steps": taken,
          "tokens_per_step": generated / max(taken, 1),
          "ended_by": ended_by,
          "seconds": seconds,
        }
      )
    return rows


def _within(options: DecodeConfig, length: int) -> DecodeConfig:
  """The same options, where none counts more positions than there are."""
  few = lambda count: None if count is None else min(count, length)
  names = ("tokens_per_step", "window", "drafts")
  return dataclasses.replace(options, **{n: few(getattr(options, n)) for n in names})


_start = jax.jit(Decoder.start, static_argnums=(0, 3))
_decode = jax.jit(decode, static_argnums=0, donate_argnums=2)
