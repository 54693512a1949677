"""Pickles followed by a table: plain containers, and what stands for anything else.

A pickle is a program. Here its operations are followed one by one, with a budget of
memory; every name that it asks for is looked up, and none of them runs code of the file
or of an installed package.
"""

import collections
import pickletools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from set_diffusion_jax.inputs.names import shown

_LARGEST = 200 * 2**20  # bytes of objects that a program may make, about
_OBJECT, _CONTAINER = 64, 256  # bytes of one
_LONGEST_NUMBER = 4096  # bits
_LONGEST_KEY = 10_000  # characters


class Skipped:
  """Stands where a listed object of plain data was; it holds nothing."""


class Refused(Exception):
  """A name that is not listed."""


class Names(NamedTuple):
  """What a program may ask for.

  Attributes:
    values: what stands for a name, by "module name".
    calls: what makes a value from arguments, by "module name".
    skipped: whether a name is one of plain data, which becomes a `Skipped`.
  """

  values: Mapping[str, object]
  calls: Mapping[str, Callable]
  skipped: Callable[[str, str], bool]


class _Called:
  """A name that may be called."""

  def __init__(self, make: Callable):
    self.make = make


def follow(program: bytes, names: Names, persistent: Callable[[object], object]):
  """The object that a pickle describes.

  Args:
    program: the pickle, of any protocol.
    names: what it may ask for.
    persistent: the value of a persistent id.

  Raises:
    Refused: it asks for another name; the message is "module.name".
    Exception: whatever a damaged program runs into.
  """
  return _Machine(program, names, persistent).run()


class _Machine:
  """Stack, memo and budget of a program that is being followed."""

  def __init__(self, program: bytes, names: Names, persistent: Callable):
    self._program, self._names, self._persistent = program, names, persistent
    self._stack: list = []
    self._marked: list[list] = []  # stacks below the marks
    self._memo: dict[int, object] = {}
    self._spent = 0

  def run(self):
    """Follows the program up to its STOP."""
    for operation, argument, _ in pickletools.genops(self._program):
      name = operation.name
      self._spend(_OBJECT)
      if name == "STOP":
        return self._stack.pop()
      if name in _CONSTANTS:
        self._stack.append(_CONSTANTS[name])
      elif name in _LITERALS:
        if isinstance(argument, int) and argument.bit_length() > _LONGEST_NUMBER:
          raise ValueError(f"a number has more than {_LONGEST_NUMBER} bits")
        self._stack.append(argument)
      elif name in _BYTE_TEXTS:  # of Python 2, whose texts were bytes
        self._stack.append(argument.encode("latin-1").decode())
      elif name not in _NOTHING:
        step = getattr(self, f"_{name.lower()}", None)
        if step is None:
          raise ValueError(f"operation {name} is refused")
        step(argument)

  def _spend(self, size: int) -> None:
    self._spent += size
    if self._spent > _LARGEST:
      raise ValueError(f"it makes more than {_LARGEST} bytes of objects")

  def _to_mark(self) -> list:
    items, self._stack = self._stack, self._marked.pop()
    return items

  def _put(self, number: int | None) -> None:
    number = len(self._memo) if number is None else number
    if number > len(self._program):
      raise ValueError(f"memo {number} in {len(self._program)} bytes")
    self._spend(_OBJECT)
    self._memo[number] = self._stack[-1]

  _binput = _long_binput = _memoize = _put

  def _get(self, number: int) -> None:
    self._stack.append(self._memo[number])

  _binget = _long_binget = _get

  def _mark(self, _) -> None:
    self._marked.append(self._stack)
    self._stack = []

  def _pop(self, _) -> None:
    if self._stack:
      self._stack.pop()
    else:
      self._to_mark()

  def _pop_mark(self, _) -> None:
    self._to_mark()

  def _dup(self, _) -> None:
    self._stack.append(self._stack[-1])

  def _container(self, value) -> None:
    self._spend(_CONTAINER)
    self._stack.append(value)

  def _empty_list(self, _) -> None:
    self._container([])

  def _empty_dict(self, _) -> None:
    self._container({})

  def _empty_set(self, _) -> None:
    self._container(Skipped())  # no set holds weights

  def _list(self, _) -> None:
    self._container(self._to_mark())

  def _dict(self, _) -> None:
    items = self._to_mark()
    self._container({})
    self._set(items)

  def _tuple(self, _) -> None:
    self._container(tuple(self._to_mark()))

  def _frozenset(self, _) -> None:
    self._to_mark()
    self._container(Skipped())

  def _some(self, count: int) -> None:
    items = tuple(self._stack[-count:])
    if len(items) < count:
      raise IndexError("the stack is empty")
    del self._stack[-count:]
    self._stack.append(items)

  def _tuple1(self, _) -> None:
    self._some(1)

  def _tuple2(self, _) -> None:
    self._some(2)

  def _tuple3(self, _) -> None:
    self._some(3)

  def _extend(self, items: list) -> None:
    """Adds items to the list on the stack."""
    there = self._stack[-1]
    if not isinstance(there, list | Skipped):
      raise TypeError(f"a {type(there).__name__} is no list")
    if isinstance(there, list):
      there.extend(items)

  def _append(self, _) -> None:
    self._extend([self._stack.pop()])

  def _appends(self, _) -> None:
    self._extend(self._to_mark())

  def _additems(self, _) -> None:
    self._to_mark()

  def _set(self, items: list) -> None:
    """Adds keys and values, in turn, to the dictionary on the stack."""
    there = self._stack[-1]
    if not isinstance(there, dict | Skipped) or len(items) % 2:
      raise TypeError(f"a {type(there).__name__} is no dictionary")
    if isinstance(there, dict):
      for key, value in zip(items[::2], items[1::2], strict=True):
        there[_checked_key(key)] = value

  def _setitem(self, _) -> None:
    value, key = self._stack.pop(), self._stack.pop()
    self._set([key, value])

  def _setitems(self, _) -> None:
    self._set(self._to_mark())

  def _named(self, module: str, name: str) -> None:
    known = f"{module} {name}"
    if known in self._names.values:
      self._stack.append(self._names.values[known])
    elif known in self._names.calls:
      self._stack.append(_Called(self._names.calls[known]))
    elif self._names.skipped(module, name):
      self._stack.append(_Called(lambda *_: Skipped()))
    else:
      raise Refused(f"{shown(module)}.{shown(name)}")

  def _global(self, argument: str) -> None:
    self._named(*argument.split(" ", 1))

  def _stack_global(self, _) -> None:
    name, module = self._stack.pop(), self._stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
      raise TypeError("a name must be a text")
    self._named(module, name)

  def _reduce(self, _) -> None:
    arguments, called = self._stack.pop(), self._stack.pop()
    if not isinstance(called, _Called) or not isinstance(arguments, tuple):
      raise TypeError(f"a {type(called).__name__} cannot be called")
    sizes = (len(a) for a in arguments if isinstance(a, tuple | list | dict))
    self._spend(_CONTAINER + _OBJECT * sum(sizes))
    self._stack.append(called.make(*arguments))

  _newobj = _reduce

  def _newobj_ex(self, _) -> None:
    self._stack.pop()  # arguments by name
    self._reduce(None)

  def _build(self, _) -> None:
    self._stack.pop()  # a state: of what is skipped, or attributes of an OrderedDict
    self._stack[-1]

  def _binpersid(self, _) -> None:
    self._spend(_CONTAINER)
    self._stack.append(self._persistent(self._stack.pop()))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NOTHING = ("PROTO", "FRAME")
_BYTE_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING")
_LITERALS = frozenset(
  "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
  "BINUNICODE8 SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES BYTEARRAY8".split()
)
_PLAIN_KEYS = (str, bytes, int, float, bool, type(None), Skipped, _Called)


def _checked_key(key):
  """A key of a dictionary; TypeError for one that takes long to compare.

  Tuples in tuples can be described in few bytes, but not compared in short time.
  """
  parts = key if isinstance(key, tuple) else (key,)
  short = len(parts) <= 64 and all(
    len(part) <= _LONGEST_KEY for part in parts if isinstance(part, str | bytes)
  )
  if not short or not all(isinstance(part, _PLAIN_KEYS) for part in parts):
    raise TypeError(f"a {type(key).__name__} is too long or deep for a key")
  return key


def ordered(pairs=(), *_) -> dict:
  """What stands for an OrderedDict: a dictionary of pairs."""
  found = collections.OrderedDict()
  for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
    found[_checked_key(key)] = value
  return found
