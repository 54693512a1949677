"""Undoing the markup of published corpora, as zero-shot perplexities are quoted.

GPT-2 was trained on plain text, so PTB, WikiText, LM1B and the like are detokenized
before it (and the diffusion models compared with it) read them. The rules are those of
the BD3-LM evaluation, in its order, mistakes included: a figure is comparable only
under the same rules. Each document is detokenized by itself. `detokenizer_digest` names
the rules in a result.
"""

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
  """Replaces every match of a pattern; `times` passes over the text."""

  pattern: str
  replacement: str
  regular: bool = False
  times: int = 1

  def __call__(self, text: str) -> str:
    for _ in range(self.times):
      if self.regular:
        text = re.sub(self.pattern, self.replacement, text)
      else:
        text = text.replace(self.pattern, self.replacement)
    return text


class _Inside(Rule):
  """A rule of `_inside`, in a time that grows with the text and not with its cube."""

  def __call__(self, text: str) -> str:
    left, right = self.replacement[0], self.replacement[-1]
    parts, place = [], 0
    while True:
      start = text.find(left, place)
      end = text.find(right, start + 1) if start >= 0 else -1
      if end < 0:
        return "".join([*parts, text[place:]])
      parts += [text[place:start], left, text[start + 1 : end].strip(), right]
      place = end + 1


def _inside(left: str, right: str, inner: str) -> Rule:
  """Takes the spaces off the inner sides of a pair of marks."""
  pattern = rf"{re.escape(left)}\s*({inner}*?)\s*{re.escape(right)}"
  return _Inside(pattern, rf"{left}\1{right}", True)


def _spaced(left: str, right: str, inner: str) -> Rule:
  """The same for exactly one space on either side."""
  pattern = rf"{re.escape(left)} ({inner}+) {re.escape(right)}"
  return Rule(pattern, rf"{left}\1{right}", True)


_WIKITEXT = (
  Rule("s '", "s'"),
  # Written as in another language, it matches only itself; kept for the order's sake.
  Rule(r"/' [0-9]/", r"/'[0-9]/", True),
  *(Rule(f" @{mark}@ ", mark) for mark in "-,."),
  *(Rule(f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
  _inside("(", ")", r"[^\)]"),
  _inside("[", "]", r"[^\]]"),
  _inside("{", "}", r"[^}]"),
  _inside('"', '"', r'[^"]'),
  _inside("'", "'", r"[^']"),
  Rule("= = = =", "===="),
  Rule("= = =", "==="),
  Rule("= =", "=="),
  Rule(" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
  Rule(" \n", "\n"),
  Rule("\n ", "\n"),
  Rule(" N ", " 1 "),
  Rule(" 's", "'s"),
)

_PTB = (
  Rule(" 's", "'s"),
  Rule("s ' ", "s' "),
  Rule(" n't", "n't"),
  Rule(" \n ", "\n"),
  Rule("\\/", "/"),
  Rule(" N ", " 1 ", times=10),
  Rule("$ 1", "$1"),
  Rule("# 1", "#1"),
  Rule("<unk>", "?"),
)

_LM1B = (
  Rule("http : / / ", "http://"),
  Rule("https : / / ", "https://"),
  Rule(r" \'(\w+)", r"'\1", True),
  Rule(r" (\w+) \. ", r" \1. ", True),
  Rule(r" (\w+) \.$", r" \1.", True),
  Rule(" ? ", "? "),
  Rule(r" \?$", "?", True),
  Rule(" ! ", "! "),
  Rule(r" \!$", "!", True),
  Rule(" , ", ", "),
  Rule(" : ", ": "),
  Rule(" ; ", "; "),
  Rule(" / ", "/"),
  _spaced('"', '"', r'[^"]'),
  _spaced("'", "'", r"[^']"),
  _spaced("(", ")", r"[^\(\)]"),
  _spaced("[", "]", r"[^\[\]]"),
  Rule("$ ", "$"),
  Rule("\N{POUND SIGN} ", "\N{POUND SIGN}"),
)


class _Strip(Rule):
  """What the pattern does, in a time that grows with the text and not its square."""

  def __call__(self, text: str) -> str:
    return text.strip()


# Data sets of one sentence a line come without the line's ends.
_STRIP = _Strip(r"\A\s+|\s+\Z", "", True)

_LAMBADA = (
  Rule("\N{LEFT DOUBLE QUOTATION MARK}", '"'),
  Rule("\N{RIGHT DOUBLE QUOTATION MARK}", '"'),
  _STRIP,
  Rule(r"\A", "\n", True),
)

# The final answer of a GSM8K solution, "#### 72", as the papers have models write it.
_GSM8K = (Rule(r"(?m)^####\s*(\d+)\s*$", r"$\\boxed{\1}$", True),)

RULES: dict[str, tuple[Rule, ...]] = {
  "none": (),
  "wikitext": _WIKITEXT,
  "ptb": (_STRIP, *_PTB),
  "lm1b": (_STRIP, *_LM1B),
  "lambada": _LAMBADA,
  "scientific_papers": (*_WIKITEXT, *_LM1B),
  "gsm8k": _GSM8K,
}


def detokenizer(name: str) -> Callable[[str], str]:
  """The detokenizer that `data.detokenizer` names, text to text."""

  def apply(text: str) -> str:
    for rule in RULES[name]:
      text = rule(text)
    return text

  return apply


def detokenizer_digest(name: str) -> str:
  """SHA-256 of the rules, to be quoted with a perplexity."""
  return hashlib.sha256(repr([tuple(r) for r in RULES[name]]).encode()).hexdigest()
