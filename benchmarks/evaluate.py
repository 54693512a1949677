"""Evaluation of held-out texts, tokens a second, beside the design in eager PyTorch.

Ours is what the command `evaluate` runs, from tokens to figures; the peer's is a
forward pass of the same weights a batch. One order is drawn for each text.
"""

import numpy as np
import torch

from benchmarks import measure
from benchmarks.shapes import Shape, every_shape
from benchmarks.torch_peer import Peer
from set_diffusion_jax.data import Blocks, Frame, Tokens
from set_diffusion_jax.evaluate import Evaluator
from set_diffusion_jax.training.step import Program, make_mesh

REPEATS, BATCHES = 5, 4


def case(name: str, shape: Shape, rates: dict[str, float]) -> dict:
  """The row of one shape, whose texts are several batches."""
  texts = shape.texts(BATCHES * shape.batch)
  config = shape.config(len(texts))
  program = Program.of(config, shape.vocabulary, make_mesh(config))
  params = program.init().params
  ends = shape.length * (1 + np.arange(len(texts)))
  held_out = Tokens(texts.ravel(), np.ones(texts.size, np.int32), ends)
  blocks = Blocks.wrapped(held_out, Frame(shape.length, shape.vocabulary, bos=False))
  evaluator = Evaluator(program.objective, blocks, program.mesh)
  peer = Peer(config.model, shape.vocab_size, params)
  rank = torch.from_numpy(shape.ranks().astype(np.int64))
  batches = torch.from_numpy(texts.astype(np.int64)).split(shape.batch)

  def theirs():
    with torch.inference_mode():
      each = [peer.nats(batch, rank, shape.vocabulary.mask) for batch in batches]
    return float(torch.stack(each).mean())

  runs = {"ours": lambda: evaluator.run(params), "peer": theirs}
  times = measure.alternating(runs, REPEATS)
  return measure.row(
    name,
    str(shape),
    "tokens/s",
    texts.size,
    times["ours"],
    times["peer"],
    flops=BATCHES * program.flops().model / 3,
    transferred=BATCHES * 4 * program.parameters(),
    rates=rates,
  )


def main() -> dict:
  """Prints a row for each shape; returns them."""
  return every_shape(case)
