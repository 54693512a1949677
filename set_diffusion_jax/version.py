"""What computes: this code, jax and Python, as checkpoints record them."""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform

VERSION = importlib.metadata.version("set_diffusion_jax")
_NONE = "none"  # of what is not installed


@functools.cache
def code_digest() -> str:
  """SHA-256 of this package's source files: tells two states of the code apart.

  Configurations and launchers do not count: a run's configuration is recorded whole.
  """
  root = pathlib.Path(__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    name = path.relative_to(root)
    if name.parts[0] not in ("configs", "launch"):  # there in a wheel, not in a clone
      digest.update(name.as_posix().encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
  """The version of each thing that computes, by name.

  "source" is the beginning of `code_digest`; whatever lets jax use an accelerator,
  such as libtpu, is there under its own name where it is installed.
  """
  found = {
    "set_diffusion_jax": VERSION,
    "source": code_digest()[:12],
    "Python": platform.python_version(),
  }
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  for name in ("jax", "jaxlib", "libtpu", *sorted({p.dist.name for p in plugins})):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def changes(since: str, then: dict[str, str]) -> list[str]:
  """One line that says what differs from `versions` at another time, or no line.

  Args:
    since: when it was, such as "step 200".
    then: what `versions` was; nothing, if that is not known.
  """
  now = versions()
  found = []
  for name in {**then, **now} if then else ():
    old, new = then.get(name, _NONE), now.get(name, _NONE)
    if old != new:
      found.append("source changed" if name == "source" else f"{name} {old} -> {new}")
  return [f"since {since}: {', '.join(found)}"] if found else []
