"""Text from outside: bytes to characters by one rule, whoever reads them.

A file is UTF-8, whatever the locale says; a byte-order mark before it is left out. A
line ends at a newline and nowhere else: U+2028, form feeds and the like are text. A
carriage return right before a newline belongs to the line's end and goes; any other one
is text. A file whose name ends in .gz is read unpacked.
"""

import contextlib
import dataclasses
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from set_diffusion_jax.errors import UserError

# A packed file may unpack to so many times its size, or to so many bytes: text seldom
# packs to less than a tenth, and what a few bytes unpack to must not fill the memory.
UNPACKED_TIMES, UNPACKED_BYTES = 100, 16 * 2**20
STREAM_BYTES = 128 * 2**20  # of a pipe or a device, whose size is not known before
_CHANGE = 'convert it, such as with "iconv -f {0} -t UTF-8"'
_MARKS = (  # UTF-32 first: its little-endian mark starts with that of UTF-16
  (b"\xff\xfe\0\0", "UTF-32"),
  (b"\0\0\xfe\xff", "UTF-32"),
  (b"\xff\xfe", "UTF-16"),
  (b"\xfe\xff", "UTF-16"),
)
_POINTERS = (  # of Git LFS, which had another name once
  b"version https://git-lfs.github.com/",
  b"version https://hawser.github.com/",
)


@dataclasses.dataclass
class Found:
  """What reading a file changed, or found that may be a mistake.

  Attributes:
    marks: byte-order marks that were left out.
    line_ends: ends of lines that were a carriage return and a newline.
    returns: carriage returns before no newline, which were kept.
  """

  marks: int = 0
  line_ends: int = 0
  returns: int = 0

  @classmethod
  def of(cls, table: dict) -> "Found":
    """From the counts of a table that may have other entries besides."""
    return cls(**{f.name: table.get(f.name, 0) for f in dataclasses.fields(cls)})

  def __add__(self, other: "Found") -> "Found":
    mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
    return Found(*(a + b for a, b in zip(mine, others, strict=True)))

  def counts(self) -> dict[str, int]:
    """Those that are not zero, by name."""
    return {name: count for name, count in vars(self).items() if count}

  def line(self) -> str:
    """In words; empty if there is nothing to say."""
    parts = (
      (self.marks, "byte-order mark(s) left out"),
      (self.line_ends, "line end(s) of CR LF read as newlines"),
      (self.returns, "carriage return(s) that end no line kept as text"),
    )
    return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def read_lines(
  source: pathlib.Path | BinaryIO, where: str, found: Found | None = None
) -> Iterator[str]:
  """The lines of a file, each with its newline; the last one may have none.

  Args:
    source: a file, which may be packed, or a stream of bytes.
    where: names it in messages.
    found: is added to.

  Raises:
    UserError: it cannot be read, is not UTF-8, or unpacks to far more than its size.
  """
  place = 0
  try:
    with _opened(source, where) as (file, most):
      while line := file.readline(most - place + 1):
        if not place:
          _check_start(line, where)
        start, place = place, place + len(line)
        if place > most:
          raise UserError(
            f"{where}: holds more than {most:,} bytes, the most for a pipe or for a "
            "packed file of its size"
          )
        try:
          text = line.decode()
        except UnicodeDecodeError as error:
          at = start + error.start
          raise UserError(f"{where}: is not UTF-8 at byte {at}") from None
        if not start and text[0] == "\ufeff":
          text = text[1:]
          if found is not None:
            found.marks += 1
        yield _ended(text, found) if "\r" in text else text
  except (OSError, EOFError, ValueError, zlib.error) as error:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    raise UserError(f"{where}: {reason}") from None


def _ended(line: str, found: Found | None) -> str:
  """A line that has carriage returns, its end a newline."""
  crlf = line.endswith("\r\n")
  line = line[:-2] + "\n" if crlf else line
  if found is not None:
    found.line_ends += crlf
    found.returns += line.count("\r")
  return line


@contextlib.contextmanager
def _opened(
  source: pathlib.Path | BinaryIO, where: str
) -> Iterator[tuple[BinaryIO, int]]:
  """A file, unpacked if its name says so, and how many bytes of it are read at most."""
  if not isinstance(source, pathlib.Path):
    yield source, STREAM_BYTES
    return
  with source.open("rb") as file:
    check_pointer(file.peek(64), where)
    regular = source.is_file()
    size = os.fstat(file.fileno()).st_size
    if source.suffix == ".gz":
      most = max(UNPACKED_BYTES, UNPACKED_TIMES * size)
      with io.BufferedReader(gzip.GzipFile(fileobj=file)) as unpacked:
        yield unpacked, most if regular else STREAM_BYTES
    else:
      yield file, 2**62 if regular else STREAM_BYTES


def check_pointer(begin: bytes, where: str) -> None:
  """UserError if a file's first bytes are those of a Git LFS pointer."""
  if begin.startswith(_POINTERS):
    raise UserError(
      f"{where}: is a git-lfs pointer, not the file itself; get it with git lfs pull"
    )


def _check_start(line: bytes, where: str) -> None:
  """UserError where the first bytes are those of another encoding."""
  for mark, name in _MARKS:
    if line.startswith(mark):
      raise UserError(f"{where}: is {name}, must be UTF-8; {_CHANGE.format(name)}")
  head = line[:4]
  zero = [byte == 0 for byte in head]
  if zero in ([False, True, False, True], [True, False, True, False]):
    name = "UTF-16LE" if zero[1] else "UTF-16BE"
    change = _CHANGE.format(name)
    raise UserError(f"{where}: seems to be {name}, must be UTF-8; {change}")
  if head.startswith(b"\x1f\x8b"):
    raise UserError(f"{where}: is packed by gzip, its name must end in .gz")


def utf8(text: str, where: str | None = None) -> bytes:
  """A text's bytes.

  Args:
    text: from outside.
    where: names it in messages; None: its first characters do.

  Raises:
    UserError: it has half a character, a surrogate: that is what bytes that are no
      UTF-8 become on a command line, and what JSON can spell out.
  """
  try:
    return text.encode()
  except UnicodeEncodeError as error:
    where = f"text {text[:20]!r}" if where is None else where
    raise UserError(
      f"{where}: half a character (a surrogate) at {error.start}"
    ) from None


def argument_text(text: str, where: str) -> str:
  """The text of a command line's argument: its bytes are UTF-8, whatever the locale.

  Raises:
    UserError: they are not.
  """
  try:
    return utf8(text).decode()
  except UserError:  # bytes that the locale could not read stand as surrogates
    try:
      return os.fsencode(text).decode()
    except UnicodeError:
      raise UserError(f"{where}: {text[:40]!r} is not UTF-8") from None
