"""Golden numbers of the published code: where they are and how to read them.

`SET_DIFFUSION_REFERENCE` replaces the folder `reference`. `cases` holds more of this
kind and layout. Sizes are read from the files.
"""

import functools
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.weights import Stored, read_weights

ROOT = pathlib.Path(
  os.environ.get("SET_DIFFUSION_REFERENCE", pathlib.Path(__file__).parent / "reference")
)
CASES = pathlib.Path(__file__).parent / "cases"


def place(kind: str, name: str) -> pathlib.Path:
  """The folder of "models" or "decode" with this name."""
  found = ROOT / kind / name
  return found if found.exists() else CASES / kind / name


class Golden:
  """One folder of "models"."""

  def __init__(self, name: str):
    self.folder = folder = place("models", name)
    self.settings = json.loads((folder / "config.json").read_text())["hyperparameters"]

  @functools.cached_property
  def arrays(self) -> dict[str, np.ndarray]:
    """Inputs and outputs of every case."""
    return dict(np.load(self.folder / "io.npz"))

  @property
  def tensors(self) -> dict[str, np.ndarray]:
    """Of the published file."""
    return safetensors.numpy.load_file(self.folder / "model.safetensors")

  def case(self, name: str) -> dict[str, np.ndarray]:
    prefix = name + "__"
    return {
      key.removeprefix(prefix): value
      for key, value in self.arrays.items()
      if key.startswith(prefix)
    }

  def config(self, **groups) -> Config:
    s = self.settings
    q = s.get("qwen3_config")
    model = (
      {
        "layers": s["num_layers"],
        "width": s["hidden_size"],
        "heads": s["n_heads"],
        "ffn": s["mlp_ratio"] * s["hidden_size"],
        "adaln": s["adaln"],
        "condition_width": s["cond_dim"],
        "rotary_base": s["rope_base"],
      }
      if q is None
      else {
        "backbone": "qwen3",
        "layers": q["num_hidden_layers"],
        "width": q["hidden_size"],
        "heads": q["num_attention_heads"],
        "kv_heads": q["num_key_value_heads"],
        "head_size": q["head_dim"],
        "ffn": q["intermediate_size"],
        "rotary_base": q["rope_theta"],
        "norm_epsilon": q["rms_norm_eps"],
        "tied": q["tie_word_embeddings"],
      }
    )
    data = {"length": s["length"], "bos": bool(s["keep_clean_bos"])}
    settings = {"model": model, "data": data, "compat": "setdlms", **groups}
    return Config.from_dict(settings)

  @property
  def schedule(self) -> dict[str, float]:
    """Of orders, as `method` says it."""
    noise = self.settings["noise"]
    active, desired = noise["max_block_size"], noise["desired_block_size"]
    return {"max_set_size": float(active), "prediction_budget": desired / 2}

  def batch(self, case: dict[str, np.ndarray], context: np.ndarray | None) -> Batch:
    """The inputs of a case; with keep_clean_bos, position 0 is context as well."""
    tokens = case["input_ids"].astype(np.int32)
    given = np.zeros(tokens.shape, bool) if context is None else context == 1
    if self.settings["keep_clean_bos"]:
      given[:, 0] = True
    rows = np.arange(len(tokens), dtype=np.int32)
    return Batch(*map(jnp.asarray, (tokens, case["attention_mask"] == 1, given, rows)))

  @functools.cached_property
  def stored(self) -> Stored:
    """What `load` makes of the folder: the weights, converted, and their settings."""
    weights = self.settings.get("weights_from", "model.safetensors")
    return read_weights((self.folder / weights).parent)

  def params(self) -> dict:
    """The weights in the layout of set_diffusion_jax.model."""
    return self.stored.params
