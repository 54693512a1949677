"""Text in, batches out: sources, tokenizers, blocks and iterators. No jax here."""

from set_diffusion_jax.data.pipeline import (
  Blocks,
  Corpus,
  Examples,
  evaluation_batches,
  load,
  training_iterator,
)
from set_diffusion_jax.data.tokenizer import ByteTokenizer, Vocabulary

__all__ = [
  "Blocks",
  "ByteTokenizer",
  "Corpus",
  "Examples",
  "Vocabulary",
  "evaluation_batches",
  "load",
  "training_iterator",
]
