"""Likelihoods with their error bars."""

from set_diffusion_jax.evaluate.likelihood import (
  Evaluator,
  Likelihood,
  unigram_bits_per_byte,
)

__all__ = ["Evaluator", "Likelihood", "unigram_bits_per_byte"]
