"""What training and evaluation are measured on: models, texts and their sets."""

import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks import measure
from set_diffusion_jax.config import Config
from set_diffusion_jax.data import Vocabulary


@dataclasses.dataclass(frozen=True)
class Shape:
  """A DiT of `layers` of `width` on `batch` texts of `length` tokens."""

  layers: int
  width: int
  length: int
  vocab_size: int
  batch: int

  @property
  def tokens(self) -> int:
    """Of a batch."""
    return self.batch * self.length

  @property
  def vocabulary(self) -> Vocabulary:
    """The last four ids are special."""
    bos, eos, pad, mask = range(self.vocab_size - 4, self.vocab_size)
    return Vocabulary(self.vocab_size, bos, eos, pad, mask)

  def config(self, sequences: int = 1) -> Config:
    """Set diffusion in float32; `sequences` are evaluated."""
    model = {
      "layers": self.layers,
      "width": self.width,
      "heads": self.width // 64,
      "ffn": 4 * self.width,
    }
    return Config.from_dict(
      {
        "model": model,
        "method": {"name": "set", "max_set_size": 8.0},
        "data": {"source": "none", "length": self.length, "bos": False},
        "train": {"batch_size": self.batch},
        "evaluate": {"batch_size": self.batch, "sequences": sequences},
      }
    )

  def texts(self, count: int) -> np.ndarray:
    """Random tokens [count, L], none of them special."""
    rng = np.random.default_rng(0)
    size = (count, self.length)
    return rng.integers(0, self.vocab_size - 4, size).astype(np.int32)

  def ranks(self) -> np.ndarray:
    """The sets of the tokens by text position [B, L]: a random order of singletons."""
    rng = np.random.default_rng(1)
    every = np.tile(np.arange(self.length, dtype=np.int32), (self.batch, 1))
    return rng.permuted(every, axis=-1)

  def with_layers(self, layers: int) -> "Shape":
    """The same of another depth."""
    return dataclasses.replace(self, layers=layers)

  def __str__(self) -> str:
    return f"{self.layers} x {self.width}, L={self.length}, B={self.batch}"


LM1B = Shape(layers=12, width=768, length=128, vocab_size=30_522, batch=8)
LONG = Shape(layers=12, width=256, length=1024, vocab_size=50_258, batch=1)
SHAPES = {"LM1B": LM1B, "long texts": LONG}


def every_shape(case: Callable[[str, Shape, dict[str, float]], dict]) -> dict:
  """Prints the row that `case` gives for each shape; returns the report."""
  rates, table = measure.machine_rates(), measure.Table()
  for name, shape in SHAPES.items():
    table.add(case(name, shape, rates))
  return table.report(machine_rates=rates)
