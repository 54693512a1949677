"""Attention of two streams, forward and backward, beside a dense mask in PyTorch.

Set diffusion (singletons), blocks of 16 and general sets, at growing lengths: seconds,
and the bytes that the gradient holds beside its arguments and results.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import measure
from set_diffusion_jax.diffusion.index import attends, two_streams
from set_diffusion_jax.diffusion.order import Order
from set_diffusion_jax.model.attention import attention, choose_kernel

HEADS, SIZE, REPEATS = 4, 64, 3
LENGTHS = (1024, 2048, 4096, 8192)
PEER_LENGTHS = (1024, 2048)  # beyond them it holds gigabytes
# Name -> the set of each of L positions, and the aligned run that it lies within.
MASKS = {
  "set": lambda length: (np.arange(length), 1),
  "block, S = 16": lambda length: (np.arange(length) // 16, 16),
  "general": lambda length: (
    np.sort(np.random.default_rng(0).integers(0, length // 8, length)),
    length,
  ),
}


def case(name: str, length: int, rates: dict[str, float]) -> dict:
  """The row of one mask and length."""
  rank, reach = MASKS[name](length)
  position = jnp.arange(length)[None]
  order = Order(position, jnp.asarray(rank, jnp.int32)[None])
  index = two_streams(order, jnp.ones((1, length), bool), reach)
  kernel = choose_kernel(index, SIZE, jnp.float32, None)
  rng = np.random.default_rng(1)
  q, k, v, up = rng.standard_normal((4, 1, HEADS, 2 * length, SIZE)).astype(np.float32)

  @jax.jit
  def ours(q, k, v, up):
    out, pullback = jax.vjp(lambda *qkv: attention(*qkv, kernel), q, k, v)
    return out, pullback(up)

  arguments = jax.device_put((q, k, v, up))
  temporary = ours.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
  runs = {"ours": functools.partial(ours, *arguments)}
  visible = None
  if length in PEER_LENGTHS:
    mask = torch.from_numpy(np.array(attends(index, index)))[:, None]
    inputs = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]

    def peer():
      out = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
      return out, torch.autograd.grad(out, inputs, torch.from_numpy(up))

    for mine, theirs in zip(
      jax.tree.leaves(ours(*arguments)), jax.tree.leaves(peer()), strict=True
    ):
      np.testing.assert_allclose(mine, theirs.detach().numpy(), atol=2e-4, rtol=2e-4)
    runs["peer"], visible = peer, int(mask.sum())
  times = measure.alternating(runs, REPEATS)
  return measure.row(
    name,
    f"L={length}, {HEADS} x {SIZE}",
    "tokens/s",
    length,
    times["ours"],
    times.get("peer"),
    flops=kernel.products * 2.0 * HEADS * SIZE * kernel.scored_pairs,
    transferred=8.0 * q.nbytes,
    rates=rates,
    temporary_bytes=temporary,
    scored_pairs=kernel.scored_pairs,
    visible_pairs=visible,
  )


def main() -> dict:
  """Prints a row for each mask and length; returns them."""
  rates, table = measure.machine_rates(), measure.Table()
  for name in MASKS:
    for length in LENGTHS:
      row = case(name, length, rates)
      table.add(row, f"temporaries: {row['temporary_bytes'] / 1e6:.0f} MB")
  return table.report(machine_rates=rates, threads=torch.get_num_threads())
