"""`python -m set_diffusion_jax`, and the installed command `set-diffusion`."""

import os
import re
import sys


def main() -> int:
  """Runs one verb; returns the exit code.

  JAX reads its settings from the environment when it is imported: a value that it does
  not know is told in one line.
  """
  try:
    from set_diffusion_jax import cli
  except ValueError as error:
    found = re.search(r"\bjax_\w+", str(error), re.IGNORECASE)
    name = found[0].upper() if found else None
    if name not in os.environ:
      raise
    print(f"error: {name}={os.environ[name]}: JAX knows no such value", file=sys.stderr)
    return 2
  return cli.main(watched=True)


if __name__ == "__main__":
  sys.exit(main())
