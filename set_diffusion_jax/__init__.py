"""Set Diffusion language models in JAX."""

import pathlib
from typing import TYPE_CHECKING

from set_diffusion_jax.errors import UserError

if TYPE_CHECKING:
  from set_diffusion_jax.api import Model, load

__all__ = ["Model", "UserError", "load"]

# `set_diffusion_jax.configs` and `set_diffusion_jax.launch`: a wheel has them inside
# this directory. In a clone they stand beside it, so that Python looks there as well.
_HERE = pathlib.Path(__file__).parent
if not (_HERE / "launch").is_dir():
  __path__.append(str(_HERE.parent))


def __getattr__(name: str):
  """`Model` and `load`, imported with jax when asked for: launchers do without."""
  if name not in ("Model", "load"):
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from set_diffusion_jax import api

  return getattr(api, name)
