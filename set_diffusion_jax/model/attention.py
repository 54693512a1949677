"""Attention over sets: one mask, a kernel for each kind of device.

What a kernel needs besides queries, keys and values is the same in every layer; it is
worked out once, before the first. The mask is never materialised for a pair of whole
streams, forward or backward.
"""

import flax.struct
import jax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float

from set_diffusion_jax.diffusion.index import TokenIndex
from set_diffusion_jax.model import flash, splash
from set_diffusion_jax.model.blocked import Blocked
from set_diffusion_jax.model.cached import Cache
from set_diffusion_jax.model.layers import Turns

Kernel = splash.Splash | flash.Flash | Blocked


@flax.struct.dataclass
class Shared:
  """What all layers are given alike.

  Attributes:
    index: of the slots.
    turns: of rotary positions.
    kernel: of attention without a cache.
    cache: what of a cache is not a layer's own, if there is one.
    condition: of adaLN, if there is one.
  """

  index: TokenIndex
  turns: Turns
  kernel: Kernel | None
  cache: Cache | None
  condition: Float[Array, " C"] | None


def choose_kernel(
  index: TokenIndex, head_size: int, dtype, mesh: Mesh | AbstractMesh | None
) -> Kernel:
  """Attention under the mask of an index.

  On a mesh of TPUs, splash attention where it can say the mask (`splash.obstacle`); on
  one of GPUs, a flash kernel (`flash.obstacle`); for everything else, blocked XLA.

  Args:
    index: of T slots in generation order.
    head_size: Dh.
    dtype: of the queries.
    mesh: that all is laid out on, if there is one.
  """
  if splash.obstacle(index, dtype, mesh) is None:
    return splash.Splash(index, mesh)
  if flash.obstacle(index, head_size, dtype, mesh) is None:
    return flash.Flash.of(index, mesh)
  return Blocked.of(index)


def kernel_line(
  index: TokenIndex, head_size: int, dtype, mesh: Mesh | AbstractMesh | None
) -> str:
  """Names the kernel of `choose_kernel`, and why it is not a faster one."""
  reasons = {
    "splash": splash.obstacle(index, dtype, mesh),
    "flash": flash.obstacle(index, head_size, dtype, mesh),
  }
  chosen = next((name for name, reason in reasons.items() if reason is None), None)
  if chosen is not None:
    return f"attention: {chosen}"
  why = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items())
  return f"attention: blocked XLA ({why})"


def attention(
  q: Float[Array, "B H T Dh"],
  k: Float[Array, "B G T Dh"],
  v: Float[Array, "B G T Dh"],
  kernel: Kernel,
) -> Float[Array, "B H T Dh"]:
  """The mixture softmax(q k^T / sqrt(Dh)) v under `attends`, softmax in float32.

  Args:
    q: queries of the T slots, rotated.
    k: their keys, rotated; each of the G heads serves H / G heads of queries.
    v: their values.
    kernel: `choose_kernel` of the T slots.
  """
  return kernel(q * q.shape[-1] ** -0.5, k, v)


def kernel_work(
  index: TokenIndex, head_size: int, dtype, mesh: Mesh | AbstractMesh | None
) -> tuple[int, int]:
  """What a kernel computes for one row and one head in a training step.

  Args as `choose_kernel`; of the index, shapes are enough.

  Returns:
    Query-key pairs that are scored, and products with Dh for each, backward included.
  """
  found = []

  def count(index):
    kernel = choose_kernel(index, head_size, dtype, mesh)
    found.append((kernel.scored_pairs, kernel.products))

  jax.eval_shape(count, index)
  return found[0]
