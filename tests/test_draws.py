"""Every random draw has a key of its own, and what shows a draw shows that very one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.cli.batch import batch_figures
from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion.draws import (
  DECODE,
  EVALUATE,
  SHARED_DRAW,
  TRAIN,
  count_keys,
  decoding_keys,
  level_keys,
  row_keys,
  split_rows,
  stream_key,
  training_keys,
)
from set_diffusion_jax.likelihood.objective import Objective
from set_diffusion_jax.training import step
from set_diffusion_jax.training.train import Run
from tests.test_train import settings

ROWS = jnp.arange(4)


@pytest.mark.parametrize("masking_keys", [count_keys, level_keys])
def test_no_two_draws_share_a_key(masking_keys):
  """With one seed: steps of training, draws of evaluation, steps of decoding."""
  found = []
  for number in (0, 1):
    found += training_keys(stream_key(7, TRAIN), number, ROWS)
    of_draw = row_keys(stream_key(7, EVALUATE), number, ROWS)
    order, noise = split_rows(of_draw)
    found += [order, *masking_keys(noise)]
  found.append(row_keys(stream_key(7, EVALUATE), SHARED_DRAW, ROWS))
  order, rest = split_rows(row_keys(stream_key(7, DECODE), 0, ROWS))
  turn, steps = split_rows(rest)
  found += [order, turn]
  for taken in range(70):  # as many as a text has positions, and more
    keys = decoding_keys(steps, jnp.full(ROWS.shape, taken))
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    found += [keys.reveal, keys.accept, keys.last]
    found += [*fold(keys.token, jnp.arange(64)).T]
  plain = np.concatenate([np.asarray(jax.random.key_data(x)) for x in found])
  assert len(np.unique(plain, axis=0)) == len(plain) == 4 * len(found)


@pytest.mark.parametrize("name", ["masked", "block", "general"])
def test_inspect_shows_the_masks_of_the_first_step(tmp_path, monkeypatch, name, capsys):
  fields = settings(tmp_path, method__name=name, model__layers=1)
  noise = "level" if name == "general" else "full"
  fields.method.update({"block_size": 4, "noise": noise})
  fields.corruption.update({"t_min": 0.2, "t_max": 0.7})
  config = Config.from_dict(fields.to_dict())
  shown = batch_figures(config, 2, False)[0]["masked"]
  drawn = []
  plain = Objective.training_draws

  def draws(self, *arguments):
    order, noise = plain(self, *arguments)
    drawn.append(int(noise.masked.sum()))
    return order, noise

  run = Run.build(config)
  start = jax.device_get(run.init())
  batch = jax.device_get(run.put(next(run.batches())))
  monkeypatch.setattr(Objective, "training_draws", draws)
  with jax.disable_jit():
    step.train_step(run.objective, *jax.tree.map(jnp.asarray, (start, batch)))
  assert drawn == [shown]
  assert shown > 0
