"""What the Hugging Face hub refuses, in one line that says what to do."""

import contextlib
from collections.abc import Iterator

from set_diffusion_jax.errors import DiskError, UserError, disk_reason

RIGHT = "must be hf://ORG/NAME or hf://ORG/NAME@REVISION"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_CLIENTS = ("requests", "httpx", "httpx2")  # of the versions of huggingface_hub


class Silent(UserError):
  """The server was not reached, or is out of order."""

  def __init__(self, url: str, reason: str):
    super().__init__(f"{url}: {reason}; try again later")
    self.reason = reason


@contextlib.contextmanager
def explained(hub, url: str, place, unreached: str | None = None) -> Iterator:
  """What goes wrong on the way to the server or there, as one line for the user.

  Args:
    hub: huggingface_hub.
    url: as it was given.
    place: what it says, with its `page` and `revision`.
    unreached: why the server is not asked at all.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    server = hub.constants.ENDPOINT
    raise _mistake(hub, error, url, place, unreached, server) from None


def _mistake(hub, error, url, place, unreached, server) -> UserError:
  """The line for an error of huggingface_hub; any other error is raised again."""
  errors = hub.errors
  if type(error) is RuntimeError and error.__cause__ is not None:  # of an upload
    return _mistake(hub, error.__cause__, url, place, unreached, server)
  if isinstance(error, errors.GatedRepoError):
    terms = f"accept its terms at {server}/{place.page}"
    return UserError(f"{url}: is a gated repository; {terms}, and {_LOG_IN}")
  if isinstance(error, errors.RepositoryNotFoundError):
    private = f"look at the name, or {_LOG_IN} if it is private"
    return UserError(f"{url}: {server} has no such repository; {private}")
  if isinstance(error, errors.RevisionNotFoundError):
    right = "give a branch, a tag or a commit that it has"
    return UserError(f"{url}: has no revision {place.revision or 'main'}; {right}")
  if isinstance(error, errors.HFValidationError):
    return UserError(f"{url}: {RIGHT}")
  if isinstance(error, errors.LocalTokenNotFoundError):
    return UserError(f"{url}: there is no token to write with; {_LOG_IN}")
  if isinstance(error, errors.LocalEntryNotFoundError):
    why = unreached or f"{server} does not answer"
    right = "fetch it once while the hub can be reached"
    return UserError(f"{url}: is not whole in the hub's cache, and {why}; {right}")
  if isinstance(error, errors.HfHubHTTPError):
    return _answer(url, server, error.response.status_code)
  if isinstance(error, errors.OfflineModeIsEnabled):
    return UserError(f"{url}: HF_HUB_OFFLINE is set; it must not be, to write there")
  return _fault(hub, error, url, server)


def _fault(hub, error, url, server) -> UserError:
  """The same, of a disk and of the way to the server."""
  reason = disk_reason(error)
  if reason is not None:
    return DiskError(f"{url}: the hub's cache, {hub.constants.HF_HUB_CACHE}: {reason}")
  if isinstance(error, OSError) and error.filename is not None:
    return UserError(f"{url}: {error.filename}: {error.strerror}")
  if type(error).__module__.split(".")[0] in _CLIENTS:
    return Silent(url, f"{server} was not reached ({type(error).__name__})")
  raise error


def _answer(url: str, server: str, code: int) -> UserError:
  """What a refusal of the server means, by its HTTP code."""
  if code == 401:
    return UserError(f"{url}: {server} does not accept the token (401); {_LOG_IN}")
  if code == 403:
    right = "use a token that has the right to do this"
    return UserError(f"{url}: {server} forbids it (403); {right}")
  if code in (409, 412):
    return UserError(f"{url}: was changed by somebody else meanwhile; look what it has")
  if code == 429 or code >= 500:
    return Silent(url, f"{server} is out of order or overloaded ({code})")
  return UserError(f"{url}: {server} answered with code {code}")
