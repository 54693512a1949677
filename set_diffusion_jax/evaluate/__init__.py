"""Likelihoods with their error bars."""

from set_diffusion_jax.evaluate.clip import Clip
from set_diffusion_jax.evaluate.likelihood import (
  Evaluation,
  Evaluator,
  Likelihood,
  mixture_nats,
  unigram_bits_per_byte,
)
from set_diffusion_jax.evaluate.partial import PartialResults

__all__ = [
  "Clip",
  "Evaluation",
  "Evaluator",
  "Likelihood",
  "PartialResults",
  "mixture_nats",
  "unigram_bits_per_byte",
]
