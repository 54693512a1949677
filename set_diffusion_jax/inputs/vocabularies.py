"""What files of tokenizers have in common: how many ids, and compiled normalisers."""

import numpy as np

from set_diffusion_jax.errors import UserError

# More ids than any published vocabulary has (the largest have about a million): each is
# a row of the model's matrices, which a number in a small file must not ask for.
MOST_IDS = 2**22


def check_id(number: object, name: str, where: str) -> int:
  """A number from outside that is to be an id.

  Args:
    number: of any type.
    name: says whose id it is.
    where: names the file.

  Raises:
    UserError: it is no whole number in [0, MOST_IDS).
  """
  if type(number) is not int or not 0 <= number < MOST_IDS:
    shown = f"{number!r}"[:24]
    raise UserError(
      f"{where}: {name} has id {shown}; must be a whole number below {MOST_IDS}"
    )
  return number


def check_charsmap(blob: bytes, where: str) -> None:
  """Checks the replacements of characters that SentencePiece compiles into a model.

  They are a trie as a double array of 32-bit units, its size in bytes before it, and
  texts that end with NUL, which its leaves point into. Libraries follow its offsets
  without looking.

  Raises:
    UserError: an offset leads outside.
  """
  size = int.from_bytes(blob[:4], "little")
  texts = blob[4 + size :]
  whole = size % 1024 == 0 and size > 0 and texts[-1:] == b"\0"
  if whole:
    units = np.frombuffer(blob, "<u4", size // 4, 4)
    leaf = units >> 31 == 1
    offset = (units >> 10) << ((units & 0x200) >> 6)
    reached = (np.arange(len(units)) ^ offset) | 0xFF  # by any next byte
    whole = (reached[~leaf] < len(units)).all() and (
      (units[leaf] & 0x7FFFFFFF) < len(texts)
    ).all()
  if not whole:
    raise UserError(f"{where}: its precompiled_charsmap is damaged")
