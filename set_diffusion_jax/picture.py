"""Pictures of masks: who sees whom, on the terminal and as PNG."""

import pathlib

import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.config import Config
from set_diffusion_jax.corrupt import Batch
from set_diffusion_jax.index import TokenIndex, attends
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.rng import TRAIN, stream_key, training_keys

# Clean sees clean, noisy sees clean, noisy sees noisy.
COLOURS = ("#4c72b0", "#dd8452", "#55a868")


def drawn_index(objective: Objective, length: int, seed: int) -> TokenIndex:
  """The index of one training row of `length` targets, as a seed draws it."""
  tokens = jnp.zeros((1, length), jnp.int32)
  flags = jnp.ones((1, length), bool)
  batch = Batch(tokens, flags, ~flags, jnp.zeros(1, jnp.int32))
  keys = training_keys(stream_key(seed, TRAIN), 0, batch.row)
  return objective.training_streams(batch, keys, jnp.array([0.0, 1.0])).index


def kinds(index: TokenIndex) -> np.ndarray:
  """The mask of one row as kinds [Q, K]: 0 unseen, else 1 + the place in COLOURS."""
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
  """Draws masks side by side, each with its title, into a PNG."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot
  from matplotlib.colors import ListedColormap

  figure, axes = pyplot.subplots(
    1, len(panels), figsize=(3.2 * len(panels), 4), squeeze=False, layout="constrained"
  )
  colours = ListedColormap(["white", *COLOURS])
  for axis, (title, index) in zip(axes[0], panels, strict=True):
    axis.imshow(kinds(index), cmap=colours, vmin=0, vmax=len(COLOURS))
    for draw in (axis.axhline, axis.axvline):
      if 0 < index.clean < index.slots:
        draw(index.clean - 0.5, color="black", linewidth=0.8)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel("keys: " + _streams(index))
  axes[0, 0].set_ylabel("queries, in generation order")
  names = ("clean sees clean", "noisy sees clean", "noisy sees noisy")
  handles = [
    pyplot.Rectangle((0, 0), 1, 1, color=colour, label=name)
    for colour, name in zip(COLOURS, names, strict=True)
  ]
  figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
  figure.savefig(path, dpi=110, metadata={"Software": None})
  pyplot.close(figure)


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
