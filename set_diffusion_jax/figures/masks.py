"""Pictures of masks: who sees whom, on the terminal and as PNG."""

import pathlib

import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.diffusion.draws import TRAIN, stream_key, training_keys
from set_diffusion_jax.diffusion.index import TokenIndex, attends
from set_diffusion_jax.figures.canvas import canvas
from set_diffusion_jax.likelihood.objective import Objective

# Unseen; clean sees clean, noisy sees clean, noisy sees noisy.
COLOURS = np.array([(255, 255, 255), (76, 114, 176), (221, 132, 82), (85, 168, 104)])


def drawn_index(objective: Objective, length: int, seed: int) -> TokenIndex:
  """The index of one training row of `length` targets, as a seed draws it."""
  tokens = jnp.zeros((1, length), jnp.int32)
  flags = jnp.ones((1, length), bool)
  batch = Batch(tokens, flags, ~flags, jnp.zeros(1, jnp.int32))
  keys = training_keys(stream_key(seed, TRAIN), 0, batch.row)
  return objective.training_streams(batch, keys, jnp.array([0.0, 1.0])).index


def kinds(index: TokenIndex) -> np.ndarray:
  """The mask of one row as kinds [Q, K]: places in COLOURS, 0 unseen."""
  seen = np.asarray(attends(index, index))[0]
  noisy = np.asarray(index.noisy).astype(int)
  return np.where(seen, 1 + noisy[:, None] + noisy[None, :], 0)


def terminal(index: TokenIndex) -> str:
  """One line a query, in memory order; columns are keys."""
  signs = np.array(list(" cno"))
  position = np.asarray(index.position)[0]
  noisy = np.asarray(index.noisy)
  lines = []
  for query, row in enumerate(kinds(index)):
    row = "".join(signs[row])
    row = f"{row[: index.clean]}|{row[index.clean :]}"
    lines.append(f"{'noisy' if noisy[query] else 'clean'} {position[query]:4d} |{row}|")
  legend = "c clean sees clean, n noisy sees clean, o noisy sees noisy of its set"
  head = "query: stream, text position; keys: clean stream | noisy stream"
  return "\n".join([head, legend, *lines])


def save(panels: list[tuple[str, TokenIndex]], path: pathlib.Path) -> None:
  """Draws masks side by side, each with its title, into a PNG.

  Raises:
    UserError: matplotlib is not installed.
    OSError: the file cannot be written.
  """
  size = (3.2 * len(panels), 4)
  with canvas(path, size, columns=len(panels)) as axes:
    for axis, (name, index) in zip(axes, panels, strict=True):
      axis.imshow(COLOURS[kinds(index)])
      for draw in (axis.axhline, axis.axvline):
        if 0 < index.clean < index.slots:
          draw(index.clean - 0.5, color="black", linewidth=0.8)
      axis.set_title(name, fontsize=10)
      axis.set_xticks([])
      axis.set_yticks([])
      axis.set_xlabel("keys: " + _streams(index))
    axes[0].set_ylabel("queries, in generation order")
    names = ("clean sees clean", "noisy sees clean", "noisy sees noisy")
    square = {"marker": "s", "linestyle": "none"}
    handles = [
      axes[0].plot([], [], color=colour / 255, label=label, **square)[0]
      for colour, label in zip(COLOURS[1:], names, strict=True)
    ]
    where = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    axes[0].figure.legend(handles=handles, **where)


def _streams(index: TokenIndex) -> str:
  if index.clean == 0:
    return "noisy"
  return "clean" if index.clean == index.slots else "clean | noisy"


def objective_of(config: Config) -> Objective:
  """An objective that can draw orders; it has no network to run."""
  return Objective(config, network=None, mask_id=1, eos_id=2)


def title(config: Config) -> str:
  """A method and its size in a few words."""
  return config.method.label
