"""Ranges and combinations of settings: what cannot work is refused, in one line."""

import functools
import json

from set_diffusion_jax.config.groups import (
  CANDIDATES,
  COMMITS,
  COMPATS,
  CONTEXTS,
  CUTS,
  DECAYS,
  DETOKENIZERS,
  ENDS,
  FRESH_ORDERS,
  LEARNING_RATES,
  NOISES,
  PREDICTIONS,
  PROMOTIONS,
  SOFTMAXES,
  SOURCES,
  WEIGHTS,
  DataConfig,
  DecodeConfig,
  MethodConfig,
)
from set_diffusion_jax.config.model import (
  BACKBONES,
  DTYPES,
  GRADIENT_DTYPES,
  REMATS,
  ModelConfig,
)
from set_diffusion_jax.config.noise import (
  DENOMINATORS,
  LEVELS,
  MASK_SCHEDULES,
  WEIGHTINGS,
  CorruptionConfig,
  check_levels,
)
from set_diffusion_jax.diffusion.method import METHODS
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.paths import is_url
from set_diffusion_jax.storage import hub, places


def check(config) -> None:
  """Checks ranges and combinations; UserError on the first that is wrong."""
  require = _Require(config)
  _check_fields(require)
  _check_model(require, config.model)
  _check_data(require, config.data)
  _check_method(require, config.method, config.data, config.corruption)
  check_levels(require, config)
  _check_training(require, config)


def check_text(data: DataConfig) -> None:
  """UserError where no text is named, which training cannot do without."""
  if data.source == "none":
    raise UserError(
      'data.source = "none": this configuration leaves the text to you; give '
      "--config.data.source=prepared --config.data.directory=DIR, or "
      "--config.data.source=text --config.data.train_path=FILE (to evaluate, "
      "validation_path)"
    )


class _Require:
  """Raises UserError with a field's name and value where a condition does not hold."""

  def __init__(self, config):
    self._config = config

  def value(self, name: str):
    """Of a dotted name."""
    return functools.reduce(getattr, name.split("."), self._config)

  def flat(self) -> dict:
    """Every field by its dotted name."""
    return self._config.flat()

  def __call__(self, holds: bool, name: str, right: str) -> None:
    if not holds:
      raise UserError(f"{name} = {json.dumps(self.value(name))}: must be {right}")

  def one_of(self, name: str, choices: tuple[str, ...]) -> None:
    self(self.value(name) in choices, name, "one of " + ", ".join(choices))


def _check_fields(require: _Require) -> None:
  """Fields one by one."""
  here = {f"data.{name}" for name in ("train_path", "validation_path", "tokenizer")}
  here |= {"data.directory"} if require.value("data.source") != "tfds" else set()
  for name in sorted({*here, "evaluate.order"}):
    right = "a path on a disk; URLs are not supported here"
    require(not is_url(require.value(name) or ""), name, right)
  start = require.value("init_from") or ""
  try:
    if hub.is_url(start):
      hub.address(start)
    elif is_url(start):
      places.path(start, stores=("disk", "gs", "hf"))
  except UserError as error:
    raise UserError(f"init_from = {error}") from None
  require.one_of("model.backbone", BACKBONES)
  require.one_of("model.dtype", DTYPES)
  require.one_of("model.gradient_dtype", GRADIENT_DTYPES)
  require.one_of("model.remat", REMATS)
  require.one_of("method.name", tuple(METHODS))
  require.one_of("method.noise", NOISES)
  require.one_of("method.predict", PREDICTIONS)
  require.one_of("corruption.levels", LEVELS)
  require.one_of("corruption.schedule", MASK_SCHEDULES)
  require.one_of("loss.weighting", WEIGHTINGS)
  require.one_of("loss.denominator", DENOMINATORS)
  require.one_of("data.source", SOURCES)
  require.one_of("data.cut", CUTS)
  require.one_of("data.eos", ENDS)
  require.one_of("data.detokenizer", DETOKENIZERS)
  require.one_of("optimizer.schedule", LEARNING_RATES)
  require.one_of("optimizer.decay", DECAYS)
  require.one_of("evaluate.weights", WEIGHTS)
  require.one_of("evaluate.softmax", SOFTMAXES)
  require.one_of("decode.commit", COMMITS)
  require.one_of("decode.candidates", CANDIDATES)
  require.one_of("decode.fresh_order", FRESH_ORDERS)
  require.one_of("decode.promotion", PROMOTIONS)
  require.one_of("decode.repetition_context", CONTEXTS)
  require.one_of("compat", COMPATS)

  for name in (
    "model.layers model.width model.heads model.ffn model.condition_width "
    "train.steps train.batch_size train.accumulate train.log_every "
    "train.evaluate_every train.checkpoint_every train.keep_latest "
    "mesh.fsdp mesh.tensor evaluate.batch_size evaluate.draws"
  ).split():
    require(require.value(name) >= 1, name, "at least 1")
  for name in "train.keep_best optimizer.warmup_steps train.seed evaluate.seed".split():
    require(require.value(name) >= 0, name, "0 or more")
  for name, value in require.flat().items():
    if type(value) is int:
      bits = 32 if name.endswith(".seed") else 31
      require(value < 2**bits, name, f"below 2**{bits}")


def _check_model(require: _Require, model: ModelConfig) -> None:
  divides = model.width % model.heads == 0
  given = model.head_size is not None
  require(given or divides, "model.width", f"a multiple of heads={model.heads}")
  even = model.head_width > 0 and model.head_width % 2 == 0
  if given:
    require(even, "model.head_size", "even and above 0 (rotary positions rotate pairs)")
  else:
    require(even, "model.heads", "such that width / heads is even (for rotary pairs)")
  if model.kv_heads is not None:
    fits = model.kv_heads > 0 and model.heads % model.kv_heads == 0
    require(fits, "model.kv_heads", f"a divisor of heads={model.heads}")
  if model.backbone == "dit":
    require(model.kv_heads is None, "model.kv_heads", "null for backbone=dit")
    require(model.head_size is None, "model.head_size", "null for backbone=dit")
    require(not model.tied, "model.tied", "false for backbone=dit")
  else:
    require(not model.adaln, "model.adaln", "false for backbone=qwen3")
  require(model.norm_epsilon > 0, "model.norm_epsilon", "above 0")
  require(0 <= model.dropout < 1, "model.dropout", "in [0, 1)")
  require(model.rotary_base > 1, "model.rotary_base", "above 1")


def _check_data(require: _Require, data: DataConfig) -> None:
  special = int(data.bos) + int(data.ends_sequences)
  require(data.length >= 1 + max(1, special), "data.length", "more than BOS and EOS")
  require(0 < data.validation_fraction < 1, "data.validation_fraction", "in (0, 1)")
  count = data.validation_documents
  require(count is None or count >= 1, "data.validation_documents", "at least 1")
  files = data.train_path is not None or data.validation_path is not None
  if data.source in ("text", "lines", "jsonl"):
    require(files, "data.train_path", f"set when data.source={data.source}")
  if data.source == "tfds":
    require(data.name is not None, "data.name", "set when data.source=tfds")
  if data.source == "prepared":
    require(data.directory is not None, "data.directory", "where `prepare` wrote to")
  if data.cut == "prompt":
    records = data.source in ("jsonl", "tfds", "prepared")
    require(records, "data.source", "one of jsonl, tfds, prepared for data.cut=prompt")
    require(data.prompt_field is not None, "data.prompt_field", "set for cut=prompt")
    require(not data.ends_sequences, "data.eos", "documents or none for cut=prompt")
    require(data.length >= 4, "data.length", "at least 4 for cut=prompt")
  else:
    for name in ("prompt_field", "prompt_prefix", "target_prefix"):
      require(not getattr(data, name), f"data.{name}", "set for data.cut=prompt only")
  if data.streaming:
    require(data.source in ("prepared", "tfds"), "data.source", "prepared or tfds")
    require(data.cut == "wrapped", "data.cut", "wrapped for data.streaming")


def _check_method(
  require: _Require,
  method: MethodConfig,
  data: DataConfig,
  corruption: CorruptionConfig,
) -> None:
  require(method.block_size >= 1, "method.block_size", "at least 1")
  require(
    method.record.sets != "blocks" or data.length % method.block_size == 0,
    "method.block_size",
    f"a divisor of data.length={data.length}",
  )
  require(method.grid >= 1, "method.grid", "at least 1")
  low, high = corruption.t_min, corruption.t_max
  require(0 <= low < 1, "corruption.t_min", "in [0, 1)")
  require(low < high <= 1, "corruption.t_max", f"above t_min={low} and at most 1")
  width = corruption.clip_width
  require(width is None or 0 < width <= 1, "corruption.clip_width", "in (0, 1]")
  without = f"null for method {method.name}, which has no noise levels"
  levels = method.has_levels and method.predict == "all"
  require(width is None or levels, "corruption.clip_width", without)
  linear = width is None or corruption.schedule == "linear"
  searched = "linear where a clip_width is searched, which is done on linear levels"
  require(linear, "corruption.schedule", searched)
  windowed = method.one_at_a_time and method.record.schedule == "sizes"
  only = method.predict == "all" or windowed
  require(only, "method.predict", f'"all" for method {method.name}')
  fixed = f"false for method {method.name}, whose order is fixed"
  require(method.record.drawn or not method.eos_last, "method.eos_last", fixed)
  require(method.max_set_size >= 1, "method.max_set_size", "at least 1")
  span = data.length * method.max_set_size / (data.length + method.max_set_size - 1)
  below = f"below length * w = {span:.4g}"
  if method.prediction_budget is not None:
    fits = 0 < method.prediction_budget < span
    require(fits, "method.prediction_budget", f"above 0 and {below}")
  elif method.record.schedule == "sizes":
    fits = method.max_set_size / 4 < span
    right = f"such that the prediction budget, a fourth of it, is {below}"
    require(fits, "method.max_set_size", right)


def _check_training(require: _Require, config) -> None:
  optimizer = config.optimizer
  require(optimizer.learning_rate > 0, "optimizer.learning_rate", "above 0")
  require(0 <= optimizer.final_fraction <= 1, "optimizer.final_fraction", "in [0, 1]")
  for name in ("optimizer.beta1", "optimizer.beta2", "optimizer.ema_decay"):
    require(0 <= require.value(name) < 1, name, "in [0, 1)")
  require(optimizer.epsilon > 0, "optimizer.epsilon", "above 0")
  require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more")
  require(optimizer.clip_norm > 0, "optimizer.clip_norm", "above 0")

  require(
    config.train.batch_size % config.train.accumulate == 0,
    "train.batch_size",
    f"a multiple of train.accumulate={config.train.accumulate}",
  )
  for name in ("mesh.slice", "mesh.data"):
    size = require.value(name)
    require(size >= 1 or size == -1, name, "-1 or above 0")
  minutes = config.train.checkpoint_minutes
  require(minutes is None or minutes > 0, "train.checkpoint_minutes", "above 0 or null")
  _check_evaluation(require, config)
  _check_decoding(require, config.decode)


def _check_decoding(require: _Require, decode: DecodeConfig) -> None:
  require(decode.tokens_per_step >= 1, "decode.tokens_per_step", "at least 1")
  for name in ("window", "top_k"):
    value = getattr(decode, name)
    require(value is None or value >= 1, f"decode.{name}", "at least 1")
  for name in ("top_p", "threshold"):
    value = getattr(decode, name)
    require(value is None or 0 < value <= 1, f"decode.{name}", "in (0, 1]")
  if decode.drafts is not None:
    require(decode.drafts >= 1, "decode.drafts", "at least 1")
    plain = ("order", 1, None, "first")
    options = (
      decode.commit,
      decode.tokens_per_step,
      decode.threshold,
      decode.promotion,
    )
    right = "null unless commit=order, tokens_per_step=1, promotion=first, no threshold"
    require(options == plain, "decode.drafts", right)
  drawn = decode.temperature >= 1e-6  # below, float32 cannot hold the scaled logits
  require(drawn or decode.temperature == 0, "decode.temperature", "0, or at least 1e-6")
  for name in ("repetition_penalty", "length_penalty"):
    require(getattr(decode, name) > 0, f"decode.{name}", "above 0")
  for name in ("minimum_length", "length_penalty_start"):
    require(getattr(decode, name) >= 0, f"decode.{name}", "0 or more")


def _check_evaluation(require: _Require, config) -> None:
  evaluate, data = config.evaluate, config.data
  few = evaluate.sequences is None or evaluate.sequences >= 1
  require(few, "evaluate.sequences", "at least 1")
  if evaluate.order != "drawn":
    singles = config.method.one_at_a_time
    require(singles, "evaluate.order", f'"drawn" for method {config.method.name}')
    require(evaluate.draws == 1, "evaluate.draws", "1 where evaluate.order is given")
    file = evaluate.order.endswith(".npy") and not config.method.one_stream
    known = evaluate.order == "left_to_right" or file
    also = "" if config.method.one_stream else " or a .npy file"
    require(known, "evaluate.order", f'"drawn" or "left_to_right"{also}')
  width = data.length - int(data.bos) - int(data.ends_sequences)
  if evaluate.stride is not None:
    fits = 1 <= evaluate.stride <= width
    require(fits, "evaluate.stride", f"from 1 to the window's {width} tokens")
    wrapped = data.cut == "wrapped"
    require(wrapped, "evaluate.stride", f"null where data.cut={data.cut}")
