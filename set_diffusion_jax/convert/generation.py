"""Decode settings as the published `generation_config.json` and as this project's."""

import math
import pathlib

from set_diffusion_jax.config import Config
from set_diffusion_jax.convert.qwen3 import OF_NO_EFFECT
from set_diffusion_jax.convert.settings import Settings
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.fields import Fields
from set_diffusion_jax.inputs.records import parse_json

GENERATION = "generation_config.json"
_NEVER = 1e6  # a confidence that no token reaches: the budget alone decides

# Searches and changes of logits that are not here, by the values that leave them out.
_PLAIN = {
  "assistant_early_exit": (),
  "bad_words_ids": ([],),
  "begin_suppress_tokens": ([],),
  "constraints": ([],),
  "dola_layers": (),
  "encoder_no_repeat_ngram_size": (0,),
  "encoder_repetition_penalty": (1,),
  "epsilon_cutoff": (0,),
  "eta_cutoff": (0,),
  "exponential_decay_length_penalty": (),
  "force_words_ids": ([],),
  "forced_bos_token_id": (),
  "forced_eos_token_id": (),
  "guidance_scale": (1,),
  "min_p": (0,),
  "no_repeat_ngram_size": (0,),
  "num_beam_groups": (1,),
  "num_beams": (1,),
  "penalty_alpha": (0,),
  "sequence_bias": ({},),
  "stop_strings": ([],),
  "suppress_tokens": ([],),
  "token_healing": (False,),
  "typical_p": (1,),
  "watermarking_config": (),
}
# How the published code decodes, by the values that this project writes.
_SAID = {
  "confidence_based_noising": True,
  "confidence_margin_based_noising": False,
  "confidence_threshold": _NEVER,
  "first_hitting": False,
  "sampling_strategy": "predict_and_noise",
}
# Lengths and lists that options give, and what concerns the other code's own working.
_OF_NO_EFFECT = frozenset(
  """
  _from_model_config align_inputs_to_blocks assistant_confidence_threshold
  assistant_lookbehind block_size bos_token_id cache_config cache_full_infill_context
  cache_implementation chat_format compile_config compute_inf_budget
  disable_compile generation_kwargs is_assistant kv_cache low_memory mask_token_id
  max_matching_ngram_size max_new_tokens max_time min_t nucleus_p num_assistant_tokens
  num_assistant_tokens_schedule num_steps output_logits pad_token_id prefill_chunk_size
  profile_throughput prompt_lookup_num_tokens renormalize_logits return_legacy_cache
  subcontext_len subcontext_shuffle target_lookbehind
  """.split()
)


def with_generation(settings: Settings, fields: Fields) -> Settings:
  """The settings with what a generation configuration says about decoding.

  What has a counterpart here is followed. What changes the text and has none is
  refused, or a line of the notes where the published code decodes otherwise.

  Raises:
    UserError: a field of a wrong type or value, or one that is unknown.
  """
  values, notes = settings.config.to_dict(), list(settings.notes)
  decode = values["decode"]
  window = fields("max_window_size", int, 0)
  if window > 0:
    decode["window"] = window
    notes = [note for note in notes if not note.startswith("decode.window")]
  sample = fields("do_sample", bool, False)  # Transformers leaves out its defaults
  decode["temperature"] = fields.positive("temperature", float, 1.0) if sample else 0.0
  if fields("use_first_hitting_order_in_decode", bool, False):
    decode |= {"commit": "confidence", "candidates": "order"}
  if sample:
    decode |= _likeliest(fields)
  if fields.get("repetition_penalty") is not None:
    decode["repetition_penalty"] = fields.positive("repetition_penalty", float)
  if fields("min_new_tokens", int, 0) > 0:
    decode["minimum_length"] = fields("min_new_tokens", int)
  _say_ends(settings.vocabulary, fields, notes)
  fields.only(_PLAIN)
  for name, value in _SAID.items():
    if fields.get(name) not in (None, value):
      notes.append(f"{name} of {GENERATION}: is not followed")
  fields.finish(_OF_NO_EFFECT | OF_NO_EFFECT)
  return settings._replace(config=Config.from_dict(values), notes=notes)


def check_generation(text: str, settings: Settings, where: str) -> None:
  """UserError for a stored generation configuration that `with_generation` refuses."""
  where = f"{where}: {GENERATION}"
  values = parse_json(text, where)
  if not isinstance(values, dict):
    raise UserError(f"{where}: must hold a JSON object")
  with_generation(settings, Fields(pathlib.Path(where), values))


def _likeliest(fields: Fields) -> dict:
  """The tokens that are drawn from; 0 of them or all of the probability is no limit."""
  limits: dict = {}
  if fields("top_k", int, 0) != 0:
    limits["top_k"] = fields.positive("top_k", int)
  for name in ("top_p", "nucleus_p"):
    if 0 < fields.positive(name, float, 1.0) < 1:
      limits["top_p"] = fields(name, float)
    elif fields(name, float, 1.0) > 1:
      fields.wrong(name, "above 0 and at most 1")
  return limits


def _say_ends(ids: Vocabulary, fields: Fields, notes: list[str]) -> None:
  """A text ends at the EOS of config.json alone; further ids have to be known ones."""
  given = fields.get("eos_token_id")
  several = given if type(given) is list else [given]
  known = [i for i in several if type(i) is int and 0 <= i < ids.size]
  if given is not None and len(known) != len(several):
    fields.wrong("eos_token_id", f"ids below {ids.size}")
  if given is not None and known != [ids.eos]:
    notes.append(
      f"eos_token_id of {GENERATION}: {len(known)} ids; {ids.eos} ends a text"
    )


def generation_config(config: Config, vocabulary: Vocabulary) -> dict:
  """How the published code decodes set diffusion as this configuration does."""
  decode, length = config.decode, config.data.length
  window = decode.window or config.method.max_active(length)
  if decode.commit == "order":  # of the next ones in line all are committed
    window = math.ceil(decode.tokens_per_step)
  return {
    "align_inputs_to_blocks": False,
    "block_size": length,
    "bos_token_id": vocabulary.bos,
    "confidence_based_noising": True,
    "confidence_margin_based_noising": False,
    "confidence_threshold": _NEVER,
    "do_sample": decode.temperature > 0,
    "eos_token_id": vocabulary.eos,
    "first_hitting": False,
    "max_window_size": window,
    "num_steps": math.ceil(length / decode.tokens_per_step),
    "pad_token_id": vocabulary.pad,
    "sampling_strategy": "predict_and_noise",
    "temperature": decode.temperature or 1.0,
    "use_cache": True,
    "use_first_hitting_order_in_decode": "order" in (decode.commit, decode.candidates),
  }
