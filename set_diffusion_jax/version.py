"""The version of the installed code, as checkpoints record it."""

import importlib.metadata

VERSION = importlib.metadata.version("set_diffusion_jax")
