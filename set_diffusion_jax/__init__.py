"""Set Diffusion language models in JAX."""
