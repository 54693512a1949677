"""Settings that hold for every test."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Shapes and dtypes of the core are checked here only: it costs tracing time.
CHECKED = ("order", "index", "corrupt", "loss", "decode", "schedules", "objective")
hook = install_import_hook(
  [f"set_diffusion_jax.{name}" for name in CHECKED], "beartype.beartype"
)
hook.__enter__()

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
