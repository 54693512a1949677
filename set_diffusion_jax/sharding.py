"""The device mesh, and the one table that lays every parameter out on it."""

import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from set_diffusion_jax.config import MeshConfig
from set_diffusion_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

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
  """The mesh over all devices; one device is a 1 x 1 x 1 mesh.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  return Mesh(_arranged(devices, _mesh_shape(config, len(devices))), AXES)


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
  """The mesh over so many devices that are not described; raises as `make_mesh`."""
  return AbstractMesh(_mesh_shape(config, devices), AXES)


def _mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
  inner = config.fsdp * config.tensor
  data = devices // inner if config.data == -1 else config.data
  if data * inner != devices:
    axes = f"mesh = {config.data} x {config.fsdp} x {config.tensor}"
    raise UserError(
      f"{axes} (data, fsdp, tensor): must multiply to the {devices} devices"
    )
  return data, config.fsdp, config.tensor


def _arranged(devices: list[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
  """Devices in the shape of a mesh; on TPU, its axes follow the interconnect's.

  Several slices lie one after another along the data axis, so that only gradients go
  through the slower network between them.

  Raises:
    UserError: the slices do not divide the data axis.
  """
  if devices[0].platform != "tpu":
    return np.array(devices).reshape(shape)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if shape[0] % slices:
    raise UserError(
      f"mesh.data = {shape[0]}: must be a multiple of the {slices} slices"
    )
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(
    (shape[0] // slices, *shape[1:]),
    (slices, 1, 1),
    devices,
    allow_split_physical_axes=True,
  )


def tpu_mesh(mesh: Mesh | AbstractMesh) -> Mesh | None:
  """The mesh if its devices are TPUs."""
  real = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "tpu"
  return mesh if real else None


def check_batch(field: str, size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """UserError unless a global batch can be split over data, fsdp and micro-batches."""
  ways = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
  if size % ways:
    parts = f"data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}"
    parts += f" x accumulate {accumulate}" if accumulate > 1 else ""
    raise UserError(f"{field} = {size}: must be a multiple of {ways} ({parts})")


def activation_sharding(mesh: Mesh) -> NamedSharding | None:
  """Rows over the data and fsdp axes, the rest as it comes; None for one device."""
  if mesh.size == 1:
    return None
  free = PartitionSpec.UNCONSTRAINED
  return NamedSharding(mesh, PartitionSpec(*BATCH, free, free))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the data and fsdp axes."""
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
