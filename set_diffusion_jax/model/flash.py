"""Attention on GPU: a flash kernel over the tiles of keys that tiles of queries see.

In generation order a query sees one interval of clean keys and one of noisy keys
(`key_intervals`), whatever the method: a tile of queries needs one run of tiles of each
stream, known from the drawn ranks, and masks within them by comparing slots with the
query's bounds. Scores never leave a tile, and memory is linear in T. The backward pass
visits pairs of tiles twice: by queries for dQ, by keys for dK and dV.

float32, whose products have no tensor cores, keeps the XLA path of `attention`.
"""

import functools
from typing import ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Int

from set_diffusion_jax import sharding
from set_diffusion_jax.diffusion.index import TokenIndex, key_intervals
from set_diffusion_jax.model.layers import precision, saved
from set_diffusion_jax.model.mix import EXCLUDED

try:
  from jax.experimental.pallas import triton
except ImportError:  # JAX is to drop it
  triton = None

# Slots of the tile that a program of the kernel owns, and of those that it visits: as
# many as leave all sums of a head of 128 in registers.
OWN, VISITED = 128, 64
HEAD_SIZES = (16, 32, 64, 128)  # Dh
# Compute capabilities of A100, H100, B200 and B300, for which the kernels have been
# compiled; other GPUs can have less shared memory, or no bfloat16.
CAPABILITIES = ("8.0", "9.0", "10.0", "10.3")


def obstacle(
  index: TokenIndex, head_size: int, dtype, mesh: Mesh | AbstractMesh | None
) -> str | None:
  """Why attention over `index` without a cache cannot run in the kernel; None: it can.

  Args:
    index: of the slots.
    head_size: Dh.
    dtype: of the queries.
    mesh: that they are laid out on, if there is one.
  """
  if mesh is None or sharding.platform(mesh) != "gpu":
    return "no GPU"
  if triton is None:
    return "this jax has no Pallas Triton"
  devices = mesh.devices.flat if isinstance(mesh, Mesh) else ()
  described = (getattr(x, "compute_capability", CAPABILITIES[0]) for x in devices)
  unknown = set(described) - set(CAPABILITIES)
  if unknown:
    return f"not compiled for compute capability {min(unknown)}"
  if dtype != jnp.bfloat16:
    return "model.dtype is not bfloat16"
  if index.clean % OWN or index.slots % OWN:
    return f"data.length is no multiple of {OWN}"
  if head_size not in HEAD_SIZES:
    return f"heads of {head_size} instead of {' or '.join(map(str, HEAD_SIZES))}"
  return None


# --- Which pairs of tiles meet --------------------------------------------------------


class _Bounds(NamedTuple):
  """Slots that each query sees: [0, clean_end) and [noisy_start, noisy_end)."""

  clean_end: Int[Array, "B 1 T"]
  noisy_start: Int[Array, "B 1 T"]
  noisy_end: Int[Array, "B 1 T"]

  def seen(self, keys: Array) -> Bool[Array, "..."]:
    """Whether the slots `keys` are seen; broadcasts."""
    noisy = (keys >= self.noisy_start) & (keys < self.noisy_end)
    return (keys < self.clean_end) | noisy


class _Runs(NamedTuple):
  """Tiles that a program visits: from the first to the last + 1 of each stream.

  Attributes:
    keys: of each tile of queries, the tiles of keys that it sees.
    queries: of each tile of keys, the tiles of queries that see it.
  """

  keys: Int[Array, "B own streams 2"]
  queries: Int[Array, "B own streams 2"]


def _bounds(index: TokenIndex) -> _Bounds:
  clean_end, noisy_start, noisy_end = key_intervals(index)
  slots = clean_end, index.clean + noisy_start, index.clean + noisy_end
  return _Bounds(*(x[:, None] for x in slots))


def _runs(index: TokenIndex, bounds: _Bounds) -> _Runs:
  clean_end, noisy_start, noisy_end = (x[:, 0, :, None] for x in bounds)
  # Whether each query sees anything of each tile of keys, of the size of those visited.
  first = VISITED * jnp.arange(index.slots // VISITED)[None, None]
  seen = (noisy_start < noisy_end) & (noisy_start < first + VISITED)
  seen = seen & (first < noisy_end) | (first < clean_end)
  by_queries = lambda size: seen.reshape(len(seen), -1, size, seen.shape[-1]).any(2)
  by_keys = by_queries(VISITED).reshape(len(seen), seen.shape[-1], -1, OWN // VISITED)
  clean = index.clean // VISITED
  return _Runs(
    _run(by_queries(OWN), clean), _run(jnp.swapaxes(by_keys.any(3), 1, 2), clean)
  )


def _run(met: Bool[Array, "B own visited"], clean: int):
  """The tiles of each stream that each tile meets; `clean` of them are clean."""
  runs, start = [], 0
  for stream in jnp.split(met, [clean], axis=-1):
    if size := stream.shape[-1]:
      first = stream.argmax(-1)
      last = size - stream[..., ::-1].argmax(-1)
      run = start + jnp.stack([first, last], axis=-1)
      runs.append(jnp.where(stream.any(-1, keepdims=True), run, 0))
    start += size
  return jnp.stack(runs, axis=-2).astype(jnp.int32)


@flax.struct.dataclass
class Flash:
  """Attention under the mask of an index, for any layer; see `attention`.

  Each device has its own rows and heads. Padding gets zeros.

  Attributes:
    index: for which `applies`; of it, static knowledge alone is used later.
    bounds: the slots that each query sees.
    runs: the tiles that meet.
    mesh: that queries, keys and values are laid out on (static).
    interpret: runs anywhere, slowly (static).
    products: of a tile of scores, forward and backward: scores and what they meet are
      computed by queries and by keys.
  """

  index: TokenIndex
  bounds: _Bounds
  runs: _Runs
  mesh: Mesh = flax.struct.field(pytree_node=False)
  interpret: bool = flax.struct.field(pytree_node=False, default=False)
  products: ClassVar[int] = 9

  @classmethod
  def of(cls, index: TokenIndex, mesh: Mesh, interpret: bool = False) -> "Flash":
    """For slots in generation order."""
    bounds = _bounds(index)
    return cls(index, bounds, _runs(index, bounds), mesh, interpret)

  def __call__(self, q: Array, k: Array, v: Array) -> Array:
    """The mixture [B, H, T, Dh] of scaled queries."""
    local = functools.partial(_attend, self.interpret)
    heads = q, k.astype(q.dtype), v.astype(q.dtype)
    return sharding.per_device(local, self.mesh, heads, (self.bounds, self.runs))

  @property
  def scored_pairs(self) -> int:
    """Query-key pairs of the tiles that are visited, of one row and one head.

    Where ranks depend on the drawn order, the most that they can be.
    """
    index = self.index
    clean, reach, slots = index.clean, index.reach, index.slots
    pairs = 0
    for first in range(0, slots, OWN):
      place = first - clean * (first >= clean)  # in its stream
      start, end = place // reach * reach, -(-(place + OWN) // reach) * reach
      if first < clean:
        tiles = -(-min(end, clean) // VISITED)
      else:
        before = end - (reach if index.aligned else 1)  # where the last set begins
        tiles = -(-min(before, clean) // VISITED)
        tiles += -(-min(end, slots - clean) // VISITED) - start // VISITED
      pairs += tiles * OWN * VISITED
    return pairs


# --- Kernels --------------------------------------------------------------------------


def _call(kernel, interpret: bool, tiled, whole, runs, outputs):
  """Runs a kernel for each tile, head of queries and row.

  Arrays are [B, heads, T] or [B, heads, T, Dh]; a head of theirs can serve several.

  Args:
    kernel: is given references to inputs and outputs, in this order.
    interpret: see `Flash`.
    tiled: of which it is given its own tile.
    whole: of which it is given all T slots.
    runs: of which it is given those of its tile.
    outputs: shapes and dtypes of what it writes its own tile of.
  """
  heads = outputs[0].shape[1]

  def part(slots, x):
    share = heads // x.shape[1]
    place = (lambda tile: tile) if slots == OWN else (lambda tile: 0)
    inner = x.shape[3:]
    return pl.BlockSpec(
      (None, None, slots, *inner),
      lambda tile, head, row: (row, head // share, place(tile), *(0 for _ in inner)),
    )

  a_tile = functools.partial(part, OWN)
  everything = functools.partial(part, outputs[0].shape[2])
  of_tile = pl.BlockSpec(
    (None, None, *runs.shape[2:]), lambda tile, head, row: (row, tile, 0, 0)
  )
  specs = jax.tree.map(a_tile, tiled), jax.tree.map(everything, whole), of_tile
  return pl.pallas_call(
    kernel,
    grid=(runs.shape[1], heads, runs.shape[0]),
    in_specs=specs,
    out_specs=[a_tile(x) for x in outputs],
    out_shape=outputs,
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
    interpret=interpret,
  )(tiled, whole, runs)


def _each(visit, runs, sums):
  """Folds `visit` over the tiles of the runs."""
  for stream in range(runs.shape[0]):
    sums = jax.lax.fori_loop(runs[stream, 0], runs[stream, 1], visit, sums)
  return sums


def _slots(tile, size: int):
  return tile * size + jnp.arange(size)


def _dot(x: Array, y: Array, axis: int) -> Array:
  """A product over the last axis of x and an axis of y, accumulated in float32."""
  dimensions = (((1,), (axis,)), ((), ()))
  exact = precision(x.dtype)
  return jax.lax.dot_general(x, y, dimensions, exact, jnp.float32)


def _forward_kernel(tiled, whole, runs, out, log_total):
  """The mixture of a tile of queries, and log sum exp of their scores."""
  (q, bounds), (keys, values) = tiled, whole
  q, bounds = q[...], _Bounds(*(x[...][:, None] for x in bounds))

  def visit(tile, sums):
    mixed, total, highest = sums
    here = pl.ds(tile * VISITED, VISITED)
    seen = bounds.seen(_slots(tile, VISITED)[None])
    score = jnp.where(seen, _dot(q, keys[here, :], 1), EXCLUDED)
    top = jnp.maximum(highest, score.max(-1))
    weight = jnp.where(seen, jnp.exp(score - top[:, None]), 0)
    shrink = jnp.exp(highest - top)
    added = _dot(weight.astype(q.dtype), values[here, :], 0)
    mixed = mixed * shrink[:, None] + added
    return mixed, total * shrink + weight.sum(-1), top

  none = jnp.zeros(q.shape, jnp.float32), jnp.zeros(OWN), jnp.full(OWN, EXCLUDED)
  mixed, total, highest = _each(visit, runs, none)
  total = jnp.where(total == 0, 1, total)  # padding sees nothing
  out[...] = (mixed / total[:, None]).astype(out.dtype)
  log_total[...] = highest + jnp.log(total)


def _d_queries_kernel(tiled, whole, runs, d_q):
  """The gradient of a tile of queries."""
  (q, bounds, d_out, log_total, inner), (keys, values) = tiled, whole
  q, d_out, bounds = q[...], d_out[...], _Bounds(*(x[...][:, None] for x in bounds))
  log_total, inner = log_total[...][:, None], inner[...][:, None]

  def visit(tile, d_q):
    here = pl.ds(tile * VISITED, VISITED)
    seen = bounds.seen(_slots(tile, VISITED)[None])
    score = _dot(q, keys[here, :], 1)
    weight = jnp.where(seen, jnp.exp(score - log_total), 0)
    d_score = weight * (_dot(d_out, values[here, :], 1) - inner)
    return d_q + _dot(d_score.astype(q.dtype), keys[here, :], 0)

  d_q[...] = _each(visit, runs, jnp.zeros(q.shape, jnp.float32)).astype(d_q.dtype)


def _d_keys_kernel(tiled, whole, runs, d_k, d_v):
  """The gradients of a tile of keys and values, by one head of queries."""
  (k, v), (queries, bounds, d_outs, log_totals, inners) = tiled, whole
  k, v, slots = k[...], v[...], _slots(pl.program_id(0), OWN)[:, None]

  def visit(tile, sums):
    """Scores are computed transposed, keys by queries, as the products need them."""
    d_k, d_v = sums
    here = pl.ds(tile * VISITED, VISITED)
    q, d_out = queries[here, :], d_outs[here, :]
    seen = _Bounds(*(x[here][None] for x in bounds)).seen(slots)
    weight = jnp.where(seen, jnp.exp(_dot(k, q, 1) - log_totals[here][None]), 0)
    d_score = weight * (_dot(v, d_out, 1) - inners[here][None])
    d_k += _dot(d_score.astype(k.dtype), q, 0)
    return d_k, d_v + _dot(weight.astype(k.dtype), d_out, 0)

  none = jnp.zeros(k.shape, jnp.float32)
  d_k[...], d_v[...] = _each(visit, runs, (none, none))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(interpret: bool, q, k, v, bounds: _Bounds, runs: _Runs):
  return _forward(interpret, q, k, v, bounds, runs)[0]


def _forward(interpret, q, k, v, bounds, runs):
  log_total = jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)
  outputs = [jax.ShapeDtypeStruct(q.shape, q.dtype), log_total]
  return _call(_forward_kernel, interpret, (q, bounds), (k, v), runs.keys, outputs)


def _save(interpret, q, k, v, bounds, runs):
  out, log_total = map(saved, _forward(interpret, q, k, v, bounds, runs))
  return out, (q, k, v, bounds, runs, out, log_total)


def _backward(interpret, kept, d_out):
  q, k, v, bounds, runs, out, log_total = kept
  inner = (d_out.astype(jnp.float32) * out).sum(-1)
  queries = q, bounds, d_out.astype(q.dtype), log_total, inner
  shape = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
  (d_q,) = _call(_d_queries_kernel, interpret, queries, (k, v), runs.keys, shape)
  shapes = 2 * [jax.ShapeDtypeStruct(q.shape, jnp.float32)]
  found = _call(_d_keys_kernel, interpret, (k, v), queries, runs.queries, shapes)
  by_head = lambda x: x.reshape(*k.shape[:2], -1, *k.shape[2:]).sum(2)
  d_k, d_v = (by_head(x).astype(k.dtype) for x in found)
  return d_q, d_k, d_v, None, None


_attend.defvjp(_save, _backward)
