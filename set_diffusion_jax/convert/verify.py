"""The proof of a conversion: its result, read again, is what the source holds."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from set_diffusion_jax.convert.source import Source, open_source
from set_diffusion_jax.convert.transfer import Cast
from set_diffusion_jax.diffusion.index import attends, two_streams
from set_diffusion_jax.diffusion.order import singletons
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown
from set_diffusion_jax.model import build_network
from set_diffusion_jax.storage import places

# Of logits that are computed twice in float32: of their largest magnitude.
TOLERANCE = 1e-3
_LENGTH = 24  # tokens of each stream


_CHILD = "from set_diffusion_jax.convert.verify import child; child()"


def verify_here(
  source: pathlib.Path,
  destination: pathlib.Path,
  weights: str | None,
  dtype: str | None,
  backbone_config: str | pathlib.Path | None,
) -> tuple[int, float | None]:
  """Compares a finished conversion with its source; arguments as `convert` has them.

  Returns:
    The number of parameters compared, and the difference of logits from PyTorch's,
    which is None where torch is not installed.

  Raises:
    UserError: they differ, or the result cannot be read.
  """
  opened = open_source(source, weights, backbone_config)
  result = open_source(destination)
  compared = verify_result(opened, Cast(opened, dtype), result)
  return compared, verify_logits(result if opened.format == "orbax" else opened)


def verify_apart(
  source: pathlib.Path,
  destination: pathlib.Path,
  weights: str | None,
  dtype: str | None,
  backbone_config: str | pathlib.Path | None,
) -> tuple[int, float | None]:
  """The same in a fresh process, on the CPU, which has nothing but the paths.

  Raises:
    UserError: as `verify_here`, or the process ended without a result.
  """
  root = str(pathlib.Path(__file__).parents[2])
  search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  environment["PYTHONPATH"] = os.pathsep.join(search)
  given = (source, destination, weights, dtype, backbone_config)
  arguments = ["" if value is None else str(value) for value in given]
  # -P: nothing is imported from the directory where the user is.
  run = subprocess.run(
    [sys.executable, "-P", "-c", _CHILD, *arguments],
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
  )
  try:
    found = json.loads(run.stdout.splitlines()[-1])
  except (IndexError, ValueError):
    said = run.stderr.decode(errors="replace").strip().splitlines()
    why = f" ({shown(said[-1])})" if said else ""
    raise UserError(
      f"--verify: the process that reads {destination} ended with code "
      f"{run.returncode}{why}"
    ) from None
  if "error" in found:
    raise UserError(found["error"])
  return found["compared"], found["difference"]


def child() -> None:
  """The fresh process of `verify_apart`: its result is a line of JSON."""
  source, destination, *options = sys.argv[1:]
  path = places.path if places.is_remote(source) else pathlib.Path
  try:
    pair = path(source), pathlib.Path(destination)
    compared, difference = verify_here(*pair, *(value or None for value in options))
    print(json.dumps({"compared": compared, "difference": difference}))
  except UserError as error:
    print(json.dumps({"error": str(error)}))


def verify_result(source: Source, cast: Cast, result: Source) -> int:
  """Compares every value bit by bit, in the layout of this project.

  Returns:
    The number of parameters compared.

  Raises:
    UserError: names the first parameter that differs.
  """
  for name in ("vocabulary", "parameters"):
    if getattr(source, name) != getattr(result, name):
      raise UserError(f"--verify: {name} of {source.path} differ in the result")
  for parameter in source.parameters:
    dtype = cast.dtype(parameter.path)
    if result.dtypes[parameter.path] != dtype:
      found = result.dtypes[parameter.path].name
      raise UserError(f"--verify: {parameter.path} is {found}, must be {dtype.name}")
    for piece in parameter.pieces():
      wanted = cast.array(source.read(parameter, piece))
      found = result.read(parameter, piece)
      if not _same_bits(wanted, found):
        where = "" if piece.layer is None else f" of layer {piece.layer}"
        raise UserError(f"--verify: {parameter.path}{where} differs in the result")
  return len(source.parameters)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  """Also where values compare as equal or unequal whatever their bits: 0, -0, NaN."""
  bits = f"u{a.dtype.itemsize}"
  return a.shape == b.shape and np.array_equal(
    np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)
  )


def verify_logits(pytorch: Source) -> float | None:
  """Compares logits of a PyTorch directory with those that PyTorch computes from it.

  Random tokens in two streams under a random order, in float32; both models are in
  memory.

  Returns:
    The largest difference over the largest logit; None where torch is not installed.

  Raises:
    UserError: they differ by more than TOLERANCE.
  """
  if importlib.util.find_spec("torch") is None:
    return None
  import torch

  from set_diffusion_jax.convert.torch_forward import forward

  model, size = pytorch.config.model, pytorch.vocabulary.size
  length = min(_LENGTH, pytorch.config.data.length)
  rng = np.random.default_rng(0)
  place = np.stack([rng.permutation(length) for _ in range(2)])
  order = singletons(jnp.asarray(place, jnp.int32))
  index = two_streams(order, jnp.ones(place.shape, bool), reach=1)
  tokens = rng.integers(0, size, (2, 2 * length))
  network = build_network(model, size)
  run = jax.jit(lambda p, t, i: network.unembed(p, network.hidden(p, t, i)[0]))
  ours = run(pytorch.tree(), jnp.asarray(tokens, jnp.int32), index)

  tensor = lambda name: torch.from_numpy(pytorch.reader[name].read().astype(np.float32))
  arrays = tokens, np.asarray(index.position).astype(np.int64)
  mask = np.array(attends(index, index))
  theirs = forward(model, tensor, *map(torch.from_numpy, (*arrays, mask))).numpy()
  largest = float(np.abs(theirs).max())
  error = float(np.abs(np.asarray(ours) - theirs).max())
  # Weights of an untrained model have an output of zeros.
  difference = error / largest if largest else error
  if not difference <= TOLERANCE:
    raise UserError(
      f"--verify: logits of {pytorch.path} differ from PyTorch's by {difference:.2g} "
      f"of the largest, must be at most {TOLERANCE:g}"
    )
  return difference
