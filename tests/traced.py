"""Walks through traced functions."""

from collections.abc import Iterator

import jax


def equations(jaxpr, times: int = 1) -> Iterator[tuple]:
  """Every equation of a traced function and how often it is executed.

  The bodies of loops, of calls and of branches are gone through; a kernel's body and
  what has no results are not.
  """
  for eqn in jaxpr.eqns:
    if not eqn.outvars:
      continue
    yield eqn, times
    if eqn.primitive.name == "pallas_call":
      continue
    steps = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    parts = jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    )
    for part in parts:
      body = getattr(part, "jaxpr", part)
      if hasattr(body, "eqns"):
        yield from equations(body, times * steps)
