"""Peak memory and seconds of converting a 2 GB checkpoint both ways.

Each conversion runs in a process of its own; its memory is the highest resident size
minus the one right after its imports. Random float32 weights of a DiT are written as
sharded safetensors, converted to Orbax and back. The third direction starts from a
checkpoint that training would have saved, with parameters and EMA.
"""

import pathlib
import platform
import tempfile
import time

import grain
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from set_diffusion_jax.config import Config
from set_diffusion_jax.convert import convert, layout, published, torch_directory
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.convert.transfer import Cast
from set_diffusion_jax.convert.verify import verify_result
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.storage.checkpoint import Checkpoints

LIMIT = 600 * 10**6  # bytes above the largest stored parameter


def config(width: int = 2048, layers: int = 7) -> Config:
  """Of a model with 32,768 ids: 2.0 GB in float32 by default."""
  model = {"width": width, "layers": layers, "heads": width // 64, "ffn": 4 * width}
  return Config.from_dict(
    {
      "model": model,
      "method": {"name": "masked"},
      "evaluate": {"weights": "raw"},
    }
  )


def vocabulary(size: int = 32_768) -> Vocabulary:
  """The last ids are special."""
  return Vocabulary(size=size, bos=size - 4, eos=size - 3, pad=size - 2, mask=size - 1)


def write_published(folder: pathlib.Path, model: Config, ids: Vocabulary) -> int:
  """A published directory of random weights; returns the bytes of its values."""
  folder.mkdir(parents=True)
  parameters = layout.parameters(model.model, ids.size)
  planned = [
    torch_directory.Planned(f"backbone.{name}", np.dtype(np.float32), p.tensor_shape)
    for p in parameters
    for name in p.names()
  ]
  rng = np.random.default_rng(0)
  with torch_directory.SafetensorsWriter(folder, planned, 10**9) as writer:
    for tensor in planned:
      values = rng.standard_normal(tensor.shape, np.float32)
      writer.write(tensor.name, 0, values)
  values = published.published_config(model, ids, "float32")
  (folder / "config.json").write_text(published.write_json(values))
  return sum(tensor.nbytes for tensor in planned)


def trained(workdir: pathlib.Path, converted: pathlib.Path) -> None:
  """A checkpoint as training saves it, of converted weights, saved twice."""
  source = open_source(converted)
  params: dict = {}
  for parameter in source.parameters:
    pieces = {p: source.read(parameter, p) for p in parameter.pieces()}
    value = np.empty(parameter.shape, np.float32)
    for piece, array in pieces.items():
      value[parameter.index(piece)] = array
    *groups, leaf = parameter.path.split("/")
    node = params
    for group in groups:
      node = node.setdefault(group, {})
    node[leaf] = jnp.asarray(value)
  meta = {name: source.reader.meta[name] for name in ("config", "tokenizer")}
  data = iter(grain.MapDataset.range(1).to_iter_dataset())
  with Checkpoints(workdir / "checkpoints", keep_latest=1) as checkpoints:
    checkpoints.save(1, {"params": params, "ema": params}, data, meta, None)


def main() -> dict:
  """Measures; bytes and seconds of each direction."""
  model, ids = config(), vocabulary()
  parameters = layout.parameters(model.model, ids.size)
  largest = max(4 * int(np.prod(p.shape)) for p in parameters)
  with tempfile.TemporaryDirectory(prefix="convert-") as name:
    folder = pathlib.Path(name)
    total = write_published(folder / "published", model, ids)
    figures = {
      "machine": platform.platform(),
      "bytes": total,
      "largest_parameter_bytes": largest,
      "limit_bytes": largest + LIMIT,
      "pytorch_to_orbax": child(folder / "published", folder / "orbax"),
      "orbax_to_pytorch": child(folder / "orbax", folder / "back"),
    }
    trained(folder / "run", folder / "orbax")
    figures["training_to_pytorch"] = child(folder / "run", folder / "out")
  return figures


def child(
  source: pathlib.Path, destination: pathlib.Path, verify: bool = False
) -> dict:
  """One conversion in a process of its own."""
  return measure.in_process(_conversion, source, destination, verify)


def _conversion(source: pathlib.Path, destination: pathlib.Path, verify: bool) -> dict:
  before, start = measure.resident_bytes()["now"], time.perf_counter()
  convert(source, destination)
  seconds = time.perf_counter() - start
  if verify:  # Every bit, but not the logits, which take both models in memory.
    opened = open_source(source)
    verify_result(opened, Cast(opened, None), open_source(destination))
  return {
    "peak_bytes": measure.resident_bytes()["peak"] - before,
    "seconds": seconds,
  }
