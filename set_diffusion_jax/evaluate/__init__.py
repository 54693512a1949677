"""Likelihoods with their error bars."""

from set_diffusion_jax.evaluate.likelihood import (
  Evaluator,
  Likelihood,
  mixture_nats,
  unigram_bits_per_byte,
)

__all__ = ["Evaluator", "Likelihood", "mixture_nats", "unigram_bits_per_byte"]
