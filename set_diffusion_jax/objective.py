"""From a batch to nats: the one forward pass that training and evaluation share."""

import dataclasses
import functools

from jaxtyping import Array, Float, Key

from set_diffusion_jax import corrupt
from set_diffusion_jax.config import Config
from set_diffusion_jax.corrupt import Batch, Streams
from set_diffusion_jax.loss import slot_nats
from set_diffusion_jax.model import Network
from set_diffusion_jax.order import Order, draw_order, groups
from set_diffusion_jax.rng import split_rows


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a configuration asks to be learnt, as pure functions.

  Attributes:
    config: the experiment.
    network: the transformer.
    mask_id: the id of [MASK].
    eos_id: the id of EOS, for method.eos_last.
  """

  config: Config
  network: Network
  mask_id: int
  eos_id: int

  @property
  def one_stream(self) -> bool:
    """Whether slots predict the token after them (AR) instead of their own."""
    return self.config.method.name == "ar"

  @property
  def suppressed(self) -> int | None:
    """The id that gets probability zero: [MASK], except in one-stream AR."""
    return None if self.one_stream else self.mask_id

  def draw_order(self, batch: Batch, keys: Key[Array, " B"], train: bool) -> Order:
    """An order for each row from the method's policy."""
    last = None
    if train and self.config.method.eos_last:
      last = batch.tokens == self.eos_id
    group = groups(batch.valid, batch.context, last)
    return draw_order(self.config.method, self.config.data.length, keys, group)

  def streams(self, batch: Batch, order: Order, train: bool) -> Streams:
    """What the model reads under an order, and what it is to predict."""
    published = self.config.compat == "setdlms"
    if self.one_stream:
      return corrupt.one_stream(batch, order, published)
    bos = "context"
    if published and self.config.data.bos:
      bos = "counted" if train else "masked"
    return corrupt.masked_sets(batch, order, self.mask_id, bos)

  def nats(
    self, params, streams: Streams, dropout_keys: Key[Array, " B"] | None = None
  ) -> Float[Array, "B R"]:
    """-log p of each target in nats, counted or not."""
    h, _ = self.network.hidden(
      params, streams.tokens, streams.index, None, dropout_keys
    )
    slots = streams.target.shape[-1]
    return slot_nats(
      functools.partial(self.network.unembed, params),
      h[:, -slots:],
      streams.target,
      self.network.vocab_size,
      self.suppressed,
    )

  def training_nats(self, params, batch: Batch, keys: Key[Array, " B"]):
    """Draws an order a row; returns (nats, weight), each [B, R], with dropout."""
    order_keys, dropout_keys = split_rows(keys)
    streams = self.streams(batch, self.draw_order(batch, order_keys, True), True)
    if self.config.model.dropout == 0:
      dropout_keys = None
    return self.nats(params, streams, dropout_keys), streams.weight

  def evaluation_nats(self, params, batch: Batch, keys: Key[Array, " B"]):
    """Draws an order a row; returns (nats, weight, target), each [B, R]."""
    streams = self.streams(batch, self.draw_order(batch, keys, False), False)
    return self.nats(params, streams), streams.weight, streams.target
