"""Text from outside on a terminal: control characters are shown, not obeyed."""

import re

# What moves the cursor, rings, recolours, or reorders the text around it: C0, DEL, C1,
# marks and overrides of direction, separators, byte-order marks, halves of characters.
_CONTROL = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
  "\ud800-\udfff]"
)


def shown(text: str) -> str:
  """Text with each control character but newline and tab written as its escape."""
  return _CONTROL.sub(lambda match: _escape(match[0]), text)


def line(text: str) -> str:
  """The same as one line: newlines and tabs are written as their escapes, too."""
  return re.sub("[\t\n]", lambda match: _escape(match[0]), shown(text))


def _escape(character: str) -> str:
  return character.encode("unicode_escape").decode()
