"""A first run: byte-level English on two CPU cores, one to two minutes a model.

python -m set_diffusion_jax train --config=quickstart:method=set \
  --workdir=runs/set

The text is what Python's own help() prints, so nothing is downloaded.
"""

from set_diffusion_jax.config import config_arguments, default_config


def get_config(arguments: str = ""):
  """`method=set` (the default) or `method=ar`."""
  given = config_arguments(arguments, method="set")
  config = default_config()
  config.method.name = given.method
  config.method.max_set_size = 8.0
  config.model.update({"layers": 2, "width": 128, "heads": 2, "ffn": 512})
  config.data.length = 128
  config.optimizer.update(
    {
      "learning_rate": 1.5e-3,
      "schedule": "cosine",
      "final_fraction": 0.1,
      "warmup_steps": 80,
      "beta2": 0.95,
      "ema_decay": 0.98,
    }
  )
  config.train.update(
    {
      "steps": 1200,
      "batch_size": 8,
      "log_every": 100,
      "evaluate_every": 200,
      "checkpoint_every": 400,
    }
  )
  config.evaluate.batch_size = 32
  return config
