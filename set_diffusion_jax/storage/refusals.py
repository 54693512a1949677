"""What a store refuses, in one line that says what to do."""

import contextlib
from collections.abc import Iterator

from set_diffusion_jax.errors import UserError


@contextlib.contextmanager
def explained(option: str) -> Iterator[None]:
  """Turns what a store refuses into one line that says what to do.

  Args:
    option: with its value, such as "--workdir=gs://bucket/run".

  Raises:
    UserError: of a package, credentials, permissions, a bucket or the network.
  """
  try:
    yield
  except UserError as error:
    where = "" if option in str(error) else f"{option}: "
    raise UserError(f"{where}{error}") from None
  except Exception as error:
    reason = refusal(error)
    if reason is None:
      raise
    raise UserError(f"{option}: {reason}") from error


def refusal(error: BaseException) -> str | None:
  """What an error says that a store, or the way there, refused; None for others.

  That a file is not there, or is there, is no refusal.
  """
  if isinstance(error, FileNotFoundError | FileExistsError):
    return None
  kinds = {kind.__name__ for kind in type(error).__mro__}
  text = str(error)
  if isinstance(error, ImportError) and "gcsfs" in text:
    return "gs:// needs a package: pip install 'set_diffusion_jax[gcs]'"
  code = str(getattr(error, "code", ""))
  login = "gcloud auth application-default login, or a service account"
  if "GoogleAuthError" in kinds:
    return f"no credentials that Google takes were found: {login}"
  if code == "401" or "UNAUTHENTICATED" in text:
    return f"the store does not know these credentials (401): {login}"
  denied = isinstance(error, OSError) and text.startswith("Forbidden")
  if code == "403" or denied or "PERMISSION_DENIED" in text:
    return "these credentials may not do this (403): give them the role objectAdmin"
  if "HttpError" in kinds:
    return f"the store answered {text.splitlines()[0][:160] if text else code}"
  if "ClientError" in kinds or isinstance(error, ConnectionError | TimeoutError):
    why = text.splitlines()[0][:160] if text else "no answer in time"
    return f"the store cannot be reached ({why}): is there a network?"
  return None
