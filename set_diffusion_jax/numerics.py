"""JAX's settings that figures depend on: the same whatever the user's other code says.

JAX reads them from variables such as JAX_ENABLE_X64, which are set for whatever else
runs in that shell.
"""

import contextlib
from collections.abc import Iterator

import jax

_KEYS = "threefry2x32"  # of random numbers; checkpoints hold such keys


def settle() -> None:
  """Makes them those of the whole process, for a command of the command line."""
  jax.config.update("jax_enable_x64", False)
  jax.config.update("jax_default_prng_impl", _KEYS)
  jax.config.update("jax_threefry_partitionable", True)
  jax.config.update("jax_numpy_dtype_promotion", "standard")
  jax.config.update("jax_default_matmul_precision", None)


@contextlib.contextmanager
def settled() -> Iterator[None]:
  """Inside, and in this thread, they are right; outside they stay the user's own.

  The precision of matrix products is not among them: who sets it around a call wants it
  for that call.
  """
  with (
    jax.enable_x64(False),
    jax.default_prng_impl(_KEYS),
    jax.threefry_partitionable(True),
    jax.numpy_dtype_promotion("standard"),
  ):
    yield
