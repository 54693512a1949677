"""Arrays from outside: files of numpy, of no more bytes than they have."""

import io
import pathlib

import numpy as np

from set_diffusion_jax.errors import UserError


def read_array(path: pathlib.Path | bytes, where: str) -> np.ndarray:
  """The numbers of a .npy file, which stay on disk until they are used.

  Args:
    path: of the file; or all that it holds, if it is not on a disk.
    where: names it in messages.

  Raises:
    UserError: it cannot be read, holds something else, or less than its header says.
  """
  right = "give a .npy file of numbers"
  try:
    if isinstance(path, bytes):
      array = np.load(io.BytesIO(path), allow_pickle=False)
    else:
      if path.exists() and not path.is_file():
        raise UserError(f"{where}: is no regular file; {right}")
      array = np.load(path, mmap_mode="r", allow_pickle=False)
  except OSError as error:
    raise UserError(f"{where}: {error.strerror or 'cannot be read'}; {right}") from None
  except UserError:
    raise
  except Exception:  # numpy's parser of headers fails in many ways
    raise UserError(
      f"{where}: is damaged or not an array of numbers; {right}"
    ) from None
  if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
    raise UserError(f"{where}: is not an array of numbers; {right}")
  return array
