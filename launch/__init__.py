"""Launchers: `python launch/gke.py`, or `python -m set_diffusion_jax.launch.gke`."""
