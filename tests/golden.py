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

  def batch(self, case: dict[str, np.ndarray], context: np.ndarray | None) -> Batch:
    """The inputs of a case; with keep_clean_bos, position 0 is context as well."""
    tokens = case["input_ids"].astype(np.int32)
    given = np.zeros(tokens.shape, bool) if context is None else context == 1
    if self.settings["keep_clean_bos"]:
      given[:, 0] = True
    rows = np.arange(len(tokens), dtype=np.int32)
    return Batch(*map(jnp.asarray, (tokens, case["attention_mask"] == 1, given, rows)))

  def params(self) -> dict:
    """The weights in the layout of set_diffusion_jax.model."""
    return self._dit() if "n_heads" in self.settings else self._qwen3()

  def _dit(self) -> dict:
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

  def _qwen3(self) -> dict:
    q = self.settings["qwen3_config"]
    t = {k.removeprefix("backbone.model."): v for k, v in self.tensors.items()}
    width, size = q["hidden_size"], q["head_dim"]

    def block(i):
      base = f"model.layers.{i}"
      linear = lambda name: t[f"{base}.{name}_proj.weight"].T
      heads = lambda name: {"kernel": linear(name).reshape(width, -1, size)}
      scale = lambda name: {"scale": t[f"{base}.{name}.weight"]}
      return {
        "norm_attention": scale("input_layernorm"),
        "norm_mlp": scale("post_attention_layernorm"),
        **{name: heads(f"self_attn.{name}") for name in "qkv"},
        "q_norm": scale("self_attn.q_norm"),
        "k_norm": scale("self_attn.k_norm"),
        "out": {"kernel": linear("self_attn.o").reshape(-1, size, width)},
        **{name: {"kernel": linear(f"mlp.{name}")} for name in ("gate", "up", "down")},
      }

    tree = {
      "embedding": t["model.embed_tokens.weight"],
      "blocks": _stack([block(i) for i in range(q["num_hidden_layers"])]),
      "norm": {"scale": t["model.norm.weight"]},
    }
    if not q["tie_word_embeddings"]:
      tree["head"] = {"kernel": t["lm_head.weight"].T}
    return tree


def _stack(trees: list[dict]) -> dict:
  first = trees[0]
  if not isinstance(first, dict):
    return np.stack(trees)
  return {key: _stack([tree[key] for tree in trees]) for key in first}
