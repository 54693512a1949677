"""Which tensors of a pickled file are the weights: state dicts and checkpoints.

Lightning (`.ckpt`): `state_dict`, and `ema.shadow_params` in the order of the model's
parameters. Composer (`.pt`): `state.model`, and an algorithm's `ema_model` by name.
Anything else must be a state dict itself, name -> tensor.
"""

import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from set_diffusion_jax.convert.layout import BUFFERS, canonical
from set_diffusion_jax.convert.pickled import Archive
from set_diffusion_jax.convert.tensors import Tensor
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.sizes import tensor_name

_RANGE = ("sampling_eps_min", "sampling_eps_max")


class Weights(NamedTuple):
  """Tensors by canonical name.

  Attributes:
    tensors: parameters and known buffers.
    kind: "ema" or "raw"; None where the source has one kind and does not say which.
    levels: the clipped range [t_min, t_max] of noise levels, if there is one.
    dropped: names that are no weights, for the report.
  """

  tensors: dict[str, Tensor]
  kind: str | None
  levels: tuple[float, float] | None
  dropped: list[str]


def read_pickled(path: pathlib.Path, kind: str | None) -> Weights:
  """The wanted weights of a PyTorch file; EMA if there is one and None is wanted."""
  root = Archive(path).load()
  if not isinstance(root, Mapping):
    raise UserError(f"{path}: must hold a dict, holds a {type(root).__name__}")
  if isinstance(root.get("state_dict"), Mapping):
    raw, ema = state_dict(path, root["state_dict"]), root.get("ema")
    if isinstance(ema, Mapping) and "shadow_params" in ema:
      shadow = ema["shadow_params"]
      averages = _in_parameter_order(path, raw, shadow) if kind != "raw" else {}
    else:
      averages = None
  elif isinstance(root.get("state"), Mapping):
    raw = root["state"].get("model")
    averages = _composer_average(path, root["state"].get("algorithms"))
  else:
    raw, averages = root.get("model", root), None
  if not isinstance(raw, Mapping) or not raw:
    raise UserError(f"{path}: holds no state dict")
  if kind == "ema" and averages is None:
    raise UserError(f"{path}: --weights=ema: the file has no EMA; give raw")
  raw = chosen = state_dict(path, raw)
  if averages is not None and kind != "raw":
    kind, chosen = "ema", _replaced(path, raw, averages)
  else:
    kind = "raw" if averages is not None else kind
  return weights(path, chosen, kind, {name: root.get(name) for name in _RANGE})


def state_dict(path: pathlib.Path, found: object) -> dict[str, Tensor]:
  """Tensors by name, as a pickle holds them.

  Raises:
    UserError: it is something else, or a name or a tensor is.
  """
  if not isinstance(found, Mapping):
    raise UserError(f"{path}: must hold a dict, holds a {type(found).__name__}")
  for name, tensor in found.items():
    tensor_name(name, str(path))
    if not isinstance(tensor, Tensor):
      raise UserError(f"{path}: {name} must be a tensor, is {type(tensor).__name__}")
  return dict(found)


def _replaced(path: pathlib.Path, raw: Mapping, averages: Mapping) -> dict:
  """The state dict with averages in place of the parameters."""
  by_name = {canonical(name): tensor for name, tensor in averages.items()}
  missing = by_name.keys() - {canonical(name) for name in raw}
  if missing:
    raise UserError(f"{path}: the EMA has {min(missing)}, which the model has not")
  return {name: by_name.get(canonical(name), value) for name, value in raw.items()}


def weights(
  path: pathlib.Path,
  named: Mapping[str, Tensor],
  kind: str | None,
  levels: Mapping | None = None,
) -> Weights:
  """Tensors under their canonical names, without those that are no weights.

  Raises:
    UserError: two names that mean the same parameter.
  """
  found, dropped, limits = {}, [], dict(levels or {})
  for name, tensor in named.items():
    short = canonical(name)
    if short in _RANGE:
      limits[short] = tensor
    elif short.rpartition(".")[2] in BUFFERS:
      dropped.append(name)
    elif short in found:
      raise UserError(f"{path}: {name} and another name mean {short}; must be one")
    else:
      found[short] = tensor
  _drop_tied_head(found)
  return Weights(found, kind, _levels(path, limits), dropped)


def _levels(path: pathlib.Path, limits: Mapping) -> tuple[float, float] | None:
  """The range of noise levels, from numbers or stored scalars."""
  values = [limits.get(name) for name in _RANGE]
  if None in values:
    return None
  one = lambda v: isinstance(v, Tensor) and math.prod(v.shape) == 1
  values = [v.read().item() if one(v) else v for v in values]
  if not all(type(v) in (float, int) and abs(v) < 2**31 for v in values):
    raise UserError(f"{path}: {_RANGE[0]} and {_RANGE[1]} must be numbers")
  low, high = (round(float(v), 7) for v in values)  # stored as float32
  return low, high


def _drop_tied_head(tensors: dict[str, Tensor]) -> None:
  """A head in the very bytes of the embedding is the embedding."""
  head = tensors.get("lm_head.weight")
  if head is not None and head == tensors.get("embed_tokens.weight"):
    del tensors["lm_head.weight"]


def _in_parameter_order(
  path: pathlib.Path, state: Mapping[str, Tensor], shadow: object
) -> dict[str, Tensor]:
  """Names for averages that are stored as a list."""
  names, seen = [], set()
  for name, tensor in state.items():
    last = canonical(name).rpartition(".")[2]
    buffer = last in BUFFERS or last in (*_RANGE, "inv_freq")
    if not buffer and tensor not in seen:
      names.append(name)
      seen.add(tensor)
  listed = isinstance(shadow, list | tuple) and not isinstance(shadow, Tensor)
  if not listed or len(shadow) != len(names):
    count = len(shadow) if listed else "no"
    raise UserError(
      f"{path}: ema.shadow_params has {count} tensors, the model {len(names)}"
    )
  for name, average in zip(names, shadow, strict=True):
    if not isinstance(average, Tensor) or average.shape != state[name].shape:
      raise UserError(
        f"{path}: ema.shadow_params do not follow the model's parameters: {name} is "
        f"{list(state[name].shape)}, its average {_what(average)}"
      )
  return dict(zip(names, shadow, strict=True))


def _what(value: object) -> str:
  """A value in a message: a tensor by its shape, others by their type."""
  if isinstance(value, Tensor):
    return str(list(value.shape))
  return f"a {type(value).__name__}"


def _composer_average(path: pathlib.Path, algorithms) -> dict[str, Tensor] | None:
  """The parameters that an algorithm named EMA keeps, if one does."""
  pairs = algorithms.items() if isinstance(algorithms, Mapping) else algorithms
  for entry in pairs if isinstance(pairs, Iterable) else ():
    pair = isinstance(entry, list | tuple) and len(entry) == 2
    name, state = entry if pair else (None, None)
    if name == "EMA" and isinstance(state, Mapping):
      model = state.get("ema_model")
      if isinstance(model, Mapping) and model.get("named_parameters_dict"):
        return state_dict(path, model["named_parameters_dict"])
  return None
