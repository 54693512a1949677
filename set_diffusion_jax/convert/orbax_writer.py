"""Writing this project's checkpoints a part of a parameter at a time.

The layout is that of Orbax, see `orbax`; a test restores with Orbax what is written.
"""

import json
import pathlib
import time
from collections.abc import Mapping

import numpy as np
import tensorstore as ts

from set_diffusion_jax.convert.layout import Parameter, Piece
from set_diffusion_jax.convert.orbax import ERRORS, TREE, kvstore, reason
from set_diffusion_jax.inputs.paths import Opened
from set_diffusion_jax.storage.checksums import of_piece
from set_diffusion_jax.storage.saved import FORMAT_VERSION
from set_diffusion_jax.storage.steps import MARKER

_DICT_KEY = 2  # Orbax's number for a key of a dict
_HANDLERS = "orbax.checkpoint._src.handlers."


class Writer:
  """Writes the parameters of a checkpoint that holds nothing else."""

  def __init__(self, step: pathlib.Path):
    self._step, self._state = step, step / "state"
    self._state.mkdir(parents=True)
    self._opened = Opened(self._state)
    self._entries: dict[str, dict] = {}
    self._checksums: dict[str, int] = {}
    self._array = None

  def start(self, parameter: Parameter, dtype: np.dtype) -> None:
    """Makes room for a parameter; its pieces are written next."""
    path = ("params", *parameter.path.split("/"))
    spec = {
      "driver": "zarr",
      "kvstore": kvstore(self._opened.path, ".".join(path), ocdbt=True),
      "metadata": {
        "shape": list(parameter.shape),
        "chunks": list(parameter.piece_shape),
        "compressor": {"id": "zstd", "level": 1},
      },
      "dtype": dtype.name,
      "create": True,
      "store_data_equal_to_fill_value": True,
    }
    self._array = _written(ts.open(spec))
    self._entries[str(path)] = {
      "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in path],
      "value_metadata": {
        "value_type": "jax.Array",
        "skip_deserialize": False,
        "write_shape": list(parameter.shape),
      },
    }

  def write(self, parameter: Parameter, piece: Piece, values: np.ndarray) -> None:
    """Writes a piece of the parameter that was started last.

    Raises:
      OSError: the disk is full or fails.
    """
    index, name = parameter.index(piece), f"params/{parameter.path}"
    _written(self._array[index].write(values))
    total = self._checksums.get(name, 0) + of_piece(values, index)
    self._checksums[name] = total % 2**32

  def finish(self, meta: Mapping) -> None:
    """Writes what makes the arrays an Orbax checkpoint with that `meta`."""
    now = time.time_ns()
    handlers = {
      "meta": _HANDLERS + "json_checkpoint_handler.JsonCheckpointHandler",
      "state": _HANDLERS + "standard_checkpoint_handler.StandardCheckpointHandler",
    }
    tree = {
      "tree_metadata": self._entries,
      "use_ocdbt": True,
      "use_zarr3": False,
      "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
    }
    _write(self._state / TREE, tree)
    (self._step / "meta").mkdir()
    described = {"format_version": FORMAT_VERSION, **meta, "checksums": self._checksums}
    _write(self._step / "meta" / "metadata", described)
    checkpoint = {
      "item_handlers": handlers,
      "metrics": {},
      "performance_metrics": {},
      "init_timestamp_nsecs": now,
      "commit_timestamp_nsecs": now,
      "custom_metadata": {},
    }
    _write(self._step / "_CHECKPOINT_METADATA", checkpoint)
    # As Orbax does, last: so a copy of the folder in a bucket is known to be whole.
    for folder in (self._state, self._step / "meta", self._step):
      (folder / MARKER).write_text(f"Checkpoint commit was successful to {folder}")


def _written(future):
  """The result of a write; what tensorstore raises becomes an OSError."""
  try:
    return future.result()
  except ERRORS as error:
    raise OSError(reason(error)) from None


def _write(path: pathlib.Path, values: Mapping) -> None:
  path.write_text(json.dumps(values))
