"""Decode settings as the published `generation_config.json` and as this project's."""

import math

from set_diffusion_jax.config import Config
from set_diffusion_jax.convert.settings import Fields, Settings
from set_diffusion_jax.data import Vocabulary

GENERATION = "generation_config.json"
_NEVER = 1e6  # a confidence that no token reaches: the budget alone decides


def with_generation(settings: Settings, fields: Fields) -> Settings:
  """The settings with what a generation configuration says about decoding.

  The window, the temperature and decoding in a drawn order have counterparts; the
  others stay in the file, which travels as it is.

  Raises:
    UserError: a field of the wrong type.
  """
  values, notes = settings.config.to_dict(), settings.notes
  decode = values["decode"]
  window = fields("max_window_size", int, 0)
  if window > 0:
    decode["window"] = window
    notes = [note for note in notes if not note.startswith("decode.window")]
  sample = fields("do_sample", bool, False)  # Transformers leaves out its defaults
  decode["temperature"] = fields("temperature", float, 1.0) if sample else 0.0
  if fields("use_first_hitting_order_in_decode", bool, False):
    decode |= {"commit": "confidence", "candidates": "order"}
  return settings._replace(config=Config.from_dict(values), notes=notes)


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
