"""The version of the installed code, as checkpoints record it."""

import hashlib
import importlib.metadata
import pathlib

VERSION = importlib.metadata.version("set_diffusion_jax")


def code_digest() -> str:
  """SHA-256 of this package's source files: tells two states of the code apart."""
  root = pathlib.Path(__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()
