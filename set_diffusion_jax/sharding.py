"""The device mesh, and the one table that lays every parameter out on it."""

import logging
import math
import os
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from set_diffusion_jax.config import MeshConfig
from set_diffusion_jax.errors import UserError

AXES = ("slice", "data", "fsdp", "tensor")
# The compiler lays out what no rule names; an abstract mesh would ask for every array
# by default from JAX 0.11 on.
AXIS_TYPES = (AxisType.Auto,) * len(AXES)
ROWS = ("slice", "data", "fsdp")  # the axes that share out the rows of a batch
BATCH = PartitionSpec(ROWS)

# Parameter path -> mesh axes of its dimensions; the first match counts. `blocks/`
# parameters have a leading layer axis. Optimiser moments and the EMA repeat the paths.
RULES = (
  (r"embedding", ("tensor", "fsdp")),
  (r"blocks/qkv/kernel", (None, "fsdp", None, "tensor", None)),
  (r"blocks/[qkv]/kernel", (None, "fsdp", "tensor", None)),
  (r"blocks/[qk]_norm/scale", (None, None)),
  (r"blocks/gate/kernel", (None, "fsdp", "tensor")),
  (r"blocks/out/kernel", (None, "tensor", None, "fsdp")),
  (r"blocks/up/kernel", (None, "fsdp", "tensor")),
  (r"blocks/up/bias", (None, "tensor")),
  (r"blocks/down/kernel", (None, "tensor", "fsdp")),
  (r"blocks/down/bias", (None, None)),
  (r"blocks/norm_\w+/scale", (None, None)),
  (r"blocks/adaln/kernel", (None, None, None, "fsdp")),
  (r"blocks/adaln/bias", (None, None, None)),
  (r"norm/scale", (None,)),
  (r"head/kernel", ("fsdp", "tensor")),
  (r"head/bias", ("tensor",)),
  (r"head_adaln/kernel", (None, None, "fsdp")),
  (r"head_adaln/bias", (None, None)),
  (r"condition/\w+/kernel", (None, None)),
  (r"condition/\w+/bias", (None,)),
  (r"clip", (None,)),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """The mesh over all devices; one device is a 1 x 1 x 1 x 1 mesh.

  Parameters are never laid out over the slice axis, so what goes over the network
  between slices is the sum of the gradients.

  Raises:
    UserError: the axes do not multiply to the number of devices, or slices are asked
      for that are not there.
  """
  devices = jax.devices() if devices is None else devices
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  shape = _mesh_shape(config, len(devices), slices)
  return Mesh(_arranged(devices, shape, slices), AXES, axis_types=AXIS_TYPES)


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
  """The mesh over so many devices that are not described; raises as `make_mesh`."""
  return AbstractMesh(_mesh_shape(config, devices, 1), AXES, axis_types=AXIS_TYPES)


def _mesh_shape(config: MeshConfig, devices: int, found: int) -> tuple[int, ...]:
  """The size of each axis; `found` slices are known to be there."""
  slices = found if config.slice == -1 else config.slice
  if found > 1 and slices != found:
    raise UserError(f"mesh.slice = {slices}: must be {found}, or -1 for all slices")
  inner = config.fsdp * config.tensor * slices
  data = devices // inner if config.data == -1 else config.data
  if data * inner != devices:
    axes = f"mesh = {slices} x {config.data} x {config.fsdp} x {config.tensor}"
    raise UserError(
      f"{axes} (slice, data, fsdp, tensor): must multiply to the {devices} devices"
    )
  return slices, data, config.fsdp, config.tensor


def _arranged(
  devices: list[jax.Device], shape: tuple[int, ...], slices: int
) -> np.ndarray:
  """Devices in the shape of a mesh; on TPU, its axes follow the interconnect's."""
  if devices[0].platform != "tpu":  # in the order of the processes
    return np.array(devices).reshape(shape)
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  inside, between = (1, *shape[1:]), (slices, 1, 1, 1)
  return mesh_utils.create_hybrid_device_mesh(
    inside, between, devices, allow_split_physical_axes=True
  )


class _HeldBack(logging.Handler):
  """Keeps what is logged, until it is known whether it matters."""

  def __init__(self):
    super().__init__()
    self.records: list[logging.LogRecord] = []
    self.emit = self.records.append


def check_backend() -> None:
  """UserError where JAX_PLATFORMS asks for devices that are not there.

  What JAX logs while it looks, such as the traceback of a plugin that cannot start, is
  then told in a few words, and is logged otherwise.
  """
  logger, held = logging.getLogger("jax"), _HeldBack()
  before = logger.handlers, logger.propagate
  logger.handlers, logger.propagate = [held], False
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter for CUDA without a GPU
    why = (str(error).splitlines() or ["no such device"])[0].split(" (set JAX_")[0]
    raised = [r.exc_info[1] for r in held.records if r.exc_info]
    causes = [str(x).splitlines()[0] for x in raised if str(x)]
    held.records.clear()
    asked = os.environ.get("JAX_PLATFORMS", "")
    raise UserError(
      f"JAX_PLATFORMS={asked}: {'; '.join([why, *causes])}; unset it to use what is "
      "there, or install the extra gpu or tpu on a machine that has one"
    ) from None
  finally:
    logger.handlers, logger.propagate = before
    for record in held.records:
      logger.handle(record)


def devices_line(mesh: Mesh | AbstractMesh | None) -> str:
  """How many devices of which kind; without a mesh, the one that arrays are put on."""
  if isinstance(mesh, AbstractMesh):
    return f"on {mesh.size} devices"
  devices = jax.devices()[:1] if mesh is None else mesh.devices.flat
  return f"on {len(devices)} x {devices[0].device_kind}"


def platform(mesh: Mesh | AbstractMesh | None) -> str:
  """What runs there: "cpu", "gpu" or "tpu".

  Without a mesh, the devices of this process; devices that are not described are GPUs,
  since those of TPUs always are.
  """
  if isinstance(mesh, AbstractMesh):
    return "gpu"
  return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def per_device(function, mesh: Mesh, heads, rows):
  """`function(*heads, *rows)` on each device, with its own rows and heads.

  Args:
    function: of arrays as they lie on one device; returns one [B, H, ...].
    mesh: that all is laid out on.
    heads: arrays [B, H, ...], some perhaps with a divisor of H for H. Where the fewest
      are no multiple of the tensor axis, each device along it computes all.
    rows: trees of arrays [B, ...].
  """
  fewest = min(x.shape[1] for x in heads)
  tensor = "tensor" if fewest % mesh.shape["tensor"] == 0 else None
  layout = PartitionSpec(ROWS, tensor)
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=(*(layout for _ in heads), *(BATCH for _ in rows)),
    out_specs=layout,
    check_vma=False,
  )(*heads, *rows)


def check_batch(field: str, size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """UserError unless a global batch can be split over its axes and micro-batches."""
  ways = row_ways(mesh) * accumulate
  if size % ways:
    parts = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in ROWS)
    parts += f" x accumulate {accumulate}" if accumulate > 1 else ""
    raise UserError(f"{field} = {size}: must be a multiple of {ways} ({parts})")


def row_ways(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are shared out."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def row_share(mesh: Mesh) -> tuple[int, int]:
  """Which part of each global batch this process feeds: (its number, how many).

  Processes whose devices hold the same rows, as along a tensor axis, feed the same.

  Raises:
    UserError: the rows of two processes overlap without being the same.
  """
  ways = row_ways(mesh)
  places = batch_sharding(mesh).devices_indices_map((ways,))
  rows: dict[int, set[int]] = {}
  for device, (place,) in places.items():
    rows.setdefault(device.process_index, set()).update(range(ways)[place])
  shares = sorted({tuple(sorted(held)) for held in rows.values()})
  if sum(map(len, shares)) != ways:
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    raise UserError(f"mesh = {axes}: cuts across the {len(rows)} processes")
  return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def place(tree, shardings):
  """Host arrays that are the same in every process, laid out on a mesh.

  Args:
    tree: of numpy arrays.
    shardings: one for all, or a tree of them.
  """

  def one(x, where):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  if isinstance(shardings, NamedSharding):
    return jax.tree.map(lambda x: one(x, shardings), tree)
  return jax.tree.map(one, tree, shardings)


def activation_sharding(mesh: Mesh | AbstractMesh | None) -> NamedSharding | None:
  """Rows over their axes, the rest as it comes; None for one device or no mesh."""
  if mesh is None or mesh.size == 1:
    return None
  free = PartitionSpec.UNCONSTRAINED
  return NamedSharding(mesh, PartitionSpec(*BATCH, free, free))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the slice, data and fsdp axes."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """The layout of one parameter.

  An axis that does not divide its dimension is dropped: that dimension is replicated.

  Raises:
    KeyError: no rule matches the path.
  """
  for pattern, axes in RULES:
    if re.search(rf"(^|/){pattern}$", path) and len(axes) == len(shape):
      fits = [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
      ]
      return PartitionSpec(*fits)
  raise KeyError(f"no sharding rule for parameter {path} of shape {shape}")


def state_shardings(state, mesh: Mesh):
  """A tree of NamedSharding for a tree of arrays or shapes; scalars are replicated."""

  def one(path, leaf):
    if leaf.ndim == 0:
      return replicated(mesh)
    return NamedSharding(mesh, parameter_spec(_name(path), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(one, state)


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
