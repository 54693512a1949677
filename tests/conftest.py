"""Settings that hold for every test."""

import collections
import os
import shutil
import tempfile

from tests import jobs, quick

os.environ.setdefault("XLA_FLAGS", jobs.xla_flags(4))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook names it and does not import it)

# Shapes and dtypes of the core are checked here only: it costs tracing time.
CHECKED = ("decode", "diffusion", "likelihood")
hook = install_import_hook(
  [f"set_diffusion_jax.{name}" for name in CHECKED], "tests.typechecker.functions_only"
)
hook.__enter__()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests compile the same tiny programs: once a session is enough. The workers of
# pytest-xdist are started by the process that makes the folder, and inherit its name.
CACHE = "SET_DIFFUSION_TESTS_CACHE"


def pytest_configure(config):
  """Makes the cache of compiled programs, in the process that starts the others."""
  if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="set-diffusion-tests-")
    config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
  jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(items):
  """Marks what `tests/quick.py` leaves to `make test-all`."""
  for item in items:
    call = getattr(item, "callspec", None)
    test = getattr(item, "originalname", item.name)
    if quick.is_slow(item.path.name, test, call.id if call else None):
      item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
  """One line that says what was skipped, and what it needs."""
  reasons = collections.Counter()
  for report in terminalreporter.stats.get("skipped", ()):
    if isinstance(report.longrepr, tuple):
      reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
  if reasons:
    each = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
    terminalreporter.write_line(f"skipped: {each}")


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
  """Thousands of compiled programs in one process run into the limit of mappings."""
  yield
  jax.clear_caches()
