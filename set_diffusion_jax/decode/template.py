"""Texts with gaps, as a user writes them."""

import re

import numpy as np

from set_diffusion_jax.data import Tokenizer
from set_diffusion_jax.errors import UserError

_GAP = re.compile(r"\[MASK(?::(\d+))?\]")


def template(text: str, tokenizer: Tokenizer, bos: bool) -> np.ndarray:
  """Ids of a text in which [MASK] or [MASK:n] stands for 1 or n tokens to be filled in.

  Args:
    text: may have several gaps.
    tokenizer: encodes what stands between them.
    bos: whether the model reads BOS first.

  Raises:
    UserError: the text has no gap, or one of no tokens.
  """
  vocabulary = tokenizer.vocabulary
  pieces = [np.array([vocabulary.bos] * bos, np.int32)]
  end = 0
  for gap in _GAP.finditer(text):
    count = int(gap[1] or 1)
    if not 0 < count < 2**20:
      raise UserError(f"{gap[0]}: must stand for at least one token, and below 2**20")
    pieces += [tokenizer.encode(text[end : gap.start()])]
    pieces += [np.full(count, vocabulary.mask, np.int32)]
    end = gap.end()
  if not end:
    raise UserError(f"{text[:40]!r}: has no gap; write [MASK:12] for twelve tokens")
  return np.concatenate([*pieces, tokenizer.encode(text[end:])])
