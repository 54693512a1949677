"""Checkpoints to and from the PyTorch formats, exactly, a few tensors at a time."""

from set_diffusion_jax.convert.conversion import Report, convert
from set_diffusion_jax.convert.description import describe, description_text

__all__ = ["Report", "convert", "describe", "description_text"]
