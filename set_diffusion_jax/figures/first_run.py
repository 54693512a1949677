"""The picture of the first run: how both models learnt, and how a gap was filled."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from set_diffusion_jax.figures.canvas import canvas

_LETTER = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 8}


class Filling(NamedTuple):
  """A text, and when each of its tokens was there.

  Attributes:
    pieces: what each token reads.
    step: the decoding step that committed it, from 1; 0 for what was given.
  """

  pieces: list[str]
  step: list[int]

  @classmethod
  def of(cls, looks: Iterable, given: np.ndarray, piece_of) -> "Filling":
    """Follows one text while it is generated.

    Args:
      looks: at that text alone, one after each decoding step, as
        `Generation.run(every=1)` yields them.
      given: bool [L], which tokens were there from the start.
      piece_of: what an id reads, alone.
    """
    length, missing = len(given), np.zeros(len(given), int)
    for look in looks:
      tokens = look.tokens[0, :length]
      missing += ~look.committed[0, :length]
    step = np.where(given, 0, missing + 1)
    return cls([piece_of(token) for token in tokens], step.tolist())


def held_out_curve(rows: Sequence[Mapping]) -> tuple[list[int], list[float]]:
  """Steps and held-out bits per byte, from the rows of a run's metrics.jsonl."""
  name = "validation/bits_per_byte"
  found = [(row["step"], row[name]) for row in rows if name in row]
  return [step for step, _ in found], [bits for _, bits in found]


def save(
  path: pathlib.Path,
  curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
  filling: Filling,
) -> None:
  """Draws the curves of `held_out_curve` beside a filled text into a PNG."""
  last = max(filling.step)
  with canvas(path, (12, 4), columns=2, width_ratios=(1, 2)) as (left, right):
    for name, (steps, bits) in curves.items():
      left.plot(steps, bits, marker="o", markersize=3, label=name)
    left.set(xlabel="training step", ylabel="held-out bits per byte")
    left.legend(frameon=False)
    for place, (piece, step) in enumerate(zip(*filling, strict=True)):
      piece = "\N{OPEN BOX}" if piece == " " else piece
      colour = "C1" if step else "0.45"
      for height in {step, last + 2}:
        right.text(place, height, piece, color=colour, **_LETTER)
      if step:
        right.plot([place, place], [step + 0.6, last + 1.4], color="0.9", lw=0.6)
    right.set(
      xlim=(-1, len(filling.pieces)),
      ylim=(last + 3, -1),
      xlabel="position in the text",
      ylabel="committed in step",
      title="given text in grey; the finished text is the last line",
    )
    right.set_yticks(range(0, last + 1, max(1, math.ceil(last / 8))))
