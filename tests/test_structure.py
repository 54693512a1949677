"""The data flow of the package: every import goes one way."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "set_diffusion_jax"

# Each room may import from the rooms of its line and of the lines above it.
LEVELS = [
  ["errors", "version", "preemption"],
  ["config", "rng", "cluster", "processes"],
  ["schedules", "data"],
  ["order"],
  ["index"],
  ["corrupt"],
  ["noise"],
  ["model", "loss", "sharding", "metrics", "workdir", "checkpoint"],
  ["hardware"],
  ["objective", "state"],
  ["decode", "evaluate", "weights", "convert"],
  ["step"],
  ["train", "api", "picture", "plan", "throughput", "journal", "figures"],
  ["cli"],
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
  for path in ROOT.rglob("*.py"):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room not in ("__init__", "__main__"):
      yield path, room


def test_imports_follow_the_data_flow():
  for path, room in modules():
    for name in imports(path):
      parts = name.split(".")
      if parts[0] == "set_diffusion_jax" and len(parts) > 1 and parts[1] in LEVEL:
        assert LEVEL[parts[1]] <= LEVEL[room], f"{path.name} imports {name}"


def test_every_room_has_its_place():
  assert {room for _, room in modules()} == set(LEVEL)


def test_rooms_keep_to_their_libraries():
  for path, room in modules():
    used = {name.split(".")[0] for name in imports(path)}
    other_side = {"torch"} if path.name in ("torch_forward.py", "verify.py") else set()
    assert not used & ({"torch", "transformers"} - other_side), path
    assert not used & {"jax", "flax"} or room != "data", path
    assert "flax" not in used or room in ("model", "index", "state", "decode"), path
    linen = any(name.startswith("flax.linen") for name in imports(path))
    assert not linen or room == "model", path
    assert not any("jax._src" in name for name in imports(path)), path
    reads_settings = "ml_collections" in used and room not in ("config", "cli")
    assert not reads_settings, path
