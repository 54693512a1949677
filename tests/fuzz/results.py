"""Whether what was accepted is right, by readers that are not the project's own."""

import contextlib
import json
import pathlib
import re
import shutil
import sys

import numpy as np
import safetensors

from set_diffusion_jax import cli
from tests.fuzz import models

_PREFIX = re.compile(r"^(?:(?:_orig_mod|module|model|backbone)\.)+")
_BUFFER = "rotary_emb.inv_freq"

# Keys of a config.json that change nothing of what is computed here.
IRRELEVANT = {
  *("torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range"),
  *("_name_or_path", "tokenizer_name", "eps"),
  # They stand in groups of a published file, beside the ones that count.
  *("length", "block_size"),
  # Of the levels of the other methods.
  *("sampling_eps_min", "sampling_eps_max"),
  # While `use_sliding_window` is false; code of the checkpoint is never run.
  *("sliding_window", "max_window_layers", "auto_map"),
}

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]


def canonical(name: str) -> str:
  return _PREFIX.sub("", name)


def stored(folder: pathlib.Path) -> Stored:
  """Tensors of all safetensors files of a folder, by the format's own library."""
  found = {}
  for path in sorted(folder.glob("*.safetensors")):
    for name, one in safetensors.deserialize(path.read_bytes()):
      found[canonical(name)] = one["dtype"], tuple(one["shape"]), bytes(one["data"])
  return found


def made(name: str) -> Stored:
  """The tensors that a base was made of."""
  return {
    canonical(tensor): ("F32", array.shape, array.tobytes())
    for tensor, array in models.tensors(name).items()
  }


def pickled(path: pathlib.Path) -> Stored | None:
  """What PyTorch itself reads; None where it does not, or is not imported."""
  torch = sys.modules.get("torch")
  if torch is None:
    return None
  try:
    value = torch.load(path, weights_only=True)
    state = value.get("state_dict", value)
    if "ema" in value:
      state = dict(zip(state, value["ema"]["shadow_params"], strict=True))
    arrays = {canonical(name): tensor.numpy() for name, tensor in state.items()}
  except Exception:  # it is stricter
    return None
  return {
    name: ("F32", array.shape, np.ascontiguousarray(array).tobytes())
    for name, array in arrays.items()
  }


def same_tensors(found: Stored, wanted: Stored) -> str | None:
  """What differs between two sets of tensors."""
  left = found.keys() - {_BUFFER}
  right = wanted.keys() - {_BUFFER, "lm_head.weight"}
  if left - {"lm_head.weight"} != right:
    return f"{min(left ^ right)} is in one of source and result only"
  for name in right:
    if found[name] != wanted[name]:
      return f"{name} is not what the source holds"
  return None


def converted(
  destination: pathlib.Path, wanted: Stored | None, orbax: bool
) -> str | None:
  """What is wrong with a converted checkpoint.

  Args:
    destination: what was written.
    wanted: the tensors that it must hold; None: not known.
    orbax: whether it is a work directory.
  """
  if not destination.is_dir():
    return "the destination is not there"
  with contextlib.ExitStack() as stack:
    if cli.main(["inspect", str(destination)]) != 0:
      return "the result cannot be inspected"
    folder = destination
    if orbax:
      folder = destination.parent / "back again"
      stack.callback(shutil.rmtree, folder, ignore_errors=True)
      if cli.main(["convert", str(destination), str(folder)]) != 0:
        return "the result cannot be converted back"
    return None if wanted is None else same_tensors(stored(folder), wanted)


def described(text: str, base: dict, key: str, changed: bool) -> str | None:
  """Whether a changed key of a configuration was followed, said, or is irrelevant.

  Args:
    text: the JSON that `inspect --output` wrote.
    base: that of the unchanged input.
    key: what was changed.
    changed: whether it has another value now.
  """
  found = json.loads(text)
  parts = ("config", "vocabulary", "parameters")
  if key == "_target_":  # the class counts; the module it is in is never imported
    return None
  if not changed or key in IRRELEVANT or any(found[p] != base[p] for p in parts):
    return None
  new = [note for note in found["notes"] if note not in base["notes"]]
  if new or any(key in note for note in found["notes"]):
    return None
  return f"{key} has another value, which is neither followed, refused nor said"
