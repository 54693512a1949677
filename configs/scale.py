"""Published recipes at full size, to be planned and trained on pods.

python -m set_diffusion_jax plan --config=scale:recipe=owt_110m \
  --topology=v5e:16x16 --vocabulary-size=50258

docs/scale.md has the plans. The text is left to the user: `train` asks for data.source
and what belongs to it, as docs/launch.md shows from a corpus to a figure.
"""

from set_diffusion_jax.config import config_arguments, default_config
from set_diffusion_jax.errors import UserError

_QWEN3 = {"backbone": "qwen3", "kv_heads": 8, "head_size": 128, "rotary_base": 1e6}
_FINE_TUNING = {
  "learning_rate": 1e-5,
  "schedule": "cosine",
  "final_fraction": 0.5,
  "beta2": 0.98,
  "weight_decay": 1e-5,
  "decay": "relative",
}
# Name -> what differs from the defaults, which are OpenWebText's and LM1B's: AdamW at
# 3e-4 after 2,500 warm-up steps, batch 512, 12 layers of width 768. The paper tunes
# Qwen3 on one GPU with batch 1; here the batch is a pod's.
RECIPES = {
  "owt_110m": {
    "model": {"dropout": 0.1},
    "data": {"bos": False},
    "train": {"steps": 300_000},
  },
  "qwen3_1.7b": {
    "model": {
      **_QWEN3, "layers": 28, "width": 2048, "heads": 16, "ffn": 6144, "tied": True,
      "norm_epsilon": 1e-6, "remat": "layer",
    },
    "optimizer": _FINE_TUNING,
    "train": {"steps": 75_000, "batch_size": 256},
  },
  "qwen3_8b": {
    "model": {
      **_QWEN3, "layers": 36, "width": 4096, "heads": 32, "ffn": 12288,
      "norm_epsilon": 1e-6, "remat": "layer",
    },
    "optimizer": _FINE_TUNING,
    "train": {"steps": 75_000, "batch_size": 256},
  },
}  # fmt: skip


def get_config(arguments: str = ""):
  """`recipe=NAME` of RECIPES."""
  given = config_arguments(arguments, recipe="owt_110m")
  if given.recipe not in RECIPES:
    raise UserError(f"recipe={given.recipe}: must be one of {', '.join(RECIPES)}")
  config = default_config()
  config.model.dtype = "bfloat16"
  config.data.length = 1024
  config.data.source = "none"
  for group, fields in RECIPES[given.recipe].items():
    config[group].update(fields)
  return config
