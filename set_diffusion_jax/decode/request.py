"""What a batch of texts asks of the decoder: whether it can, orders, sizes.

Nothing here depends on what else is in the batch but array sizes.

Legend: B texts, S positions that they are padded to.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.data.vocabulary import among
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.diffusion.order import (
  Order,
  given_order,
  groups,
  position_offset,
  step_sets,
)
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.likelihood.objective import Objective


def check(
  objective: Objective, options: DecodeConfig, templates: Sequence[np.ndarray]
) -> None:
  """Raises UserError for a text or an option that the method cannot follow."""
  method, length = objective.config.method, objective.config.data.length
  for i, template in enumerate(templates):
    wanted = template == objective.mask_id
    if not wanted.any():
      raise UserError(f"text {i + 1}: has nothing to generate")
    if objective.one_stream and (not len(template) or wanted[0]):
      raise UserError(f"text {i + 1}: must not be empty, the model has no BOS")
    if objective.one_stream and (~wanted[wanted.argmax() :]).any():
      raise UserError(f"text {i + 1}: method ar cannot fill gaps, only continue")
    if method.whole_texts and len(template) > length:
      raise UserError(
        f"text {i + 1}: has {len(template)} tokens, method {method.name} can complete "
        f"at most data.length = {length}"
      )
  if objective.one_stream and options.tokens_per_step != 1:
    raise UserError(
      f"decode.tokens_per_step = {options.tokens_per_step}: must be 1 for method ar"
    )
  drawn = objective.has_drawn_orders
  revealed = drawn and method.has_schedule
  if options.commit == "posterior" and not (objective.has_levels or revealed):
    raise UserError(
      f'decode.commit = "posterior": method {method.name} has no noise schedule; use '
      "order"
    )
  if options.drafts is not None:
    longest = max(map(len, templates))
    if not drawn:
      right = f"must be null for {method.name}"
      raise UserError(f"decode.drafts = {options.drafts}: {right}")
    if longest > length:
      raise UserError(
        f"decode.drafts = {options.drafts}: needs texts of at most data.length = "
        f"{length} tokens, one has {longest}"
      )
  _check_unread(objective, options)
  never = {objective.mask_id, *options.forbidden}
  never |= {objective.eos_id} if options.minimum_length else set()
  unused = among(objective.unused, objective.network.vocab_size)
  unused[list(never)] = True
  if unused.all():
    raise UserError("decode.forbidden: leaves no id to choose from")


def _check_unread(objective: Objective, options: DecodeConfig) -> None:
  """UserError for an option that decoding would not read."""
  method, size = objective.config.method, objective.network.vocab_size
  if options.threshold is not None and options.commit == "posterior":
    raise UserError(
      f"decode.threshold = {options.threshold}: must be null for commit=posterior, "
      "which the noise schedule alone decides on"
    )
  windowed = method.single_set or (method.one_at_a_time and not method.one_stream)
  if options.window is not None and not windowed:
    raise UserError(
      f"decode.window = {options.window}: must be null for method {method.name}, whose "
      "candidates are those of a set"
    )
  wrong = [i for i in options.forbidden if not 0 <= i < size]
  if wrong:
    raise UserError(f"decode.forbidden: has {wrong[0]}; ids must be in [0, {size})")


def orders(
  objective: Objective,
  options: DecodeConfig,
  tokens: np.ndarray,
  there: np.ndarray,
  given: np.ndarray,
  keys: Key[Array, " B"],
  position: np.ndarray | None,
) -> Order:
  """The order of each text, drawn or the user's own.

  Args:
    objective: what was trained.
    options: how to decode.
    tokens: int32 [B, S].
    there: bool [B, S], False after the end of a text.
    given: bool [B, S].
    keys: one a text.
    position: int [S] or [B, S], an order of the user's; None: it is drawn.

  Raises:
    UserError: the method has an order of its own.
  """
  row = np.arange(len(tokens))
  if options.promotion == "passed":  # what waits has its turn like what is wanted
    given = given & (np.cumsum(there & ~given, axis=-1) == 0)
  batch = Batch(tokens, there, given, row)
  if position is None:
    return _drawn(objective, options, batch, keys)
  if not objective.one_at_a_time or objective.one_stream:
    name = objective.config.method.name
    raise UserError(f"order: method {name} has an order of its own")
  length = tokens.shape[-1]
  rest = np.arange(position.shape[-1], length)
  position = np.broadcast_to(position, (len(tokens), position.shape[-1]))
  rest = np.broadcast_to(rest, (len(tokens), len(rest)))
  position = jnp.asarray(np.concatenate([position, rest], axis=-1), jnp.int32)
  return given_order(position, groups(jnp.asarray(there), jnp.asarray(given)))


def _drawn(objective: Objective, options: DecodeConfig, batch: Batch, keys) -> Order:
  """Orders from the schedule of each text's own length, whatever else is in the batch.

  That is data.length, or the text's where it is longer.
  """
  grid = options.commit == "posterior" and objective.one_at_a_time
  each = float(options.tokens_per_step) if grid else None
  size, length = batch.tokens.shape[-1], objective.config.data.length
  if not objective.config.method.record.drawn:
    return _draw(objective, each, size, batch, keys)
  own = np.maximum(batch.valid.sum(-1), length)
  position = np.broadcast_to(np.arange(size, dtype=np.int32), batch.tokens.shape).copy()
  rank = position.copy()
  for length in np.unique(own).tolist():
    rows = np.flatnonzero(own == length)
    cut = lambda x, rows=rows, length=length: x[rows, :length]
    part = Batch(*map(cut, batch[:3]), batch.row[rows])
    found = jax.device_get(_draw(objective, each, length, part, keys[rows]))
    used = found.position.shape[-1]  # after it come only positions that are not there
    position[rows, :used], rank[rows, :used] = found
    rank[rows, used:] += found.rank[:, -1:] + 1 - used
  return Order(jnp.asarray(position), jnp.asarray(rank))


def widest_set(
  objective: Objective, options: DecodeConfig, order: Order, wanted: np.ndarray
) -> int:
  """The most positions that a set of these orders has, or an interval of a grid."""
  method, length = objective.config.method, wanted.shape[-1]
  if objective.one_at_a_time:
    if options.commit != "posterior":
      return 1
    missing = np.take_along_axis(wanted, np.asarray(order.position), axis=-1)
  elif method.aligned_sets:
    return method.reach(length)
  else:
    missing = np.ones_like(wanted)
  counts = (
    np.bincount(rank, there).max()
    for rank, there in zip(np.asarray(order.rank), missing, strict=True)
  )
  return min(bucket(int(max(counts))), length)


def bucket(count: int) -> int:
  """The next power of two; 0 for 0."""
  return 1 << (count - 1).bit_length() if count else 0


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(
  objective: Objective, tokens_per_step: float | None, length: int, batch: Batch, keys
) -> Order:
  """An order; with a number of tokens a step, cut into the steps of a grid.

  The schedule, if there is one, is that of texts of `length` tokens.
  """
  if tokens_per_step is None:
    return objective.draw_order(batch, keys, False, length)
  method = objective.config.method
  schedule = position_offset(method, length)
  group = groups(batch.valid, batch.context)
  return step_sets(schedule, math.ceil(length / tokens_per_step), keys, group)
