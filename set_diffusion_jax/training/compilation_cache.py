"""JAX's cache of compiled programs, kept in the work directory of a run.

WORKDIR/compilation-cache/NAME-cache   a program, as JAX writes it
WORKDIR/compilation-cache/digests.json SHA-256 of each

JAX writes an entry in place, never replaces what a kill has left of one, and need not
notice a changed bit. So only what is as it was recorded is left there for JAX.
"""

import contextlib
import hashlib
import json
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.storage import disk, places

FOLDER = "compilation-cache"
_DIGESTS = "digests.json"
_SETTINGS = {
  "jax_persistent_cache_min_compile_time_secs": 0.1,  # faster: not worth a file
  # Those of XLA would be found by where they are, and chosen kernels depend on them.
  "jax_persistent_cache_enable_xla_caches": "none",
}


class CompilationCache:
  """The cache of a work directory on a disk; every process makes one, as a context.

  There is none for a bucket, and none where the user has named another place, by
  --compilation-cache or JAX_COMPILATION_CACHE_DIR: that is left to JAX.

  Args:
    workdir: of the run, which must be held.

  Attributes:
    news: lines that are to be said.
  """

  def __init__(self, workdir: pathlib.Path):
    self._folder = places.absolute(workdir) / FOLDER
    self._used = not (places.is_remote(workdir) or jax.config.jax_compilation_cache_dir)
    self._digests: dict[str, str] = {}
    self._before: dict[str, object] = {}
    self.news: list[str] = []

  def __enter__(self) -> "CompilationCache":
    line = processes.from_first(self._clean)
    if line is not None:
      self.news, self._used = [line], False
    if self._used:
      wanted = {**_SETTINGS, "jax_compilation_cache_dir": str(self._folder)}
      self._before = {name: getattr(jax.config, name) for name in wanted}
      self._set(wanted)
    return self

  def __exit__(self, kind, *exception) -> None:
    if kind is None:  # after an error a thread may still compile
      self.record()
    self._set(self._before)

  def _set(self, settings: dict) -> None:
    """Changes settings of JAX, which looks at them once otherwise."""
    for name, value in settings.items():
      jax.config.update(name, value)
    if settings:
      compilation_cache.reset_cache()

  def _clean(self) -> str | None:
    """Removes what is not as it was recorded; a line if there can be no cache."""
    if not self._used:
      return None
    try:
      self._folder.mkdir(exist_ok=True)
      recorded = self._recorded()
      for file in self._entries():
        if _digest(file) == recorded.get(file.name):
          self._digests[file.name] = recorded[file.name]
        else:
          file.unlink()
    except OSError as error:
      return f"{self._folder}: {error.strerror}; compiled programs are not kept"
    return None

  def _recorded(self) -> dict:
    """What the file of digests says; what is not one is not recorded."""
    try:
      content = places.read_bytes(self._folder / _DIGESTS)
      found = parse_json(content, _DIGESTS)
    except (FileNotFoundError, UserError):
      return {}
    return found if isinstance(found, dict) else {}

  def _entries(self) -> list[pathlib.Path]:
    names = places.names(self._folder)
    return [self._folder / name for name in names if name.endswith("-cache")]

  def record(self) -> None:
    """Records programs that are new, so that the next start finds them.

    To be called while nothing is compiled. The first process does it; a disk that is
    full or fails ends no run here.
    """
    if not (self._used and processes.is_first()):
      return
    with contextlib.suppress(OSError):
      new = [file for file in self._entries() if file.name not in self._digests]
      if new:
        self._digests |= {file.name: _digest(file) for file in new}
        text = json.dumps(self._digests, indent=2) + "\n"
        disk.write_whole(self._folder / _DIGESTS, text)


def _digest(file: pathlib.Path) -> str:
  with file.open("rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()
