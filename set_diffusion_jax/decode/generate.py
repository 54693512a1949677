"""From texts with gaps to finished texts: batching, stopping, and streaming."""

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.data import Tokenizer
from set_diffusion_jax.decode.loop import Decoder, Task, decode
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.order import Order, given_order, groups
from set_diffusion_jax.rng import DECODE, row_keys, split_rows, stream_key

# Texts are padded to a multiple of this, so that few shapes are compiled.
BUCKET = 64
# Steps between two looks at the text, where something is to be looked for.
LOOK_EVERY = 8


@dataclasses.dataclass(frozen=True)
class Stops:
  """What ends a text besides EOS and its length; the text is cut off before it.

  Attributes:
    strings: any of these in the generated text.
    pattern: a regular expression that matches in it.
    repeats: so many equal tokens one after another.
    confidence: (n, p): the last n tokens were on average less likely than p.
  """

  strings: tuple[str, ...] = ()
  pattern: str | None = None
  repeats: int | None = None
  confidence: tuple[int, float] | None = None

  def __post_init__(self):
    if self.pattern is not None:
      try:
        re.compile(self.pattern)
      except re.error as error:
        raise UserError(f"--stop-regex={self.pattern}: {error}") from None


class Progress(NamedTuple):
  """A look at the texts while they are generated.

  Attributes:
    tokens: int32 [B, S], [MASK] where nothing is committed yet.
    committed: bool [B, S].
    steps: int32 [B], forward passes so far.
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
    seed: row i is keyed by (seed, i), whatever else is in the batch.
    position: int [S] or [B, S], an order of the user's in which positions are generated
      one by one; needs commit=order.

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
    keys = row_keys(stream_key(seed, DECODE), 0, jnp.arange(self._rows))
    order_keys, keys = split_rows(keys)
    order = _order(objective, tokens, there, given, order_keys, position)
    wanted = there & ~given
    gap = np.where(wanted.any(-1), wanted.argmax(-1), length)
    late = (given & (np.arange(length) > gap[:, None])).sum(-1).max()
    late = _bucket(int(late)) if options.promotion == "passed" else 0
    widest = _widest(objective, np.asarray(order.rank), length)
    self._decoder = Decoder(objective, options, widest, late)
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
        if (found := _stop(stops, ids, likely, self._tokenizer)) is not None:
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
  if options.commit == "posterior" and not objective.has_levels:
    raise UserError(
      f'decode.commit = "posterior": method {method} has no noise levels; use order, '
      "confidence or margin"
    )


def _order(objective, tokens, there, given, keys, position) -> Order:
  row = jnp.arange(len(tokens))
  batch = Batch(jnp.asarray(tokens), jnp.asarray(there), jnp.asarray(given), row)
  if position is None:
    return _draw(objective, batch, keys)
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


def _stop(stops: Stops, ids: np.ndarray, confidence: np.ndarray, tokenizer: Tokenizer):
  """(how many tokens to keep, why) if a text has met a stop; None if not."""
  text = tokenizer.decode(ids)
  cuts = [(text.find(s), f"stop string {s!r}") for s in stops.strings if s in text]
  if stops.pattern is not None and (match := re.search(stops.pattern, text)):
    cuts.append((match.start(), "stop regex"))
  if cuts:
    cut, why = min(cuts)
    keep = 0
    while keep < len(ids) and len(tokenizer.decode(ids[: keep + 1])) <= cut:
      keep += 1
    return keep, why
  if stops.repeats is not None:
    run = 1
    for i in range(1, len(ids)):
      run = run + 1 if ids[i] == ids[i - 1] else 1
      if run >= stops.repeats:
        return i + 2 - run, "repeated token"
  if stops.confidence is not None:
    size, least = stops.confidence
    for end in range(size, len(ids) + 1):
      if confidence[end - size : end].mean() < least:
        return end - size, "low confidence"
  return None


_start = jax.jit(Decoder.start, static_argnums=(0, 3))
_decode = jax.jit(decode, static_argnums=0, donate_argnums=2)
_draw = jax.jit(
  lambda objective, batch, keys: objective.draw_order(batch, keys, False),
  static_argnums=0,
)
