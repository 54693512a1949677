"""The nearest configuration that fits: fewer changes first, found by compiling."""

import dataclasses
import itertools
from collections.abc import Iterator

from set_diffusion_jax.config import Config

# Compiles that a search may take.
TRIES = 8


def candidates(config: Config, mesh: dict[str, int]) -> Iterator[Config]:
  """Configurations that need less memory, those with fewer and cheaper changes first.

  Remat costs compute, fsdp communication, and micro-batches both; each is changed
  alone before two are changed together, and each as little as possible.
  """
  ways = mesh["data"] * mesh["fsdp"]
  fsdp = [n for n in _doubled(mesh["fsdp"], ways) if ways % n == 0]
  rows = config.train.batch_size // (mesh["slice"] * ways)
  accumulate = [n for n in _doubled(config.train.accumulate, rows) if rows % n == 0]
  remats = ["layer"] if config.model.remat == "layer" else ["none", "layer"]
  every = [
    (sum(map(bool, place)), sum(place), change)
    for place, change in (
      ((i, j, k), (remat, f, a))
      for (i, remat), (j, f), (k, a) in itertools.product(
        enumerate(remats), enumerate(fsdp), enumerate(accumulate)
      )
    )
    if any(place)
  ]
  for _, _, (remat, f, a) in sorted(every, key=lambda x: x[:2]):
    yield dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, remat=remat),
      mesh=dataclasses.replace(config.mesh, data=-1, fsdp=f),
      train=dataclasses.replace(config.train, accumulate=a),
    )


def _doubled(first: int, last: int) -> list[int]:
  found = [first]
  while found[-1] * 2 <= last:
    found.append(found[-1] * 2)
  return found


def overrides(before: Config, after: Config) -> list[str]:
  """What to add to the command line to get from one to the other."""
  found = []
  for group in ("model", "mesh", "train"):
    old, new = getattr(before, group), getattr(after, group)
    for field in dataclasses.fields(old):
      value = getattr(new, field.name)
      if value != getattr(old, field.name):
        found.append(f"--config.{group}.{field.name}={value}")
  return found
