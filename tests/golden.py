"""Golden numbers of the published code: where they are and how to read them.

`SET_DIFFUSION_REFERENCE` replaces the folder. Sizes are read from the files.
"""

import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from set_diffusion_jax.config import Config
from set_diffusion_jax.corrupt import Batch

ROOT = pathlib.Path(
  os.environ.get("SET_DIFFUSION_REFERENCE", pathlib.Path(__file__).parent / "reference")
)


class Golden:
  """One folder of ROOT/models."""

  def __init__(self, name: str):
    folder = ROOT / "models" / name
    self.settings = json.loads((folder / "config.json").read_text())["hyperparameters"]
    self.tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    self.arrays = dict(np.load(folder / "io.npz"))

  def case(self, name: str) -> dict[str, np.ndarray]:
    prefix = name + "__"
    return {
      key.removeprefix(prefix): value
      for key, value in self.arrays.items()
      if key.startswith(prefix)
    }

  def config(self, **method) -> Config:
    s = self.settings
    return Config.from_dict(
      {
        "model": {
          "layers": s["num_layers"],
          "width": s["hidden_size"],
          "heads": s["n_heads"],
          "ffn": s["mlp_ratio"] * s["hidden_size"],
          "adaln": s["adaln"],
          "condition_width": s["cond_dim"],
          "rotary_base": s["rope_base"],
        },
        "method": method,
        "loss": {"denominator": "sequences"},
        "data": {"length": s["length"], "bos": bool(s["keep_clean_bos"])},
        "compat": "setdlms",
      }
    )

  def batch(self, case: dict[str, np.ndarray], context: np.ndarray | None) -> Batch:
    """The inputs of a case; with keep_clean_bos, position 0 is context as well."""
    tokens = case["input_ids"].astype(np.int32)
    given = np.zeros(tokens.shape, bool) if context is None else context == 1
    if self.settings["keep_clean_bos"]:
      given[:, 0] = True
    rows = np.arange(len(tokens), dtype=np.int32)
    return Batch(*map(jnp.asarray, (tokens, case["attention_mask"] == 1, given, rows)))

  def params(self) -> dict:
    """The weights in the layout of set_diffusion_jax.model.dit."""
    s, t = self.settings, self.tensors
    width, heads = s["hidden_size"], s["n_heads"]
    size = width // heads

    def linear(name, *shape):
      kernel = t[f"{name}.weight"].T.reshape(-1, *shape)
      if f"{name}.bias" not in t:
        return {"kernel": kernel}
      return {"kernel": kernel, "bias": t[f"{name}.bias"].reshape(shape)}

    def block(i):
      base = f"backbone.blocks.{i}"
      out = t[f"{base}.attn_out.weight"].T.reshape(heads, size, width)
      tree = {
        "norm_attention": {"scale": t[f"{base}.norm1.weight"]},
        "norm_mlp": {"scale": t[f"{base}.norm2.weight"]},
        "qkv": linear(f"{base}.attn_qkv", 3, heads, size),
        "out": {"kernel": out},
        "up": linear(f"{base}.mlp.0", s["mlp_ratio"] * width),
        "down": linear(f"{base}.mlp.2", width),
      }
      if s["adaln"]:
        tree["adaln"] = linear(f"{base}.adaLN_modulation", 6, width)
      return tree

    blocks = [block(i) for i in range(s["num_layers"])]
    tree = {
      "embedding": t["backbone.vocab_embed.embedding"],
      "blocks": _stack(blocks),
      "norm": {"scale": t["backbone.output_layer.norm_final.weight"]},
      "head": linear("backbone.output_layer.linear", s["vocab_size"]),
    }
    if s["adaln"]:
      tree["head_adaln"] = linear("backbone.output_layer.adaLN_modulation", 2, width)
      tree["condition"] = {
        "up": linear("backbone.sigma_map.mlp.0", s["cond_dim"]),
        "down": linear("backbone.sigma_map.mlp.2", s["cond_dim"]),
      }
    return tree


def _stack(trees: list[dict]) -> dict:
  first = trees[0]
  if not isinstance(first, dict):
    return np.stack(trees)
  return {key: _stack([tree[key] for tree in trees]) for key in first}
