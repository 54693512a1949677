"""Likelihoods with their error bars."""

from set_diffusion_jax.evaluate.clip import Clip
from set_diffusion_jax.evaluate.figures import Likelihood, draw_variance, mixture_nats
from set_diffusion_jax.evaluate.likelihood import (
  SUMS,
  Detail,
  Evaluation,
  Evaluator,
  detail,
  unigram_bits_per_byte,
)
from set_diffusion_jax.evaluate.partial import PartialResults

__all__ = [
  "SUMS",
  "Clip",
  "Detail",
  "Evaluation",
  "Evaluator",
  "Likelihood",
  "PartialResults",
  "detail",
  "draw_variance",
  "mixture_nats",
  "unigram_bits_per_byte",
]
