"""Models and texts for tests of decoding, small enough to compile fast."""

import functools

import numpy as np

from set_diffusion_jax.api import Model
from set_diffusion_jax.config import DecodeConfig
from set_diffusion_jax.data import IdTokenizer
from tests import tiny

VOCAB = 12
MASK, EOS = VOCAB - 1, VOCAB - 3
SMALL = {
  "model__layers": 1,
  "model__width": 8,
  "model__heads": 1,
  "model__ffn": 8,
}
GREEDY = DecodeConfig(temperature=0.0, stop_at_eos=False)


@functools.cache
def model(method: str, length: int, seed: int = 0, **changes) -> Model:
  """Random weights; texts are lists of ids."""
  changes = SMALL | {"data__bos": False} | changes
  obj = tiny.objective(VOCAB, method__name=method, data__length=length, **changes)
  params = tiny.params(obj, seed, scale=0.5)
  return Model(obj.config, params, IdTokenizer(tiny.vocabulary(VOCAB)), 0)


def mixed(*lengths: int, gaps: bool = True, seed: int = 0) -> list[np.ndarray]:
  """A text of each length: given at random, always with something to generate."""
  rng, found = np.random.default_rng(seed), []
  for length in lengths:
    ids = rng.integers(0, EOS, length).astype(np.int32)
    open_ = rng.random(length) < 0.7 if gaps else np.arange(length) >= 3
    open_[rng.integers(3, length)] = True
    open_[0] = False
    found.append(np.where(open_, MASK, ids).astype(np.int32))
  return found


def tokens(results) -> list[list[int]]:
  """Of the results of a generation."""
  return [row["tokens"] for row in results]
