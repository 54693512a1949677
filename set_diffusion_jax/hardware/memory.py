"""The share of a GPU's memory that JAX takes for its programs."""

import os

from set_diffusion_jax.errors import UserError

SHARE = "XLA_CLIENT_MEM_FRACTION"
_OLDER = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_DEFAULT = 0.75  # the rest is for the driver, for NCCL and for other programs


def gpu_share() -> float:
  """What the environment asks for, as JAX reads it; 0.75 where it says nothing.

  Raises:
    UserError: both variables are set, or one is no share.
  """
  given = {name: os.environ[name] for name in (SHARE, _OLDER) if os.environ.get(name)}
  if len(given) == 2:
    raise UserError(f"{SHARE} and {_OLDER}: must not both be set; the first is enough")
  for name, value in given.items():
    try:
      share = float(value)
    except ValueError:
      share = 0.0
    if not 0 < share <= 1:
      raise UserError(f"{name}={value}: must be a share of memory, above 0, at most 1")
    return share
  return _DEFAULT
