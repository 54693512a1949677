"""Text in, batches out: sources, tokenizers, blocks and iterators. No jax here."""

from set_diffusion_jax.data.blocks import Blocks, Examples, Frame
from set_diffusion_jax.data.pipeline import (
  Corpus,
  evaluation_batches,
  load,
  load_validation,
  training_iterator,
)
from set_diffusion_jax.data.preparation import prepare
from set_diffusion_jax.data.prepared import Prepared
from set_diffusion_jax.data.sources import hold_out_end
from set_diffusion_jax.data.stream import Stream
from set_diffusion_jax.data.text import Text, Tokens
from set_diffusion_jax.data.tokenizer import (
  ByteTokenizer,
  IdTokenizer,
  JsonTokenizer,
  PieceTokenizer,
  Tokenizer,
  cpus,
  facts,
  load_tokenizer,
  lost_text,
  restore_tokenizer,
  train_bpe,
  with_vocabulary,
)
from set_diffusion_jax.data.vocabulary import Runs, Vocabulary, count

__all__ = [
  "Blocks",
  "ByteTokenizer",
  "Corpus",
  "Examples",
  "Frame",
  "IdTokenizer",
  "JsonTokenizer",
  "PieceTokenizer",
  "Prepared",
  "Runs",
  "Stream",
  "Text",
  "Tokenizer",
  "Tokens",
  "Vocabulary",
  "count",
  "cpus",
  "evaluation_batches",
  "facts",
  "hold_out_end",
  "load",
  "load_tokenizer",
  "load_validation",
  "lost_text",
  "prepare",
  "restore_tokenizer",
  "train_bpe",
  "training_iterator",
  "with_vocabulary",
]
