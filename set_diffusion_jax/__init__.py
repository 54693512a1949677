"""Set Diffusion language models in JAX."""

from set_diffusion_jax.api import Model, load
from set_diffusion_jax.errors import UserError

__all__ = ["Model", "UserError", "load"]
