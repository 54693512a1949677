"""The models of good checkpoints: their settings and tensors."""

import functools

import numpy as np

VOCABULARY, WIDTH, HEADS, FFN, LAYERS, LENGTH = 64, 16, 2, 64, 2, 16
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

_IDS = {"bos_token_id": 60, "eos_token_id": 61, "pad_token_id": 62, "mask_token_id": 63}
DIT_CONFIG = {
  "architectures": ["SetDLM"],
  "backbone_config": {
    "_target_": "src.backbone.dit.DIT",
    "adaln": False,
    "causal_attention": False,
    "cond_dim": 16,
    "dropout": 0.0,
    "hidden_size": WIDTH,
    "length": LENGTH,
    "n_heads": HEADS,
    "num_layers": LAYERS,
    "vocab_size": VOCABULARY,
  },
  "block_size": LENGTH,
  **_IDS,
  "keep_clean_bos": True,
  "length": LENGTH,
  "model_type": "bd3lm",
  "noise_config": {
    "_target_": "src.noise_schedule.noise_schedules.StaggeredNoise",
    "block_size": LENGTH,
    "desired_block_size": 4,
    "eps": 0.001,
    "length": LENGTH,
    "max_block_size": 8,
  },
  "pad_vocab_size_multiple": None,
  "torch_dtype": "float32",
  "vocab_size": VOCABULARY,
}
QWEN3_CONFIG = {
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "eos_token_id": 61,
  "head_dim": 8,
  "hidden_act": "silu",
  "hidden_size": WIDTH,
  "intermediate_size": FFN,
  "mask_token_id": 63,
  "max_position_embeddings": LENGTH,
  "model_type": "qwen3",
  "num_attention_heads": HEADS,
  "num_hidden_layers": LAYERS,
  "num_key_value_heads": 1,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 1000000.0,
  "sliding_window": None,
  "tie_word_embeddings": True,
  "torch_dtype": "float32",
  "use_sliding_window": False,
  "vocab_size": VOCABULARY,
}
OLDER_CONFIG = {
  "adaln": False,
  "architectures": ["BD3LM"],
  "block_size": 4,
  "causal": False,
  "cond_dim": 16,
  "dropout": 0.0,
  "hidden_dim": WIDTH,
  "model_length": LENGTH,
  "model_type": "bd3lm",
  "n_blocks": LAYERS,
  "n_heads": HEADS,
  "time_conditioning": False,
  "torch_dtype": "float32",
  "vocab_size": VOCABULARY,
}
GENERATION = {
  "block_size": LENGTH,
  "do_sample": True,
  "max_window_size": 8,
  "num_steps": 8,
  "temperature": 0.9,
  "use_cache": True,
  "use_first_hitting_order_in_decode": False,
}


def _dit(values) -> dict[str, np.ndarray]:
  layer = {
    "norm1.weight": (WIDTH,),
    "attn_qkv.weight": (3 * WIDTH, WIDTH),
    "attn_out.weight": (WIDTH, WIDTH),
    "norm2.weight": (WIDTH,),
    "mlp.0.weight": (FFN, WIDTH),
    "mlp.0.bias": (FFN,),
    "mlp.2.weight": (WIDTH, FFN),
    "mlp.2.bias": (WIDTH,),
  }
  shapes = {"vocab_embed.embedding": (VOCABULARY, WIDTH)}
  for number in range(LAYERS):
    shapes |= {f"blocks.{number}.{name}": shape for name, shape in layer.items()}
  shapes |= {
    "output_layer.norm_final.weight": (WIDTH,),
    "output_layer.linear.weight": (VOCABULARY, WIDTH),
    "output_layer.linear.bias": (VOCABULARY,),
  }
  return {f"backbone.{name}": values(shape) for name, shape in shapes.items()}


def _qwen3(values) -> dict[str, np.ndarray]:
  attention, mlp = "self_attn.", "mlp."
  layer = {
    "input_layernorm.weight": (WIDTH,),
    "post_attention_layernorm.weight": (WIDTH,),
    attention + "q_proj.weight": (HEADS * 8, WIDTH),
    attention + "k_proj.weight": (8, WIDTH),
    attention + "v_proj.weight": (8, WIDTH),
    attention + "o_proj.weight": (WIDTH, HEADS * 8),
    attention + "q_norm.weight": (8,),
    attention + "k_norm.weight": (8,),
    mlp + "gate_proj.weight": (FFN, WIDTH),
    mlp + "up_proj.weight": (FFN, WIDTH),
    mlp + "down_proj.weight": (WIDTH, FFN),
  }
  shapes = {"embed_tokens.weight": (VOCABULARY, WIDTH), "norm.weight": (WIDTH,)}
  for number in range(LAYERS):
    shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
  return {f"model.{name}": values(shape) for name, shape in shapes.items()}


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
  """The published tensors of "dit" or "qwen3"."""
  rng = np.random.default_rng(0)
  values = lambda shape: rng.normal(size=shape).astype(np.float32)
  return {"dit": _dit, "qwen3": _qwen3}[name](values)
