"""What ends a text besides EOS and its length."""

import dataclasses
import re
import warnings

import numpy as np

from set_diffusion_jax.data import Tokenizer
from set_diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stops:
  """What ends a text besides EOS and its length; the text is cut off before it.

  Attributes:
    strings: any of these in the generated text.
    pattern: a regular expression that matches in it.
    repeats: so many equal tokens one after another.
    confidence: (n, p): n tokens in a row were on average less likely than p.
    entropy: (n, h): the frequencies of n tokens in a row have an entropy below h nats.
  """

  strings: tuple[str, ...] = ()
  pattern: str | None = None
  repeats: int | None = None
  confidence: tuple[int, float] | None = None
  entropy: tuple[int, float] | None = None

  def __post_init__(self):
    if "" in self.strings:
      raise UserError("--stop=: must not be empty, every text would end at once")
    if self.pattern is not None:
      _check_pattern(self.pattern)

  def found(
    self, ids: np.ndarray, confidence: np.ndarray, tokenizer: Tokenizer
  ) -> tuple[int, str] | None:
    """(how many tokens to keep, why) if a text has met a stop; None if not.

    Args:
      ids: int [n], what has been generated without a gap.
      confidence: float [n], the probability of each of these tokens.
      tokenizer: ids to text.
    """
    text = tokenizer.decode(ids)
    cuts = [(text.find(s), f"stop string {s!r}") for s in self.strings if s in text]
    if self.pattern is not None and (match := re.search(self.pattern, text)):
      cuts.append((match.start(), "stop regex"))
    if cuts:
      cut, why = min(cuts)
      keep = 0
      while keep < len(ids) and len(tokenizer.decode(ids[: keep + 1])) <= cut:
        keep += 1
      return keep, why
    return self._window(ids, confidence)

  def _window(self, ids: np.ndarray, confidence: np.ndarray) -> tuple[int, str] | None:
    """The same for what is looked for in every run of n tokens."""
    if self.repeats is not None:
      same = lambda run: (ids[run] == ids[run][0]).all()
      start = _first_run(len(ids), self.repeats, same)
      if start is not None:
        return start + 1, "repeated token"
    if self.confidence is not None:
      size, least = self.confidence
      unsure = lambda run: confidence[run].mean() < least
      if (start := _first_run(len(ids), size, unsure)) is not None:
        return start, "low confidence"
    if self.entropy is not None:
      size, least = self.entropy
      poor = lambda run: _entropy(ids[run]) < least
      if (start := _first_run(len(ids), size, poor)) is not None:
        return start, "low entropy"
    return None


# Nothing, a rare letter, and a character that is no letter: what a pattern finds here
# besides these themselves it finds in every text, between any two characters.
_ANY_TEXT = ("", "\u16e0", "\ue000")


def _check_pattern(pattern: str) -> None:
  """UserError for what is no regular expression, or matches where nothing is."""
  where = f"--stop-regex={pattern}"
  try:
    with warnings.catch_warnings():  # of what later versions of Python may read
      warnings.simplefilter("ignore", FutureWarning)
      re.compile(pattern)
    found = [re.search(pattern, text) for text in _ANY_TEXT]
  except (re.error, OverflowError, RecursionError) as error:
    raise UserError(f"{where}: {error}") from None
  if any(match is not None and not match[0] for match in found):
    raise UserError(f"{where}: must not match the empty text, as every text has it")


def _first_run(count: int, size: int, is_bad) -> int | None:
  """Where the first run of `size` tokens begins that is bad."""
  starts = range(count - size + 1)
  return next((i for i in starts if is_bad(slice(i, i + size))), None)


def _entropy(ids: np.ndarray) -> float:
  """Of the ids' own frequencies, in nats."""
  share = np.unique(ids, return_counts=True)[1] / len(ids)
  return float(-(share * np.log(share)).sum())
