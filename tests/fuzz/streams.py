"""What a run writes to the standard streams."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


class Streams:
  """What a run writes to the standard streams, also from C++ and Rust."""

  def __init__(self):
    # Closed by `captured`.
    self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
    self.out = self.err = ""

  def read(self) -> None:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(ValueError, OSError):
        stream.flush()
    texts = []
    for file in self.files:
      file.seek(0)
      texts.append(file.read().decode("utf-8", "surrogateescape"))
    self.out, self.err = texts


@contextlib.contextmanager
def captured() -> Iterator[Streams]:
  streams, python = Streams(), (sys.stdout, sys.stderr)
  for stream in python:
    stream.flush()
  kept = [os.dup(number) for number in (1, 2)]
  opened = []
  try:
    for number, file, errors in zip(
      (1, 2), streams.files, ("strict", "backslashreplace"), strict=True
    ):
      os.dup2(file.fileno(), number)
      opened.append(
        open(number, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
      )
    sys.stdout, sys.stderr = opened
    yield streams
  finally:
    sys.stdout, sys.stderr = python
    for stream in opened:
      with contextlib.suppress(ValueError, OSError):
        stream.close()
    for number, copy in zip((1, 2), kept, strict=True):
      os.dup2(copy, number)
      os.close(copy)
    for file in streams.files:
      file.close()
