"""Likelihoods with their error bars."""

from set_diffusion_jax.evaluate.clip import Clip
from set_diffusion_jax.evaluate.figures import Likelihood, draw_variance, mixture_nats
from set_diffusion_jax.evaluate.likelihood import (
  SUMS,
  Evaluation,
  Evaluator,
  unigram_bits_per_byte,
)
from set_diffusion_jax.evaluate.partial import PartialResults

__all__ = [
  "SUMS",
  "Clip",
  "Evaluation",
  "Evaluator",
  "Likelihood",
  "PartialResults",
  "draw_variance",
  "mixture_nats",
  "unigram_bits_per_byte",
]
