"""One record a method: all that tells the methods of the family apart.

A method is an order, a corruption and a commit rule. Its record names the sampler of
its orders and says what the rest of the code may rely on: how positions are grouped
into sets, what is masked, how many positions can come next. Nothing else in the package
asks which method it is. docs/method.md shows how to add one.

Settings are checked where jax is not loaded, in launchers and in workers that read
data. So nothing here imports jax, and samplers are found by name in `order.SAMPLERS`.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from set_diffusion_jax.config import MethodConfig

SETS = ("single", "blocks", "whole", "drawn")
SCHEDULES = (None, "sizes", "uniform")
NOISES = ("full", "level", "either")


def _max_set_size(method: "MethodConfig", length: int) -> int:
  return round(method.max_set_size)


@dataclasses.dataclass(frozen=True)
class Method:
  """What a method is. Fields that are functions take its settings, a `MethodConfig`.

  Attributes:
    order: the name of its sampler in `order.SAMPLERS`.
    sets: how positions are grouped. "single": each one is a set of its own, so that one
      order gives an exact log p. "drawn": the sampler says, and any sets will do.
      "blocks": each aligned run of block_size memory slots is a set. "whole": all are
      one set. The last two promise more, which makes attention and decoding faster.
    drawn: whether orders are drawn; False: all texts have the same one.
    schedule: the position-offset schedule that orders come from: that of the "sizes"
      max_set_size and prediction_budget, the widest one ("uniform": any order is as
      likely), or None.
    noise: "full", every set is fully masked; "level", sets are masked at noise levels
      that are drawn; "either", as `method.noise` says.
    next_token: whether each slot predicts the token after it, in one stream, instead of
      its own: autoregression. Orders must then go from left to right.
    max_active: of single positions in texts of a length: how many can be next at once.
      Decoding looks at so many candidates unless decode.window says otherwise.
    size: its size in a few words, or "", for titles of pictures.
    meaning: a line on what its size means, or "", for descriptions of weights.
    published: the published class of models whose weights it can be converted to.

  Raises:
    ValueError: sets, schedule or noise is none of the above.
  """

  order: str
  sets: str = "single"
  drawn: bool = False
  schedule: str | None = None
  noise: str = "full"
  next_token: bool = False
  max_active: Callable[["MethodConfig", int], int] = _max_set_size
  size: Callable[["MethodConfig"], str] = lambda method: ""
  meaning: Callable[["MethodConfig"], str] = lambda method: ""
  published: str | None = None

  def __post_init__(self):
    for field, known in (("sets", SETS), ("schedule", SCHEDULES), ("noise", NOISES)):
      value = getattr(self, field)
      if value not in known:
        raise ValueError(f"{field} = {value!r}: must be one of {known}")


def _sliding_window(method: "MethodConfig") -> str:
  budget = method.prediction_budget or method.max_set_size / 4
  return (
    f"schedule: S_max = {method.max_set_size:g} positions active at once, "
    f"S = {2 * budget:g} (names of published models count S_max)"
  )


METHODS: dict[str, Method] = {
  "ar": Method("left_to_right", next_token=True, published="AR"),
  "any_order": Method(
    "reveal_times",
    drawn=True,
    schedule="uniform",
    max_active=lambda method, length: length,
    meaning=lambda method: "schedule: the uniform order, S = S_max = the whole length",
    published="SetDLM",
  ),
  "set": Method(
    "reveal_times",
    drawn=True,
    schedule="sizes",
    size=lambda method: f"N = {method.max_set_size:g}",
    meaning=_sliding_window,
    published="SetDLM",
  ),
  "masked": Method("one_set", sets="whole", noise="level", published="MDLM"),
  "block": Method(
    "blocks",
    sets="blocks",
    noise="level",
    size=lambda method: f"S = {method.block_size}",
    meaning=lambda method: f"blocks of {method.block_size} positions",
    published="BD3LM",
  ),
  "general": Method(
    "grid",
    sets="drawn",
    drawn=True,
    schedule="sizes",
    noise="either",
    size=lambda method: f"grid {method.grid}",
  ),
}


class MethodFacts:
  """What follows from a method's record and its settings.

  `MethodConfig` inherits it, so that code asks `config.method.one_at_a_time`.
  """

  @property
  def record(self) -> Method:
    """Of the method's name."""
    return METHODS[self.name]

  @property
  def one_stream(self) -> bool:
    """Whether slots predict the token after them (AR) instead of their own."""
    return self.record.next_token

  @property
  def one_at_a_time(self) -> bool:
    """Whether every set is a single position: one order gives an exact log p."""
    return self.record.sets == "single"

  @property
  def single_set(self) -> bool:
    """Whether the whole text is one set: there is no earlier set to be seen."""
    return self.record.sets == "whole"

  @property
  def whole_texts(self) -> bool:
    """Whether a set can have positions of the whole text, however long.

    Then a text cannot outgrow the training length by dropping its oldest tokens.
    """
    return self.record.sets in ("whole", "drawn")

  @property
  def streams(self) -> int:
    """Streams that the model reads: clean or noisy tokens, or both."""
    return 1 if self.one_stream or self.single_set else 2

  @property
  def has_schedule(self) -> bool:
    """Whether orders come from a position-offset schedule."""
    return self.record.schedule is not None

  @property
  def has_levels(self) -> bool:
    """Whether sets are partly masked, at noise levels that are drawn."""
    noise = self.noise if self.record.noise == "either" else self.record.noise
    return noise == "level" or self.predict == "active"

  @property
  def mixes(self) -> bool:
    """Whether a drawn order has exact nats, so that several make a tighter bound."""
    return self.record.drawn and (self.one_at_a_time or not self.has_levels)

  def levels(self, length: int) -> int:
    """Noise levels of a text of a length, one for each set by its rank.

    Single positions (predict=active) share one, at which the whole text is looked at.
    """
    sizes = {"blocks": self.block_size, "drawn": 1}
    return -(-length // sizes.get(self.record.sets, length))

  def max_active(self, length: int) -> int:
    """Single positions that can be next at once, in texts of a length."""
    return self.record.max_active(self, length)

  def reach(self, length: int) -> int:
    """The aligned run of memory slots that each set lies within: `TokenIndex.reach`."""
    if self.predict == "active":
      return length
    return {"single": 1, "blocks": self.block_size}.get(self.record.sets, length)

  @property
  def aligned_sets(self) -> bool:
    """Whether each run of `reach` slots is just one set, whatever was drawn."""
    return self.record.sets != "drawn" and self.predict != "active"

  @property
  def label(self) -> str:
    """The method and its size in a few words."""
    return ", ".join(filter(None, (self.name, self.record.size(self))))
