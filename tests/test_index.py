"""The mask: the predicate against its definition, the intervals against both."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from set_diffusion_jax.diffusion.index import (
  TokenIndex,
  attends,
  clean_stream,
  key_intervals,
  two_streams,
)
from set_diffusion_jax.diffusion.order import Order


def random_index(seed, batch, clean, noisy, sets, sorted_ranks, causal=False):
  rng = np.random.default_rng(seed)
  rank = rng.integers(0, sets, (batch, clean + noisy))
  valid = rng.random((batch, clean + noisy)) < 0.8
  if sorted_ranks:
    length = max(clean, noisy)
    rank = np.sort(rank[:, :length], -1)
    filled = rng.integers(0, length + 1, (batch, 1))
    valid = np.arange(length) < filled
    streams = (clean > 0) + (noisy > 0)
    rank, valid = np.tile(rank, (1, streams)), np.tile(valid, (1, streams))
  position = np.broadcast_to(np.arange(rank.shape[1]), rank.shape)
  arrays = jnp.asarray(position, jnp.int32), jnp.asarray(rank, jnp.int32)
  return TokenIndex(*arrays, jnp.asarray(valid), clean, rank.shape[1], causal)


@settings(max_examples=20, deadline=None)
@given(
  st.integers(0, 2**31),
  st.integers(0, 6),
  st.integers(0, 6),
  st.integers(1, 5),
  st.booleans(),
)
def test_attends_is_the_rule_of_the_paper(seed, clean, noisy, sets, causal):
  """Against a loop over every pair, written from METHOD section 3."""
  if clean + noisy == 0:
    return
  index = random_index(seed, 2, clean, noisy, sets, False, causal)
  rank, valid = np.asarray(index.rank), np.asarray(index.valid)
  ours = np.asarray(attends(index, index))
  for b, q, k in np.ndindex(ours.shape):
    query_noisy, key_noisy = q >= clean, k >= clean
    if not (valid[b, q] and valid[b, k]):
      expected = False
    elif not query_noisy and not key_noisy:
      expected = rank[b, k] <= rank[b, q]
    elif query_noisy and not key_noisy:
      expected = rank[b, k] < rank[b, q]
    elif query_noisy and key_noisy:
      expected = rank[b, k] == rank[b, q] and (k <= q or not causal)
    else:
      expected = False
    assert ours[b, q, k] == expected


@settings(max_examples=20, deadline=None)
@given(
  st.integers(0, 2**31),
  st.integers(1, 9),
  st.integers(1, 6),
  st.sampled_from(["clean", "noisy", "both"]),
  st.booleans(),
)
def test_two_intervals_are_the_whole_mask(seed, length, sets, streams, causal):
  clean, noisy = length * (streams != "noisy"), length * (streams != "clean")
  index = random_index(seed, 3, clean, noisy, sets, True, causal)
  bounds = [np.asarray(x)[..., None] for x in key_intervals(index)]
  key = np.arange(index.slots)
  in_clean = (key < clean) & (key < bounds[0])
  in_noisy = (key >= clean) & (key - clean >= bounds[1]) & (key - clean < bounds[2])
  np.testing.assert_array_equal(in_clean | in_noisy, attends(index, index))


def test_the_rule_commutes_with_permuting_tokens():
  index = random_index(0, 2, 5, 0, 3, sorted_ranks=False)
  shuffle = np.array([3, 1, 4, 0, 2])
  moved = index.replace(
    position=index.position[:, shuffle],
    rank=index.rank[:, shuffle],
    valid=index.valid[:, shuffle],
  )
  expected = attends(index, index)[:, shuffle][:, :, shuffle]
  np.testing.assert_array_equal(attends(moved, moved), expected)


def test_streams_share_positions_and_ranks():
  position = jnp.array([[2, 0, 1]], jnp.int32)
  order = Order(position, jnp.array([[0, 1, 1]], jnp.int32))
  valid = jnp.ones((1, 3), bool)
  both = two_streams(order, valid, reach=3)
  assert both.position.tolist() == [[2, 0, 1, 2, 0, 1]]
  assert both.noisy.tolist() == [False] * 3 + [True] * 3
  assert not clean_stream(order, valid, reach=3).noisy.any()
