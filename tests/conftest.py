"""Settings that hold for every test."""

import os
import tempfile

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook names it and does not import it)

# Shapes and dtypes of the core are checked here only: it costs tracing time.
CHECKED = ("order", "index", "corrupt", "loss", "decode", "schedules", "objective")
hook = install_import_hook(
  [f"set_diffusion_jax.{name}" for name in CHECKED], "tests.typechecker.functions_only"
)
hook.__enter__()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests compile the same tiny programs: once a session is enough.
CACHE = tempfile.TemporaryDirectory(prefix="set-diffusion-tests-")
jax.config.update("jax_compilation_cache_dir", CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
  """Thousands of compiled programs in one process run into the limit of mappings."""
  yield
  jax.clear_caches()
