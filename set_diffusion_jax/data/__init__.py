"""Text in, batches out: sources, tokenizers, blocks and iterators. No jax here."""

from set_diffusion_jax.data.pipeline import (
  Blocks,
  Corpus,
  Examples,
  Frame,
  Tokens,
  evaluation_batches,
  load,
  load_validation,
  training_iterator,
)
from set_diffusion_jax.data.sources import hold_out_end
from set_diffusion_jax.data.tokenizer import (
  ByteTokenizer,
  IdTokenizer,
  JsonTokenizer,
  Tokenizer,
  Vocabulary,
  load_tokenizer,
  restore_tokenizer,
  train_bpe,
  with_vocabulary,
)

__all__ = [
  "Blocks",
  "ByteTokenizer",
  "Corpus",
  "Examples",
  "Frame",
  "IdTokenizer",
  "JsonTokenizer",
  "Tokenizer",
  "Tokens",
  "Vocabulary",
  "evaluation_batches",
  "hold_out_end",
  "load",
  "load_tokenizer",
  "load_validation",
  "restore_tokenizer",
  "train_bpe",
  "training_iterator",
  "with_vocabulary",
]
