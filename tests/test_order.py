"""Orders: permutations that respect context and padding, drawn row by row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.config import MethodConfig
from set_diffusion_jax.diffusion.draws import TRAIN, row_keys, stream_key
from set_diffusion_jax.diffusion.order import draw_order, groups, sliding_window
from set_diffusion_jax.diffusion.schedules import PositionOffset


def keys(rows, seed=0):
  return row_keys(stream_key(seed, TRAIN), 0, jnp.arange(rows))


def free(rows, length):
  return groups(jnp.ones((rows, length), bool), jnp.zeros((rows, length), bool))


def chi_square(schedule, draws=6000):
  """The chi-square statistic of sampled orders of 4 positions against uniform ones."""
  order = sliding_window(schedule, keys(draws), free(draws, 4))
  names = {p: i for i, p in enumerate(itertools.permutations(range(4)))}
  found = np.bincount([names[tuple(p)] for p in order.position.tolist()], minlength=24)
  return ((found - draws / 24) ** 2 / (draws / 24)).sum()


def test_full_width_gives_uniform_orders():
  critical = 49.7  # the 0.1% point of chi-square with 23 degrees of freedom
  assert chi_square(PositionOffset(4, 1.0, 1.0)) < critical
  assert chi_square(PositionOffset(4, 1.0, 0.3)) < critical  # whatever the power
  assert chi_square(PositionOffset(4, 0.9, 1.0)) > critical  # the biased control


def test_width_one_over_length_is_left_to_right():
  length = 16
  order = sliding_window(
    PositionOffset(length, 1 / length, 0.4), keys(50), free(50, length)
  )
  assert (np.asarray(order.position) == np.arange(length)).all()


def test_only_the_next_positions_can_overtake():
  """With N active at once, at most N - 1 later positions come before one."""
  size, length = 4, 32
  order = draw_order(
    MethodConfig("set", float(size)), length, keys(500), free(500, length)
  )
  slot = np.argsort(order.position, axis=-1)
  for distance in range(size, length):
    assert (slot[:, distance:] > slot[:, :-distance]).all()
  assert (slot[:, size - 1 :] < slot[:, : -size + 1]).any()


def test_context_first_padding_last_and_in_text_order():
  length = 12
  context, valid = np.zeros((3, length), bool), np.ones((3, length), bool)
  context[0, [0, 5, 6]] = True  # infilling: context on both sides
  context[1, :4] = True
  valid[1, 9:] = False
  group = groups(jnp.asarray(valid), jnp.asarray(context))
  order = draw_order(MethodConfig("set", 6.0), length, keys(3), group)
  position = np.asarray(order.position)
  assert (np.sort(position) == np.arange(length)).all()
  assert position[0, :3].tolist() == [0, 5, 6]
  assert position[1, :4].tolist() == [0, 1, 2, 3]
  assert position[1, 9:].tolist() == [9, 10, 11]
  assert (np.asarray(order.rank) == np.arange(length)).all()


def test_a_row_is_drawn_alike_in_any_batch():
  method, root = MethodConfig("set", 8.0), stream_key(3, TRAIN)
  rows = jnp.array([7, 2, 9])
  together = draw_order(method, 32, row_keys(root, 5, rows), free(3, 32))
  alone = draw_order(method, 32, row_keys(root, 5, rows[1:2]), free(1, 32))
  np.testing.assert_array_equal(together.position[1:2], alone.position)
  other_step = draw_order(method, 32, row_keys(root, 6, rows), free(3, 32))
  assert (together.position != other_step.position).any()


def test_orders_do_not_depend_on_how_they_are_compiled():
  method = MethodConfig("set", 8.0)
  draw = lambda k: draw_order(method, 32, k, free(4, 32)).position
  np.testing.assert_array_equal(draw(keys(4)), jax.jit(draw)(keys(4)))
