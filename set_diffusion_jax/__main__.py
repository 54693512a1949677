"""`python -m set_diffusion_jax`."""

import sys

from set_diffusion_jax.cli import main

sys.exit(main())
