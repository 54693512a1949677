"""Attention on TPU: jax's splash kernel under the mask of aligned sets.

Where sets are known without data (`TokenIndex.aligned`: single positions, blocks, one
set), the mask is a function of two slots alone, and the kernel computes it where it
needs it: both streams' queries over the clean keys, and the noisy stream's own sets,
in one pass over the tiles that hold a visible pair. Memory is linear in T.

General sets, whose ranks depend on the drawn order, the `causal` ablation and caches
are no such function; they, and float32, whose products the kernel would round to
bfloat16, keep the XLA path of `attention`.
"""

from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array

from set_diffusion_jax import sharding
from set_diffusion_jax.diffusion.index import TokenIndex
from set_diffusion_jax.model.layers import SAVED

# Tiles of queries and keys, the largest that divides a stream's length. The kernel
# wants multiples of 128.
TILES = (512, 256, 128)


class AlignedSets(splash.CausalMask):
  """The mask that `attends` gives where each aligned run of slots is one set."""

  def __init__(self, slots: int, clean: int, reach: int):
    super().__init__((slots, slots))
    self._sizes = slots, clean, reach
    self.mask_function = self._seen

  def _seen(self, query, key):
    """Whether queries see keys, by slot; broadcasts."""
    slots, clean, reach = self._sizes

    def place(slot):
      """The set of a slot, and whether it is noisy (0 or 1)."""
      if clean == slots:
        return slot // reach, 0 * slot
      noisy = (slot >= clean).astype(np.int32)
      return (slot - clean * noisy) // reach, noisy

    (query_set, query_noisy), (key_set, key_noisy) = place(query), place(key)
    clean_key = (key_noisy == 0) & (key_set <= query_set - query_noisy)
    return clean_key | ((key_noisy * query_noisy == 1) & (key_set == query_set))

  def __eq__(self, other: object):
    return isinstance(other, AlignedSets) and self._sizes == other._sizes

  def __hash__(self):
    return hash((type(self), self._sizes))


def obstacle(index: TokenIndex, dtype, mesh: Mesh | AbstractMesh | None) -> str | None:
  """Why attention over `index` without a cache cannot run in the kernel; None: it can.

  Args:
    index: of the slots.
    dtype: of the queries.
    mesh: that they are laid out on, if there is one.
  """
  if mesh is None or sharding.platform(mesh) != "tpu":
    return "no TPU"
  if dtype != jnp.bfloat16:
    return "model.dtype is not bfloat16"
  if not index.aligned or index.causal:
    return "the sets of this method are not aligned runs of slots"
  if _tile(index) is None:
    return f"data.length is no multiple of {TILES[-1]}"
  return None


def _tile(index: TokenIndex) -> int | None:
  stream = index.clean or index.slots
  even = index.slots % stream == 0
  return next((size for size in TILES if even and stream % size == 0), None)


@flax.struct.dataclass
class Splash:
  """Attention under the mask of an index, for any layer; see `attention`.

  Each device has its own rows and heads. Padding comes last, so singletons never see
  it; larger sets are told by segments. What a padding query gets is nobody's to read.

  Attributes:
    index: for which `applies`.
    mesh: that queries, keys and values are laid out on (static).
    interpret: runs anywhere, slowly (static).
    products: of a tile of scores, forward and backward: scores and what they meet are
      computed by queries and by keys.
  """

  index: TokenIndex
  mesh: Mesh = flax.struct.field(pytree_node=False)
  interpret: bool = flax.struct.field(pytree_node=False, default=False)
  products: ClassVar[int] = 9

  def __call__(self, q: Array, k: Array, v: Array) -> Array:
    """The mixture [B, H, T, Dh] of scaled queries."""
    heads = q, k.astype(q.dtype), v.astype(q.dtype)
    return sharding.per_device(self._local, self.mesh, heads, (self.index.valid,))

  def _local(self, q: Array, k: Array, v: Array, valid: Array) -> Array:
    size, index = _tile(self.index), self.index
    mask = AlignedSets(index.slots, index.clean, index.reach)
    kernel = splash.make_splash_mha_single_device(
      splash.MultiHeadMask([mask] * q.shape[1]),
      block_sizes=splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
      ),
      residual_checkpoint_name=SAVED,
      interpret=self.interpret,
    )
    if index.reach == 1:
      return jax.vmap(kernel)(q, k, v)
    part = valid.astype(jnp.int32)
    return jax.vmap(kernel)(q, k, v, splash.SegmentIds(part, part))

  @property
  def scored_pairs(self) -> int:
    """Query-key pairs of tiles that hold a visible one, of one row and one head."""
    size, index = _tile(self.index), self.index
    mask = AlignedSets(index.slots, index.clean, index.reach)
    parts = [slice(first, first + size) for first in range(0, index.slots, size)]
    return size**2 * sum(bool(mask[i, j].any()) for i in parts for j in parts)
