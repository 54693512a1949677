"""The papers' comparison at a size that two CPU cores train in under two hours.

python launch/reproduction.py TEXT ... --runs=runs/reproduction

trains every model of MODELS on the same tokens and writes the tables of
docs/results.md; --config=reproduction:model=set_8,data=runs/reproduction is one.
"""

from set_diffusion_jax.config import config_arguments, default_config
from set_diffusion_jax.errors import UserError

# Name -> what differs from the others. Sets of S<=8 and blocks of 4 both predict two
# tokens of a text at a time on average.
MODELS = {
  "ar": {"method": {"name": "ar"}},
  "set_8": {"method": {"name": "set", "max_set_size": 8.0}},
  "set_32": {"method": {"name": "set", "max_set_size": 32.0}},
  "masked": {"method": {"name": "masked"}},
  "block_4": {"method": {"name": "block", "block_size": 4}},
  "block_4_clipped": {
    "method": {"name": "block", "block_size": 4},
    "corruption": {"clip_width": 0.5},
  },
  "set_8_active": {
    "method": {"name": "set", "max_set_size": 8.0, "predict": "active"},
    "loss": {"weighting": "uniform", "denominator": "masked"},
  },
}


def get_config(arguments: str = ""):
  """`model=NAME` of MODELS; `data=DIR` holds what launch/reproduction.py prepared."""
  given = config_arguments(arguments, model="set_8", data="runs/reproduction")
  if given.model not in MODELS:
    raise UserError(f"model={given.model}: must be one of {', '.join(MODELS)}")
  config = default_config()
  config.model.update({"layers": 4, "width": 128, "heads": 4, "ffn": 512})
  config.data.update(
    {
      "source": "jsonl",
      "train_path": f"{given.data}/train.jsonl",
      "validation_path": f"{given.data}/validation.jsonl",
      "tokenizer": f"{given.data}/tokenizer.json",
      "length": 128,
    }
  )
  config.optimizer.update(
    {
      "learning_rate": 2e-3,
      "schedule": "cosine",
      "final_fraction": 0.05,
      "warmup_steps": 60,
      "beta2": 0.98,
      "ema_decay": 0.99,
    }
  )
  config.train.update(
    {
      "steps": 1000,
      "batch_size": 16,
      "log_every": 100,
      "evaluate_every": 250,
      "checkpoint_every": 250,
    }
  )
  config.evaluate.update({"batch_size": 64, "draws": 1})
  for group, fields in MODELS[given.model].items():
    config[group].update(fields)
  return config
