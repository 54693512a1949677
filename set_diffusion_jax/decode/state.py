"""What is to be generated, and what a decoding step carries to the next one.

Legend: B rows, S positions of the text.
"""

import flax.struct
from jaxtyping import Array, Bool, Float, Int, Key

from set_diffusion_jax.diffusion.order import Order
from set_diffusion_jax.model import Layers


class Task(flax.struct.PyTreeNode):
  """What is to be generated: B rows of S positions.

  Attributes:
    tokens: int32 [B, S], those that are given; anything elsewhere.
    given: bool [B, S], which are given, anywhere in the text.
    wanted: bool [B, S], which are to be generated. What is neither is not there, or,
      in masked diffusion, stays [MASK].
    order: who comes when; see `Decoder`.
    key: one a row.
  """

  tokens: Int[Array, "B S"]
  given: Bool[Array, "B S"]
  wanted: Bool[Array, "B S"]
  order: Order
  key: Key[Array, " B"]


class DecodeState(flax.struct.PyTreeNode):
  """What a decoding step carries to the next one.

  Attributes:
    tokens: [B, S], [MASK] where nothing is committed yet.
    committed: [B, S], which positions hold a token.
    wanted: [B, S], which positions are to hold one in the end.
    rank: [B, S], the set of each position; of singletons, in the order of commitment.
    next_rank: [B], the next rank to be given to a singleton; of other sets, the
      first that has not been read.
    fresh: [B, S], of singletons, final tokens that have not been read.
    confidence: float32 [B, S], the probability of each token that was generated.
    waiting: [B, S], committed tokens that may not be read yet: given ones until
      something after them is committed, others until all before them in the drawn
      order are.
    cached: [B, S], which positions the cache holds.
    layers: the cache: keys [B, G, Dh, S] and values [B, G, S, Dh] of each layer.
    turn: [B, S], each position's place in the drawn order.
    interval: [B, S], each position's set in the drawn order.
    prompt_length: [B], position of the first token that was not given.
    end: [B], the position after all given tokens.
    total: [B], of singletons, how many tokens are to be generated.
    key: [B], of the row's own draws.
    steps: [B], forward passes that predicted tokens of the row while it was unfinished;
      those that only read a complete set are not counted.
    since: [B], those since the schedule of commitments began: the row's, or its set's.
  """

  tokens: Int[Array, "B S"]
  committed: Bool[Array, "B S"]
  wanted: Bool[Array, "B S"]
  rank: Int[Array, "B S"]
  next_rank: Int[Array, " B"]
  fresh: Bool[Array, "B S"]
  confidence: Float[Array, "B S"]
  waiting: Bool[Array, "B S"]
  cached: Bool[Array, "B S"]
  layers: Layers
  turn: Int[Array, "B S"]
  interval: Int[Array, "B S"]
  prompt_length: Int[Array, " B"]
  end: Int[Array, " B"]
  total: Int[Array, " B"]
  key: Key[Array, " B"]
  steps: Int[Array, " B"]
  since: Int[Array, " B"]
