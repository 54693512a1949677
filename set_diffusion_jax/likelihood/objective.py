"""From a batch to nats: the one forward pass that training and evaluation share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from set_diffusion_jax import sharding
from set_diffusion_jax.config import Config
from set_diffusion_jax.data.vocabulary import Runs
from set_diffusion_jax.diffusion import corruption
from set_diffusion_jax.diffusion.corruption import Batch, Noise, Streams
from set_diffusion_jax.diffusion.draws import (
  TrainingKeys,
  level_keys,
  split_rows,
  training_keys,
)
from set_diffusion_jax.diffusion.noise import draw_counts, draw_levels
from set_diffusion_jax.diffusion.order import (
  Order,
  draw_order,
  groups,
  masked_last,
  position_offset,
)
from set_diffusion_jax.diffusion.schedules import MaskSchedule
from set_diffusion_jax.likelihood.loss import PIECE_ELEMENTS, priced_nats, slot_nats
from set_diffusion_jax.model import Network
from set_diffusion_jax.model.attention import kernel_line


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a configuration asks to be learnt, as pure functions.

  Attributes:
    config: the experiment.
    network: the transformer.
    mask_id: the id of [MASK].
    eos_id: the id of EOS, for method.eos_last.
    unused: runs of ids without a token. They are never generated; a likelihood leaves
      them out if evaluate.softmax says so; the training loss does not.
  """

  config: Config
  network: Network
  mask_id: int
  eos_id: int
  unused: Runs = ()

  @property
  def one_stream(self) -> bool:
    """Whether slots predict the token after them (AR) instead of their own."""
    return self.config.method.one_stream

  @property
  def one_at_a_time(self) -> bool:
    """Whether every set is a single position: one order gives an exact log p."""
    return self.config.method.one_at_a_time

  @property
  def has_drawn_orders(self) -> bool:
    """Whether positions come one at a time in one of many orders."""
    return self.one_at_a_time and self.config.method.record.drawn

  @property
  def has_levels(self) -> bool:
    """Whether sets are partly masked, at noise levels that are drawn."""
    return self.config.method.has_levels

  @property
  def suppressed(self) -> int | None:
    """The id that gets probability zero: [MASK], except in one-stream AR."""
    return None if self.one_stream else self.mask_id

  @property
  def piece_elements(self) -> int:
    """Logits of a piece of the loss, on all devices together."""
    platform = sharding.platform(self.network.module.mesh)
    elements = PIECE_ELEMENTS.get(platform, PIECE_ELEMENTS["gpu"])
    return elements * self.network.ways

  def where(self) -> str:
    """A line: devices, compute dtype, and how attention of whole texts runs there."""
    model, mesh = self.config.model, self.network.module.mesh

    def index():
      tokens = jnp.zeros((1, self.config.data.length), jnp.int32)
      flags = tokens == 0
      batch = Batch(tokens, flags, ~flags, tokens[:, 0])
      keys = training_keys(jax.random.key(0), 0, batch.row)
      return self.training_streams(batch, keys, jnp.array([0.0, 1.0])).index

    dtype = jnp.dtype(model.dtype)
    kernel = kernel_line(jax.eval_shape(index), model.head_width, dtype, mesh)
    return f"{sharding.devices_line(mesh)}, {dtype.name}; {kernel}"

  def draw_order(
    self,
    batch: Batch,
    keys: Key[Array, " B"],
    train: bool,
    length: int | None = None,
  ) -> Order:
    """An order for each row from the method's policy.

    Args:
      batch: B rows of text.
      keys: one a row.
      train: whether `method.eos_last` holds.
      length: on which schedules depend; None: data.length, or L if it is more.
    """
    last = None
    if train and self.config.method.eos_last:
      last = batch.tokens == self.eos_id
    group = groups(batch.valid, batch.context, last)
    if length is None:
      length = max(self.config.data.length, group.shape[-1])
    return draw_order(self.config.method, length, keys, group)

  def draw_noise(
    self,
    batch: Batch,
    order: Order,
    keys: Key[Array, " B"],
    shared: Key[Array, " B"],
    draw: int | Array = 0,
    draws: int = 1,
    clip: Float[Array, " 2"] | None = None,
  ) -> Noise:
    """What is masked, by counts or by noise levels that are stratified within each row.

    Args:
      batch: B rows of text.
      order: its ranks say which positions are a set.
      keys: one a row, of this draw.
      shared: one a row, the same for all draws of the row.
      draw: which of the draws this is.
      draws: how many there are.
      clip: in training, [t_min, t_max] that levels come from, with loss.weighting;
        None: in evaluation, as `evaluation_levels` of the configuration says, levels
        from [0, 1] under the linear schedule, with the NELBO weight.
    """
    if not self.has_levels:
      return corruption.full_noise(batch)
    length, config = batch.tokens.shape[-1], self.config
    method, published = config.method, config.compat == "setdlms"
    sets = method.levels(length)

    rank = jnp.take_along_axis(
      order.rank, jnp.argsort(order.position, axis=-1), axis=-1
    )
    levels = config.evaluation_levels if clip is None else config.corruption.levels
    if levels == "counts":
      return draw_counts(batch, rank, keys, sets, draw, draws)
    of = level_keys(keys)
    t = draw_levels(rank, of.level, shared, sets, draw, draws)
    if clip is not None:
      t = clip[0] + (clip[1] - clip[0]) * t
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(of.masked)
    weighting, name = config.loss.weighting, config.corruption.schedule
    if clip is None:
      # The NELBO is the same under every schedule that ends in all masked; its
      # estimate varies least on the linear one.
      weighting, name = "nelbo", "linear"
    if method.predict == "active":
      offset = position_offset(method, config.data.length)
      bos = published and config.data.bos
      return corruption.active_noise(batch, offset, t, weighting, bos)
    schedule = MaskSchedule(name)
    return corruption.level_noise(batch, schedule, t, uniform, weighting)

  def streams(self, batch: Batch, order: Order, noise: Noise, train: bool) -> Streams:
    """What the model reads under an order and a noise, and what it is to predict."""
    published = self.config.compat == "setdlms"
    if self.one_stream:
      return self._aligned(corruption.one_stream(batch, order, published))
    bos = "context"
    if published and self.config.data.bos:
      bos = "counted" if train else "masked"
    method = self.config.method
    reach = method.reach(batch.tokens.shape[-1])
    active = method.predict == "active"
    if active:
      order = masked_last(order, noise.masked, batch.valid)
    streams = corruption.denoising(
      batch,
      order,
      noise,
      self.mask_id,
      reach,
      single=method.single_set,
      causal=active,
      full=not self.has_levels,
      bos=bos,
    )
    return self._aligned(streams)

  def _aligned(self, streams: Streams) -> Streams:
    aligned = self.config.method.aligned_sets
    return streams._replace(index=streams.index.replace(aligned=aligned))

  def nats(
    self, params, streams: Streams, dropout_keys: Key[Array, " B"] | None = None
  ) -> Float[Array, "B R"]:
    """-log p of each target in nats, counted or not: a likelihood's, not a loss's."""
    only_tokens = self.config.evaluate.softmax == "tokens"
    return slot_nats(
      functools.partial(self.network.unembed, params),
      self._predicting(params, streams, dropout_keys),
      streams.target,
      self.network.vocab_size,
      self.suppressed,
      self.piece_elements,
      self.unused if only_tokens else (),
    )

  def priced_nats(
    self,
    params,
    streams: Streams,
    dropout_keys: Key[Array, " B"] | None,
    prices: Float[Array, "K B R"],
  ) -> tuple[Float[Array, " K"], Float[Array, "B R"]]:
    """K sums of nats times prices, to be differentiated, and the nats, to be read."""
    head, others = self.network.split_head(params)
    return priced_nats(
      self._unembed,
      head,
      others,
      self._predicting(params, streams, dropout_keys),
      streams.target,
      prices,
      self.network.vocab_size,
      self.suppressed,
      self.piece_elements,
    )

  def _unembed(self, head, others, h):
    return self.network.unembed({**head, **others}, h)

  def _predicting(self, params, streams: Streams, dropout_keys):
    """Hidden states of the slots that predict."""
    h, _ = self.network.hidden(
      params, streams.tokens, streams.index, None, dropout_keys
    )
    return h[:, -streams.target.shape[-1] :]

  def training_draws(
    self, batch: Batch, keys: TrainingKeys, clip: Float[Array, " 2"]
  ) -> tuple[Order, Noise]:
    """The order of each row in a training step, and what is masked in it.

    `clip` is the range of noise levels, [t_min, t_max].
    """
    order = self.draw_order(batch, keys.order, True)
    return order, self.draw_noise(batch, order, keys.noise, keys.strata, clip=clip)

  def training_streams(
    self, batch: Batch, keys: TrainingKeys, clip: Float[Array, " 2"]
  ) -> Streams:
    """What the model reads in a training step, under the draws of `training_draws`."""
    order, noise = self.training_draws(batch, keys, clip)
    return self.streams(batch, order, noise, True)

  def evaluation_nats(
    self,
    params,
    batch: Batch,
    keys: Key[Array, " B"],
    shared: Key[Array, " B"],
    draw: int | Array,
    draws: int,
    order: Order | None = None,
  ):
    """One of the `draws` of a row; returns (nats [B, R], their streams, the noise).

    The mean of the weighted nats over all draws is an unbiased estimate of the NELBO.
    A given order replaces the one that would be drawn. Every position is evaluated,
    also where training predicts the active ones only.
    """
    if self.config.method.predict == "active":
      method = dataclasses.replace(self.config.method, predict="all")
      every = dataclasses.replace(
        self, config=dataclasses.replace(self.config, method=method)
      )
      return every.evaluation_nats(params, batch, keys, shared, draw, draws, order)
    order_keys, noise_keys = split_rows(keys)
    if order is None:
      order = self.draw_order(batch, order_keys, False)
    noise = self.draw_noise(batch, order, noise_keys, shared, draw, draws)
    streams = self.streams(batch, order, noise, False)
    return self.nats(params, streams), streams, noise
