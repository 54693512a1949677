"""A Qwen3 configuration of Transformers, checked against the tensors it came with."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from set_diffusion_jax.convert.ids import NAMES, plain_ids
from set_diffusion_jax.convert.shapes import Shapes, count_layers, shape_of
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.fields import Fields

BACKBONE_CONFIG = "backbone_config.json"  # Qwen3's own, beside a published config.json
EPSILON = 1e-6  # of every released Qwen3
_LARGEST_BASE = 1e12  # longer waves than any text
# The rotary base by the name of a released model; all have the same epsilon.
BASES = {
  **{
    f"Qwen/Qwen3-{size}{kind}": 1e6
    for size in ("0.6B", "1.7B", "4B", "8B", "14B")
    for kind in ("", "-Base")
  },
  "Qwen/Qwen3-32B": 1e6,
  "Qwen/Qwen3-4B-Instruct-2507": 5e6,
  "Qwen/Qwen3-4B-Thinking-2507": 5e6,
}

# What Transformers writes into any configuration, and what concerns only training, the
# speed or the memory of its own code.
OF_NO_EFFECT = frozenset(
  """
  _attn_implementation _attn_implementation_autoset _attn_implementation_internal
  _commit_hash _name_or_path attn_implementation auto_map bad_words_ids
  begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
  decoder_start_token_id diversity_penalty do_sample dtype early_stopping
  encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
  forced_bos_token_id forced_eos_token_id id2label initializer_range is_decoder label2id
  length_penalty max_length max_position_embeddings max_window_layers min_length
  no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
  output_hidden_states output_scores prefix pretraining_tp problem_type
  remove_invalid_values repetition_penalty return_dict return_dict_in_generate
  sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
  tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
  transformers_version trust_remote_code typical_p unsloth_fixed unsloth_version
  use_bfloat16 use_cache
  """.split()
)

# Variants of the architecture that are not here, by the values that leave them out.
_PLAIN = {
  "add_cross_attention": (False,),
  "attention_bias": (False,),
  "attention_dropout": (0,),
  "hidden_act": ("silu", "swish"),
  "hidden_activation": ("silu", "swish"),
  "is_causal": (True,),
  "is_encoder_decoder": (False,),
  "mlp_bias": (False,),
  "model_type": ("qwen3",),
  "architectures": (["Qwen3ForCausalLM"],),
  "partial_rotary_factor": (1,),
  "pruned_heads": ({},),
  "quantization_config": (),
  "use_sliding_window": (False,),
}

# Arguments of the published wrapper of Qwen3; further ones change its configuration.
_WRAPPER = """
  _target_ attn_implementation automodel_cls keep_bottom_n_layers keep_every_n_layers
  keep_top_layers num_layers pretrained_model_name_or_path reinit_model
  trust_remote_code use_causal_mask
""".split()


class Backbone(NamedTuple):
  """A Qwen3 configuration that came with a published one, and the file it is from."""

  path: pathlib.Path
  values: Mapping


def sizes_of(path: pathlib.Path, shapes: Shapes) -> dict[str, int]:
  """What the tensors say, under the names of a Qwen3 configuration.

  Args:
    path: of the configuration, for messages.
    shapes: of the tensors, by canonical name.

  Raises:
    UserError: a tensor of the first layer is missing or has a wrong number of axes.
  """
  rows, width = shape_of(path, shapes, "embed_tokens.weight", 2)
  first = "layers.0.self_attn."
  size = shape_of(path, shapes, first + "q_norm.weight", 1)[0]
  return {
    "hidden_size": width,
    "num_hidden_layers": count_layers(shapes),
    "num_attention_heads": shape_of(path, shapes, first + "q_proj.weight", 2)[0]
    // size,
    "num_key_value_heads": shape_of(path, shapes, first + "k_proj.weight", 2)[0]
    // size,
    "head_dim": size,
    "intermediate_size": shape_of(path, shapes, "layers.0.mlp.gate_proj.weight", 2)[0],
    "vocab_size": rows,
  }


def read_qwen3(
  fields: Fields, sizes: Mapping[str, int], notes: list[str], layers: int | None = None
) -> dict:
  """Checks a configuration, or a part of one, against the tensors.

  Args:
    fields: the configuration; every field is used, of no effect or refused.
    sizes: from `sizes_of`.
    notes: lines are added for what is there and not followed.
    layers: how many of its layers the model keeps; None: all.

  Returns:
    "norm_epsilon", "rotary_base" and "tied", those that it says.

  Raises:
    UserError: it disagrees with the tensors, or describes a variant that is not here.
  """
  fields.only(_PLAIN)
  for name, size in sizes.items():
    found = fields.get(name)
    if name == "num_hidden_layers" and layers is not None and found is not None:
      if fields.positive(name, int) < layers:
        fields.wrong(name, f"at least {layers}, the layers that are kept of it")
    elif found is not None and fields(name, int) != size:
      fields.wrong(name, f"{size}, as the tensors have")
  _check_attention_kinds(fields)
  if fields.get("sliding_window") is not None:
    notes.append("sliding_window: not used, as use_sliding_window is false")
  said: dict = {}
  if fields.get("rms_norm_eps") is not None:
    said["norm_epsilon"] = fields.positive("rms_norm_eps", float)
    if said["norm_epsilon"] >= 1:
      fields.wrong("rms_norm_eps", "below 1")
  base = _rotary_base(fields)
  if base is not None:
    said["rotary_base"] = base
  if fields.get("tie_word_embeddings") is not None:
    said["tied"] = fields("tie_word_embeddings", bool)
  fields.finish((*OF_NO_EFFECT, *NAMES))
  return said


def _check_attention_kinds(fields: Fields) -> None:
  """Every layer must attend to the whole text."""
  if fields.get("layer_types") is None:
    return
  kinds = fields("layer_types", list)
  count = fields.get("num_hidden_layers") or len(kinds)
  if kinds != ["full_attention"] * count:
    fields.wrong("layer_types", f'"full_attention" for each of {count} layers')


def _rotary_base(fields: Fields) -> float | None:
  """The base of the rotary positions, which may stand in three places.

  Older files have `rope_theta` and `rope_scaling`, newer ones `rope_parameters`.
  """
  found = {}
  if fields.get("rope_theta") is not None:
    found["rope_theta"] = _base(fields)
  for name in ("rope_scaling", "rope_parameters"):
    if fields.get(name) is None:
      continue
    group = fields.group(name)
    group.only(dict.fromkeys(("type", "rope_type"), ("default",)))
    group.only(dict.fromkeys(("factor", "partial_rotary_factor"), (1,)))
    if group.get("rope_theta") is not None:
      found[name] = _base(group)
    group.finish(())
  if len(set(found.values())) > 1:
    values = ", ".join(f"{value:g} in {name}" for name, value in found.items())
    fields.wrong("rope_theta", f"the same wherever it is said, not {values}")
  return next(iter(found.values()), None)


def _base(fields: Fields) -> float:
  base = fields("rope_theta", float)
  if not 1 < base <= _LARGEST_BASE:
    fields.wrong("rope_theta", f"above 1 and at most {_LARGEST_BASE:g}")
  return base


def qwen3_model(sizes: Mapping[str, int], said: Mapping) -> dict:
  """The `model` group of a configuration: sizes of the tensors, and what was said."""
  return {
    "backbone": "qwen3",
    "layers": sizes["num_hidden_layers"],
    "width": sizes["hidden_size"],
    "heads": sizes["num_attention_heads"],
    "kv_heads": sizes["num_key_value_heads"],
    "head_size": sizes["head_dim"],
    "ffn": sizes["intermediate_size"],
    **said,
  }


def wrapped_qwen3(
  wrapper: Fields, shapes: Shapes, backbone: Backbone | None, notes: list[str]
) -> dict:
  """A Qwen3 by its own configuration, by a known name, or by arguments of the wrapper.

  The tensors say the sizes. The rotary base and the norm's epsilon only a configuration
  has, and its name stands for one of those that were released.
  """
  wrapper.only(
    {
      "automodel_cls": ("AutoModelForCausalLM", "CustomQwen3ForCausalLM"),
      "keep_every_n_layers": (1,),
      "use_causal_mask": (False,),
    }
  )
  sizes = sizes_of(wrapper.path, shapes)
  found = sizes["num_hidden_layers"]
  kept = None
  for name in ("num_layers", "keep_bottom_n_layers"):
    wanted = wrapper(name, int, -1)
    if wanted not in (-1, found):
      wrapper.wrong(name, f"{found}, as the tensors have")
    kept = kept if wanted == -1 else found
  extra = {k: v for k, v in wrapper.values.items() if k not in _WRAPPER}
  said = read_qwen3(Fields(wrapper.path, extra, "backbone_config."), sizes, notes)
  name = wrapper("pretrained_model_name_or_path", str)
  if backbone is not None:
    values = {k: v for k, v in backbone.values.items() if extra.get(k) is None}
    said = read_qwen3(Fields(backbone.path, values), sizes, notes, kept) | said
    notes.append(
      f"rope_theta {said.get('rotary_base')}, rms_norm_eps {said.get('norm_epsilon')}: "
      f"of {backbone.path.name}"
    )
  elif name in BASES:
    said = {"rotary_base": BASES[name], "norm_epsilon": EPSILON, **said}
    notes.append(
      f"rope_theta, rms_norm_eps: not said; {said['rotary_base']:g}, "
      f"{said['norm_epsilon']:g} of {name}"
    )
  for field, part in (("rope_theta", "rotary_base"), ("rms_norm_eps", "norm_epsilon")):
    if part not in said and backbone is not None:
      Fields(backbone.path, backbone.values).wrong(field, "a number above 0")
    if part not in said:
      right = f"a released Qwen3, as Qwen/Qwen3-0.6B, for {field} to be known; give "
      right += f"--backbone-config=FILE.json, or put {BACKBONE_CONFIG} beside it"
      wrapper.wrong("pretrained_model_name_or_path", right)
  said = {"tied": "lm_head.weight" not in shapes, **said}
  _check_head(wrapper.path if backbone is None else backbone.path, shapes, said["tied"])
  return qwen3_model(sizes, said)


def plain_qwen3(
  fields: Fields, shapes: Shapes, tokens: int | None, notes: list[str]
) -> tuple[dict, Vocabulary, int]:
  """A pretrained autoregressive model, as the start of fine-tuning.

  Args:
    fields: of its `config.json`.
    shapes: of the tensors, by canonical name.
    tokens: 1 + the largest id of the tokenizer, if there is one.
    notes: lines are added for what is taken without being said.

  Returns:
    Groups of the configuration, the ids, and how many rows stand for a token.

  Raises:
    UserError: a field that is missing, unknown, wrong, or disagrees with the tensors.
  """
  sizes = sizes_of(fields.path, shapes)
  said = {"tied": False, "norm_epsilon": EPSILON, **read_qwen3(fields, sizes, notes)}
  fields.positive("num_hidden_layers", int)
  if "rotary_base" not in said:
    fields.wrong("rope_theta", "a number above 0")
  _check_head(fields.path, shapes, said["tied"])
  vocabulary, used = plain_ids(fields, sizes["vocab_size"], tokens, notes)
  length = min(fields.positive("max_position_embeddings", int), 1024)
  notes.append(f"data.length: not said; {length} is taken")
  settings = {"model": qwen3_model(sizes, said), "method": {"name": "ar"}}
  settings["data"] = {"length": length, "bos": False}
  return settings, vocabulary, used


def _check_head(path: pathlib.Path, shapes: Shapes, tied: bool) -> None:
  if not tied and "lm_head.weight" not in shapes:
    raise UserError(
      f"{path}: tie_word_embeddings is false, or left out; must be true, as the "
      "tensors have no lm_head.weight"
    )
