"""Text in, batches out: sources, tokenizers, blocks and iterators."""
