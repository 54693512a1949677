"""What a store refuses, in one line that says what to do."""

import contextlib
from collections.abc import Iterator

from set_diffusion_jax.errors import DiskError, StoreError, UserError

PACKAGE = "gs:// needs a package: pip install 'set_diffusion_jax[gcs]'"
# Too many requests, or a service that is unwell: the same request may be taken later.
_PASSING = {"408", "429", *map(str, range(500, 505))}


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


@contextlib.contextmanager
def told(option: str) -> Iterator[None]:
  """The same for what a store refuses while a command writes there.

  Raises:
    DiskError: what lasts: credentials or permissions were taken away.
    StoreError: what may pass.
  """
  try:
    yield
  except (UserError, StoreError):
    raise
  except Exception as error:
    reason = refusal(error)
    if reason is None:
      raise
    kept = "steps that are whole are kept, and the same command goes on from there"
    kind = StoreError if passes(error) else DiskError
    raise kind(f"{option}: {reason}; {kept}") from error


def passes(error: BaseException) -> bool:
  """Whether a store may take later what it has refused with an error."""
  code = str(getattr(error, "code", ""))
  return code in _PASSING or (code == "" and _unreachable(error))


def _unreachable(error: BaseException) -> bool:
  kinds = {kind.__name__ for kind in type(error).__mro__}
  of_clients = kinds & {"ClientError", "RequestException"}
  return bool(of_clients) or isinstance(error, ConnectionError | TimeoutError)


def refusal(error: BaseException) -> str | None:
  """What an error says that a store, or the way there, refused; None for others.

  That a file is not there, or is there, is no refusal.
  """
  if isinstance(error, FileNotFoundError | FileExistsError):
    return None
  kinds = {kind.__name__ for kind in type(error).__mro__}
  text = str(error)
  if isinstance(error, ImportError) and "gcsfs" in text:
    return PACKAGE
  code = str(getattr(error, "code", ""))
  login = "gcloud auth application-default login, or a service account"
  if "GoogleAuthError" in kinds:
    return f"no credentials that Google takes were found: {login}"
  if code == "401" or "UNAUTHENTICATED" in text:
    return f"the store does not know these credentials (401): {login}"
  denied = isinstance(error, OSError) and text.startswith("Forbidden")
  if code == "403" or denied or "PERMISSION_DENIED" in text:
    roles = "the role objectViewer reads, objectAdmin writes"
    return f"these credentials may not do this (403): {roles}"
  if "HttpError" in kinds:
    return f"the store answered {text.splitlines()[0][:160] if text else code}"
  if _unreachable(error):
    why = text.splitlines()[0][:160] if text else "no answer in time"
    return f"the store cannot be reached ({why}): is there a network?"
  return None
