"""This project's settings as a published `config.json`, and the model card."""

import json
import math
from collections.abc import Mapping

from set_diffusion_jax.config import Config, MethodConfig, ModelConfig
from set_diffusion_jax.convert import dit
from set_diffusion_jax.convert.qwen3 import BACKBONE_CONFIG
from set_diffusion_jax.convert.source import Source
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.version import VERSION

_MODEL_TYPES = {"AR": "ar", "MDLM": "mdlm", "BD3LM": "bd3lm", "SetDLM": "bd3lm"}
_NOISES = {
  "linear": {"_target_": "LinearNoise"},
  "log_linear": {"_target_": "LinearNoise"},
  "cosine": {"_target_": "CosineNoise"},
  "log": {"_target_": "LogarithmicNoise"},
  "square": {"_target_": "ExponentialNoise", "exp": 2},
  "square_root": {"_target_": "ExponentialNoise", "exp": 0.5},
}


def published_config(
  config: Config, vocabulary: Vocabulary, dtype: str, used_ids: int | None = None
) -> dict:
  """The `config.json` of weights that were trained here.

  Args:
    config: how they are used.
    vocabulary: ids; `size` counts all rows of the embedding.
    dtype: of the weights.
    used_ids: rows that stand for a token; None: all.

  Raises:
    UserError: a setting that the published code cannot express.
  """
  family = config.method.record.published
  if family is None:
    name = config.method.name
    raise UserError(f"method.name = {name!r}: has no published counterpart")
  length, rows = config.data.length, vocabulary.size
  used = rows if used_ids is None else used_ids
  block = config.method.block_size if family == "BD3LM" else length
  is_dit = config.model.backbone == "dit"
  ids = {
    f"{kind}_token_id": getattr(vocabulary, kind)
    for kind in ("bos", "eos", "mask", "pad")
  }
  backbone = (
    _dit(config.model, vocabulary.size, length, block, family == "AR")
    if is_dit
    else _qwen3(config.model)
  )
  values = {
    "architectures": [family],
    "attn_backend": "sdpa",
    "backbone_config": backbone,
    **ids,
    "length": length,
    "model_type": _MODEL_TYPES[family],
    "noise_config": _noise(config, family),
    # Of one multiple, so that the embedding has as many rows.
    "pad_vocab_size_multiple": rows if is_dit and used < rows else None,
    "tokenization_config": {**ids, "vocab_size": used},
    "tokenizer_name": None,
    "torch_dtype": dtype,
    "train_on_context": False,
    "vocab_size": used,
  }
  if family != "AR":
    values["keep_clean_bos"] = config.data.bos
  if family in ("BD3LM", "SetDLM"):
    values |= {
      "block_size": block,
      "eval_block_size": block,
      "setdlm_eos_last_in_target_order": config.method.eos_last,
      "setdlm_fht_cache_order": False,
    }
  if family in ("MDLM", "BD3LM"):
    corruption = config.corruption
    if corruption.schedule == "log_linear":
      values["mdlm_loss_scale"] = True
    if (corruption.t_min, corruption.t_max) != (0.0, 1.0):
      # Not read there; kept for who trains on.
      values["sampling_eps_min"] = corruption.t_min
      values["sampling_eps_max"] = corruption.t_max
  return values


def _dit(model: ModelConfig, vocab_size: int, length: int, block: int, causal: bool):
  fixed = {"ffn": 4 * model.width, "norm_epsilon": dit.EPSILON, "rotary_base": dit.BASE}
  for name, value in fixed.items():
    _require(model, name, value)
  return {
    "_target_": "src.backbone.dit.DIT",
    "adaln": model.adaln,
    "attn_backend": "sdpa",
    "block_size": block,
    "causal_attention": causal,
    "cond_dim": model.condition_width,
    "dropout": model.dropout,
    "hidden_size": model.width,
    "length": length,
    "n_heads": model.heads,
    "num_layers": model.layers,
    "pretrained_model_name_or_path": None,
    "tie_word_embeddings": True,  # ignored there: a DiT has a head of its own
    "vocab_size": vocab_size,
  }


def _qwen3(model: ModelConfig) -> dict:
  return {
    "_target_": "src.backbone.automodel.AutoModelFromPreTrained",
    "attn_implementation": "sdpa",
    "automodel_cls": "AutoModelForCausalLM",
    "keep_top_layers": False,
    "num_layers": model.layers,
    "pretrained_model_name_or_path": BACKBONE_CONFIG,
    "reinit_model": True,
    "trust_remote_code": True,
    "use_causal_mask": False,
  }


def qwen3_config(
  model: ModelConfig, vocabulary: Vocabulary, length: int, dtype: str
) -> dict:
  """The plain Qwen3 configuration that the published wrapper builds its model from."""
  return {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": vocabulary.bos,
    "eos_token_id": vocabulary.eos,
    "head_dim": model.head_width,
    "hidden_act": "silu",
    "hidden_size": model.width,
    "intermediate_size": model.ffn,
    "max_position_embeddings": length,
    "model_type": "qwen3",
    "num_attention_heads": model.heads,
    "num_hidden_layers": model.layers,
    "num_key_value_heads": model.key_heads,
    "pad_token_id": vocabulary.pad,
    "rms_norm_eps": model.norm_epsilon,
    "rope_scaling": None,
    "rope_theta": model.rotary_base,
    "sliding_window": None,
    "tie_word_embeddings": model.tied,
    "torch_dtype": dtype,
    "use_sliding_window": False,
    "vocab_size": vocabulary.size,
  }


def _require(model: ModelConfig, name: str, value) -> None:
  if getattr(model, name) != value:
    raise UserError(
      f"model.{name} = {getattr(model, name)}: the published DiT has {value}"
    )


def _noise(config: Config, family: str) -> dict | None:
  if family == "AR":
    return None
  if family != "SetDLM":
    noise = dict(_NOISES[config.corruption.schedule])
    noise["_target_"] = f"src.noise_schedule.noise_schedules.{noise['_target_']}"
    return noise
  length = config.data.length
  return {
    "_target_": "src.noise_schedule.noise_schedules.StaggeredNoise",
    "block_size": length,
    "eps": 0.001,
    "length": length,
    **_staggered(config.method, length),
  }


def _staggered(method: MethodConfig, length: int) -> dict:
  """S, S_max and, where they cannot say it, the power k (METHOD section 2)."""
  if method.record.schedule == "uniform":
    return {"desired_block_size": length, "max_block_size": length}
  active, budget = method.max_set_size, method.prediction_budget
  desired = _whole(2 * (active / 4 if budget is None else budget))
  plain = desired not in (1, active) and float(active).is_integer()
  if plain and isinstance(desired, int):
    return {"desired_block_size": desired, "max_block_size": int(active)}
  width = active / (length + active - 1)
  power = desired / (2 * length * width - desired)
  if math.isclose(power, 1, rel_tol=1e-9) and desired == 1:
    return {"desired_block_size": 1, "max_block_size": 1}
  highest = _whole(active)
  return {"desired_block_size": desired, "max_block_size": highest, "k": power}


def _whole(value: float) -> int | float:
  return int(value) if float(value).is_integer() else value


def write_json(values: Mapping) -> str:
  """Text of a JSON file as Transformers writes it."""
  return json.dumps(values, indent=2, sort_keys=True) + "\n"


def model_card(source: Source, dtype: str, figures: Mapping | None = None) -> str:
  """README.md of a written directory: what the weights are and how good they are."""
  config, kind = source.config, source.kind or "EMA or not is not known"
  lines = [
    "---",
    "tags: [set-diffusion]",
    "---",
    f"# {config.model.backbone} weights, method `{config.method.name}`",
    "",
    f"Written by set_diffusion_jax {VERSION} from {source.origin}: {kind}, {dtype}. "
    f"Weights from: {origin_text(source.weights_from)}.",
    "",
    *(f"- {line}" for line in meaning(config, source.vocabulary, source.used_ids)),
    *(f"- {note}" for note in source.notes),
    "",
    "## Evaluation",
    "",
  ]
  if not figures:
    return "\n".join([*lines, "No figures were given.", ""])
  lines += ["| figure | value |", "|---|---|"]
  lines += [f"| {name} | {_figure(value)} |" for name, value in figures.items()]
  return "\n".join([*lines, ""])


def meaning(config: Config, vocabulary: Vocabulary, used_ids: int) -> list[str]:
  """What a configuration means, in a few lines."""
  method, c = config.method, config.corruption
  bos = ", position 0 is BOS and not counted" if config.data.bos else ""
  lines = [f"sequence length {config.data.length}{bos}"]
  lines += filter(None, [method.record.meaning(method)])
  if method.record.noise == "level":
    drawn = f"{c.schedule}, trained on t in [{c.t_min:g}, {c.t_max:g}]"
    counts = "trained on uniform counts of masked tokens"
    lines.append(f"noise: {counts if c.levels == 'counts' else drawn}")
  ids = ", ".join(
    f"{kind} {getattr(vocabulary, kind)}" for kind in ("mask", "pad", "bos", "eos")
  )
  padded = vocabulary.size - used_ids
  rows = f"; {padded} rows only pad the matrix" if padded else ""
  return [*lines, f"{vocabulary.size} ids ({ids}){rows}"]


def origin_text(weights_from: Mapping | None) -> str:
  """Where weights come from, as a checkpoint says it."""
  pairs = (weights_from or {}).items()
  words = [f"{name} {value}" for name, value in pairs if isinstance(value, str)]
  return ", ".join(words) or "not said"


def _figure(value) -> str:
  if isinstance(value, float):
    return f"{value:.5g}"
  if isinstance(value, Mapping):
    return ", ".join(f"{name}: {inner}" for name, inner in value.items())
  return str(value)
