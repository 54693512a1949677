"""Collectives of an optimised HLO module, with how often each one runs.

What makes counting go wrong, and what is done about it:
- text of kernels inside the module can look like its structure: only lines that have
  the form of a computation's head or of an instruction are read;
- the body of a loop is written once: its trip count is taken from the loop's condition;
- a collective that overlaps with compute appears in several fused computations: it is
  one for each channel, run as often as its most frequent appearance;
- a reduce-scatter can be an all-reduce in a computation that is named after it;
- between TPU slices there are sends to the runtime ("megascale"), which reduces.
Whatever was not reached from the entry is reported, so that nothing is lost silently.
"""

import collections
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"[\s)}\]]([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
  r"(?:calls|to_apply|condition|body|true_computation|false_computation"
  r"|called_computations|branch_computations|comparator|select|scatter)="
  r"(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(-start)?$")


class Instruction(NamedTuple):
  """One line of a computation: its result's type, operation and the whole text."""

  name: str
  result: str
  operation: str
  text: str


class Collective(NamedTuple):
  """One collective of the step.

  Attributes:
    kind: of KINDS.
    bytes: of the whole array that is gathered, reduced or sent, on one chip.
    groups: int [groups, size], logical devices that take part together.
    times: how often it runs in a step.
    loops: whether a loop around it has a trip count that could not be read.
  """

  kind: str
  bytes: int
  groups: np.ndarray
  times: int
  loops: bool

  @property
  def sent(self) -> float:
    """Bytes that a chip sends in one run, by the usual ring algorithms."""
    size = self.groups.shape[-1]
    share = (size - 1) / size
    if self.kind in ("collective-permute", "collective-broadcast"):
      return float(self.bytes)
    return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


class Module(NamedTuple):
  """The computations of an HLO module by name, and its entry."""

  computations: dict[str, list[Instruction]]
  entry: str


def parse(text: str) -> Module:
  """Reads the text of a module."""
  computations, entry, current = {}, "", None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      operation = _OPERATION.search(found[2])
      if operation:
        result = found[2][: operation.start(1)]
        current.append(Instruction(found[1], result, operation[1], found[2]))
  return Module(computations, entry)


def executions(module: Module) -> tuple[dict[str, int], set[str]]:
  """How often each computation runs in one run of the module.

  Returns:
    Times by computation (the sum over its callers; what is missing is never called),
    and the computations within loops whose trip count is unknown, counted once.
  """
  # Callers come after what they call, so the reverse of the text's order is one in
  # which every caller is done before its callees; HLO has no recursion.
  times: dict[str, int] = collections.Counter({module.entry: 1})
  unknown: set[str] = set()
  for name in reversed(list(module.computations)):
    if not times[name]:
      continue
    for instruction in module.computations[name]:
      trips = 1
      if instruction.operation == "while":
        trips = trip_count(module, instruction)
      for called in _called(instruction):
        times[called] += times[name] * (trips or 1)
        if trips is None or name in unknown:
          unknown.add(called)
  return {name: n for name, n in times.items() if n}, unknown


def trip_count(module: Module, loop: Instruction) -> int | None:
  """Of a while loop that counts from 0; None where its condition does not say."""
  if known := re.search(r'known_trip_count"?:?=?\{"?n"?[:=]"?(\d+)', loop.text):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", loop.text)[1]
  body = module.computations.get(condition, [])
  bounds = {
    i.name: int(number[1])
    for i in body
    if i.operation == "constant" and (number := re.search(r"constant\((\d+)\)", i.text))
  }
  compares = [i for i in body if i.operation == "compare" and "direction=LT" in i.text]
  if len(compares) == 1:
    used = [
      bounds[n] for n in re.findall(r"%([\w.\-]+)", compares[0].text) if n in bounds
    ]
    return used[0] if len(used) == 1 else None
  return next(iter(bounds.values())) if len(bounds) == 1 else None


def _called(instruction: Instruction) -> list[str]:
  found = []
  for names in _CALLED.findall(instruction.text):
    found += re.findall(r"[\w.\-]+", names)
  return found


def collectives(text: str) -> tuple[list[Collective], list[str]]:
  """All collectives of a module that move bytes, and what is wrong with the count.

  Returns:
    The collectives, and a line for each guard that failed (none: the count is whole).
  """
  module = parse(text)
  times, unknown = executions(module)
  best: dict[tuple, Collective] = {}
  unreached = []
  for name, body in module.computations.items():
    for instruction in body:
      match = _COLLECTIVE.match(instruction.operation)
      if not match:
        match = _between_slices(instruction)
      if not match:
        continue
      channel = re.search(r"channel_id=(\d+)", instruction.text)
      key = (match[1], channel[1] if channel else f"{name}/{instruction.name}")
      if not times.get(name):
        unreached.append(key)
        continue
      one = _collective(match[1], instruction, name, times[name], name in unknown)
      if key not in best or one.times > best[key].times:
        best[key] = one
  problems = [
    f"{kind} {c} is in no computation that runs"
    for kind, c in unreached
    if (kind, c) not in best
  ]
  lines = set(
    re.findall(rf" ({'|'.join(KINDS)})(?:-start)?\(.*?channel_id=(\d+)", text)
  )
  if missing := lines - set(best) - set(unreached):
    problems.append(f"{len(missing)} collectives were not read")
  if any(c.loops for c in best.values()):
    problems.append("a loop's trip count is unknown; its body is counted once")
  sends = re.findall(r" send\(.*?channel_id=(\d+).*?megascale", text)
  if missing := {("send", c) for c in sends} - set(best) - set(unreached):
    problems.append(f"{len(missing)} sends between slices were not read")
  moving = [c for c in best.values() if c.groups.shape[-1] > 1]
  return moving, problems


def _between_slices(instruction: Instruction) -> re.Match | None:
  network = "_xla_megascale_transfer_type" in instruction.text
  return re.match(r"(send)$", instruction.operation) if network else None


def _collective(kind, instruction, computation, times, loops) -> Collective:
  sizes = [_bytes(*array) for array in _ARRAY.findall(instruction.result)]
  if kind == "send":
    found = re.search(r'transfer_type="(\w+)"', instruction.text)[1]
    kind = found.lower().replace("_", "-")
    return Collective(kind, sizes[0], _slice_groups(instruction.text), times, loops)
  started = instruction.operation.endswith("-start")
  if started and kind in ("all-gather", "reduce-scatter"):
    size = sum(sizes[len(sizes) // 2 :])  # (inputs, outputs)
  elif started and kind == "collective-permute":
    size = sizes[0]
  else:
    size = sum(sizes)
  groups = replica_groups(instruction.text)
  if kind == "reduce-scatter":
    size *= groups.shape[-1]  # its result is one part
  if kind == "all-reduce" and "all-reduce-scatter" in computation:
    kind = "reduce-scatter"
  return Collective(kind, size, groups, times, loops)


def _bytes(kind: str, shape: str) -> int:
  bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
  return math.prod(int(n) for n in shape.split(",") if n) * max(bits, 8) // 8


def replica_groups(text: str) -> np.ndarray:
  """Logical devices that take part together, int [groups, size], in any notation."""
  if pairs := re.search(r"source_target_pairs=\{((?:\{[\d,]*\},?)*)\}", text):
    numbers = [int(n) for n in re.findall(r"\d+", pairs[1])]
    return np.array(numbers).reshape(-1, 2)
  if mesh := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*?)\))? \{([^}]*)\}", text
  ):
    axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
    shape = [int(size) for _, size in axes]
    devices = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(shape))
    names = [name for name, _ in axes]
    within = [names.index(name) for name in re.findall(r"\w+", mesh[3])]
    rest = [i for i in range(len(names)) if i not in within]
    size = math.prod(shape[i] for i in within)
    return devices.reshape(shape).transpose(*rest, *within).reshape(-1, size)
  if iota := re.search(
    r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text
  ):
    return _iota(iota[1])
  if plain := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
    rows = re.findall(r"\{([\d,]*)\}", plain[1])
    return np.array([[int(n) for n in row.split(",")] for row in rows if row] or [[0]])
  return np.array([[0]])


def _slice_groups(text: str) -> np.ndarray:
  """Chips with the same place in each slice, from a target like `{1,2}x{0:3}`."""

  def members(part: str) -> int:
    ends = [[int(n) for n in run.split(":")] for run in part.split(",")]
    return sum(run[-1] - run[0] + 1 for run in ends)

  target = re.search(r'megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"', text)
  slices, chips = members(target[1]), members(target[2])
  return np.arange(slices * chips).reshape(slices, chips).T


def _iota(text: str) -> np.ndarray:
  """`[4,4]<=[16]T(1,0)`, or `[4,4]T(1,0)`: numbers in a shape, transposed, reshaped."""
  numbers = lambda part: [int(n) for n in re.findall(r"\d+", part)]
  order = re.search(r"T\(([\d,]+)\)", text)
  shape = numbers(re.search(r"\[([\d,]+)\](?:T|$)", text)[1])
  found = np.arange(math.prod(shape)).reshape(shape)
  if order:
    found = found.transpose(numbers(order[1]))
  if "<=" in text:
    found = found.reshape(numbers(text.split("<=")[0]))
  return found
