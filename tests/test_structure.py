"""The data flow of the package: every import goes one way."""

import ast
import pathlib
import re

from set_diffusion_jax.config import DENOMINATORS
from set_diffusion_jax.diffusion.method import METHODS
from set_diffusion_jax.diffusion.order import SAMPLERS

ROOT = pathlib.Path(__file__).parents[1] / "set_diffusion_jax"

# Each room, or file of one, may import from those of its line and of the lines above.
LEVELS = [
  ["errors", "version", "numerics", "jobs.outcomes", "jobs.phases", "jobs.ending"],
  ["jobs.clock", "jobs.links", "jobs.stops"],
  ["jobs.peers"],
  ["inputs"],
  ["storage.disk", "storage.mounts", "storage.refusals", "storage.faults"],
  ["storage.hub_refusals"],
  ["storage.hub"],
  ["storage.places", "storage.hub_datasets"],
  ["storage.steps"],
  ["storage.folders", "storage.copies"],
  ["storage.lease", "jobs.watch"],
  ["jobs.preemption"],
  ["config", "diffusion.method", "diffusion.draws", "jobs.cluster", "jobs.processes"],
  ["diffusion.schedules", "data"],
  ["diffusion.order"],
  ["diffusion.index"],
  ["diffusion.corruption"],
  ["diffusion.noise"],
  ["model", "likelihood.loss", "sharding", "training.metrics"],
  ["storage.checksums", "storage.event_loops", "storage.workdir"],
  ["storage.saved"],
  ["storage.checkpoint"],
  ["training.home", "training.goodput", "training.compilation_cache"],
  ["hardware"],
  ["likelihood.objective", "training.state"],
  ["decode", "evaluate", "weights", "convert"],
  ["training.step"],
  ["training.run"],
  ["api", "plan", "training.throughput", "training.reporting"],
  ["training.loop"],
  ["training.train"],
  ["figures"],
  ["cli"],
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
# Rooms whose files have levels of their own.
IN_FILES = {room.split(".")[0] for room in LEVEL if "." in room}


def place(parts):
  """The room, or file of one, of a name's parts after the package's."""
  return ".".join(parts[: 2 if parts[0] in IN_FILES else 1])


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
  for path in ROOT.rglob("*.py"):
    room = place(path.relative_to(ROOT).with_suffix("").parts)
    if room.split(".")[-1] not in ("__init__", "__main__"):
      yield path, room


def test_imports_follow_the_data_flow():
  for path, room in modules():
    for name in imports(path):
      package, *parts = name.split(".")
      there = LEVEL.get(place(parts)) if parts else None
      if package == "set_diffusion_jax" and there is not None:
        assert there <= LEVEL[room], f"{path.name} imports {name}"


def test_every_room_has_its_place():
  assert {room for _, room in modules()} == set(LEVEL)


MAY_USE_FLAX = ("model", "diffusion.index", "training.state", "decode")


def test_rooms_keep_to_their_libraries():
  for path, room in modules():
    used = {name.split(".")[0] for name in imports(path)}
    other_side = {"torch"} if path.name in ("torch_forward.py", "verify.py") else set()
    assert not used & ({"torch", "transformers"} - other_side), path
    assert not used & {"jax", "flax"} or room != "data", path
    assert "flax" not in used or room in MAY_USE_FLAX, path
    linen = any(name.startswith("flax.linen") for name in imports(path))
    assert not linen or room == "model", path
    assert not any("jax._src" in name for name in imports(path)), path
    assert "huggingface_hub" not in used or room == "storage.hub", path
    reads_settings = "ml_collections" in used and room not in ("config", "cli")
    assert not reads_settings, path


# What renames, links, or removes a folder: a kill in the midst of it is thought of in
# the room of storage alone. There too addresses of stores are told from paths.
MOVES = {"os": {"replace", "rename", "renames", "link"}, "shutil": {"rmtree", "move"}}


def keeping_house(tree):
  """Lines that move or remove folders, or look whether a text is an address."""
  for node in ast.walk(tree):
    found = False
    if isinstance(node, ast.Attribute):
      owner = getattr(node.value, "id", None)
      found = node.attr in MOVES.get(owner, ()) or node.attr in (
        "rename",
        "hardlink_to",
      )
    elif isinstance(node, ast.ImportFrom):
      found = {alias.name for alias in node.names} & MOVES.get(node.module, set())
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      # Of a path; that of a text takes two arguments, that of a record names.
      found = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      found = re.match("(gs|hf|s3)?://", node.value)  # in messages words come first
    if found:
      yield node.lineno


def test_only_storage_moves_files_and_knows_addresses():
  for path, room in modules():
    if room.split(".")[0] != "storage":
      found = list(keeping_house(ast.parse(path.read_text())))
      assert not found, f"{path.name}, lines {found}: call storage/ instead"


def test_what_moves_files_or_knows_addresses_is_found():
  for line in (
    "os.replace(a, b)",
    "shutil.rmtree(folder)",
    "from shutil import move",
    "path.rename(other)",
    "path.replace(other)",
    'text.startswith("gs://")',
    'f"hf://{name}"',
    '"://" in text',
  ):
    assert list(keeping_house(ast.parse(line))), line
  shown = 'text.replace("a", "b"); state.replace(step=1); "give gs://BUCKET/PATH"'
  assert not list(keeping_house(ast.parse(shown)))


def is_method_name(node):
  """Whether an expression is `method.name` or ends with `.method.name`."""
  if not (isinstance(node, ast.Attribute) and node.attr == "name"):
    return False
  return getattr(node.value, "attr", getattr(node.value, "id", None)) == "method"


def asking_which_method(tree, known):
  """Lines that compare or look up a method's name, or compare with one of `known`."""
  for node in ast.walk(tree):
    inside = list(ast.walk(node))
    if isinstance(node, ast.Compare | ast.MatchValue):
      texts = {part.value for part in inside if isinstance(part, ast.Constant)}
      if texts & known or any(map(is_method_name, inside)):
        yield node.lineno
    looks_up = isinstance(node, ast.Subscript | ast.Match) or (
      isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "get"
    )
    if looks_up and any(map(is_method_name, ast.iter_child_nodes(node))):
      yield node.lineno


def test_only_its_record_says_which_method_it_is():
  """A new method is a record and a sampler: code that asks for a name misses it."""
  for path, room in modules():
    # A denominator of the loss has the name of a method.
    known = set(METHODS) - (set(DENOMINATORS) if room == "likelihood.loss" else set())
    found = list(asking_which_method(ast.parse(path.read_text()), known))
    assert not found, f"{path.name}, lines {found}: ask config.method instead"


def test_what_asks_which_method_it_is_is_found():
  for line in (
    'method.name == "new"',
    "config.method.name in others",
    'name in ("set", "any_order")',
    "table[config.method.name]",
    "table.get(method.name, 1)",
    "match method.name:\n  case _: pass",
    'match name:\n  case "set": pass',
  ):
    assert list(asking_which_method(ast.parse(line), set(METHODS))), line
  shown = 'f"{method.name}: {table[0]}, {x == 1}"; {"method": config.method.name}'
  assert not list(asking_which_method(ast.parse(shown), set(METHODS)))


def test_every_method_has_a_sampler():
  assert {record.order for record in METHODS.values()} == set(SAMPLERS)
