"""JAX's settings that figures depend on: the same whatever the user's other code says.

JAX reads them from variables such as JAX_ENABLE_X64, which are set for whatever else
runs in that shell.
"""

import contextlib
from collections.abc import Iterator

import jax

_KEYS = "threefry2x32"  # of random numbers; checkpoints hold such keys


# Name of JAX's setting -> what a command of the command line runs with.
_COMMAND = {
  "jax_enable_x64": False,
  "jax_default_prng_impl": _KEYS,
  "jax_threefry_partitionable": True,
  "jax_numpy_dtype_promotion": "standard",
  "jax_default_matmul_precision": None,
  "jax_disable_jit": False,  # operations one by one are rounded in other places
  "jax_disable_most_optimizations": False,  # as above
  "jax_transfer_guard": "allow",  # texts go to the device, figures come back
}


def settle() -> None:
  """Makes them those of the whole process, for a command of the command line."""
  for name, value in _COMMAND.items():
    if hasattr(jax.config, name):  # not every version has each
      jax.config.update(name, value)


@contextlib.contextmanager
def settled() -> Iterator[None]:
  """Inside, and in this thread, they are right; outside they stay the user's own.

  The precision of matrix products and what helps to debug, such as jax.disable_jit, are
  not among them: who sets these around a call wants them for that call.
  """
  with (
    jax.enable_x64(False),
    jax.default_prng_impl(_KEYS),
    jax.threefry_partitionable(True),
    jax.numpy_dtype_promotion("standard"),
    jax.transfer_guard("allow"),
  ):
    yield
