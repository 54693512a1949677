"""The Hugging Face hub: repositories, read through its cache and written in one commit.

Only this file imports huggingface_hub, and only once an hf:// address was given: the
extra `hub` installs it. Where its server is, the token and the cache are its own
settings: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE.
"""

import contextlib
import glob
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from set_diffusion_jax.errors import DiskError, UserError, disk_reason
from set_diffusion_jax.inputs.names import shown

SCHEME = "hf://"
_LONGEST = 96  # characters of ORG and of NAME
_LONGEST_REVISION = 200
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_TIMEOUT = 10  # seconds that the server has to answer the first question
_CLIENTS = ("requests", "httpx", "httpx2")  # of the versions of huggingface_hub
_RIGHT = f"must be {SCHEME}ORG/NAME or {SCHEME}ORG/NAME@REVISION"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
# Of the server itself, or of the owner.
_NO_FILES = (".gitattributes", "README.md")


class Address(NamedTuple):
  """What an hf:// address says.

  Attributes:
    repository: as "ORG/NAME".
    revision: a branch, a tag or a commit; None: the main branch.
  """

  repository: str
  revision: str | None


def is_url(text: str | os.PathLike) -> bool:
  """Whether a text is meant as an address of the hub."""
  return isinstance(text, str) and text.startswith(SCHEME)


def address(url: str) -> Address:
  """The parts of hf://ORG/NAME[@REVISION].

  Raises:
    UserError: it is another one, or has a name that no repository or revision has.
  """
  repository, at, revision = url.removeprefix(SCHEME).partition("@")
  parts = repository.split("/")
  where = shown(url)
  if len(parts) != 2 or not all(map(_PART.fullmatch, parts)):
    why = "ORG and NAME have letters, digits and _.- inside"
    raise UserError(f"{where}: {_RIGHT}; {why}")
  if max(map(len, parts)) > _LONGEST:
    raise UserError(f"{where}: ORG and NAME must have at most {_LONGEST} characters")
  if "--" in repository or ".." in repository or repository.endswith(".git"):
    raise UserError(f"{where}: no repository has -- or .. in its name or ends in .git")
  if at and not _is_revision(revision):
    right = "REVISION must be a branch, a tag or a commit of 40 digits"
    raise UserError(f"{where}: {_RIGHT}; {right}")
  return Address(repository, revision if at else None)


def _is_revision(text: str) -> bool:
  whole = _REVISION.fullmatch(text) and len(text) <= _LONGEST_REVISION
  return bool(whole) and not any(bad in f"{text}/" for bad in ("..", "//", "./", "/."))


class Snapshot:
  """A commit of a repository: files of it are fetched into the hub's cache when asked.

  The server is asked once which commit a branch or tag stands for. Where it cannot be
  reached, or HF_HUB_OFFLINE is set, what the cache has is read.

  Args:
    url: hf://ORG/NAME[@REVISION].

  Raises:
    UserError: huggingface_hub is not installed, the server refuses, or it cannot be
      reached and the cache has no such commit.
  """

  def __init__(self, url: str):
    self._url, self._address = url, address(url)
    self._commit = self._address.revision
    self._hub = _library(url)
    self._unreached = _unreached(self._hub, url, self._address)

  def get(self, names: Iterable[str]) -> pathlib.Path:
    """The folder of the commit, with those of the named files that it has.

    A name is that of a file at the top of the repository. The first call settles the
    commit, and later ones are of the same.

    Raises:
      UserError: a file cannot be fetched, or the cache has no such commit.
    """
    with _explained(self._hub, self._url, self._address, self._unreached):
      folder = self._hub.snapshot_download(
        self._address.repository,
        revision=self._commit,
        allow_patterns=[glob.escape(name) for name in names],
        local_files_only=self._unreached is not None,
      )
    self._commit = os.path.basename(folder)
    return pathlib.Path(folder)

  @property
  def origin(self) -> str:
    """The address with the commit, which names the same bytes for ever."""
    return f"{SCHEME}{self._address.repository}@{self._commit}"


def check_destination(url: str) -> None:
  """UserError, before any work, for a repository that cannot take a new model.

  It must not be there, or hold nothing but what the server puts into a new one and a
  README.md, and there must be a token that the server knows.
  """
  place = _destination(url)
  hub = _library(url)
  with _explained(hub, url, place):
    api = hub.HfApi()
    with contextlib.suppress(hub.errors.RepositoryNotFoundError):
      _check_free(url, api.model_info(place.repository, timeout=_TIMEOUT))
    api.whoami()


def upload(url: str, folder: pathlib.Path) -> str:
  """Puts the files of a folder into a repository, in one commit.

  A repository that is not there is created, and is private. A README.md that is there
  is kept.

  Args:
    url: hf://ORG/NAME.
    folder: its files; nothing else of it is uploaded.

  Returns:
    The address with the new commit.

  Raises:
    UserError: the repository holds other files, or the server refuses; it then has
      none of the files.
  """
  place = _destination(url)
  hub = _library(url)
  with _explained(hub, url, place):
    api = hub.HfApi()
    api.create_repo(place.repository, private=True, exist_ok=True)
    info = api.model_info(place.repository, timeout=_TIMEOUT)
    there = _check_free(url, info)
    done = api.upload_folder(
      repo_id=place.repository,
      folder_path=folder,
      commit_message="Converted by set_diffusion_jax",
      ignore_patterns=sorted(there),
      parent_commit=info.sha,  # the server refuses if somebody was faster
    )
  return f"{SCHEME}{place.repository}@{done.oid}"


def _destination(url: str) -> Address:
  place = address(url)
  if place.revision is not None:
    raise UserError(f"{url}: must be {SCHEME}ORG/NAME without a revision, to write to")
  return place


def _check_free(url: str, info) -> set[str]:
  """The names of its files; UserError for more than a new repository has."""
  names = {file.rfilename for file in info.siblings or ()}
  other = sorted(names - set(_NO_FILES))
  if other:
    more = f" and {len(other) - 1} more" if len(other) > 1 else ""
    has = f"has {shown(other[0])}{more} already"
    raise UserError(f"{url}: {has}; give a new repository")
  return names


def _library(url: str):
  """huggingface_hub; UserError where it is not installed."""
  try:
    import huggingface_hub
    from huggingface_hub import constants, errors, utils  # noqa: F401  (by name)
  except ImportError:
    extra = "pip install 'set_diffusion_jax[hub]'"
    raise UserError(f"{url}: needs the package huggingface_hub; {extra}") from None
  if not sys.stderr.isatty():
    utils.disable_progress_bars()
  return huggingface_hub


def _unreached(hub, url: str, place: Address) -> str | None:
  """Why the server cannot be asked; None where it has answered.

  Raises:
    UserError: it refuses, or knows no such repository or revision.
  """
  if hub.constants.HF_HUB_OFFLINE:
    return "HF_HUB_OFFLINE is set"
  try:
    with _explained(hub, url, place):
      hub.HfApi().model_info(
        place.repository, revision=place.revision, timeout=_TIMEOUT
      )
  except _Silent as silent:
    print(f"{url}: {silent.reason}; the cache is read", file=sys.stderr)
    return silent.reason
  return None


class _Silent(UserError):
  """The server was not reached, or is out of order."""

  def __init__(self, url: str, reason: str):
    super().__init__(f"{url}: {reason}; try again later")
    self.reason = reason


@contextlib.contextmanager
def _explained(hub, url: str, place: Address, unreached: str | None = None) -> Iterator:
  """What goes wrong on the way to the server or there, as one line for the user.

  Args:
    hub: huggingface_hub.
    url: as it was given.
    place: what it says.
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
    terms = f"accept its terms at {server}/{place.repository}"
    return UserError(f"{url}: is a gated repository; {terms}, and {_LOG_IN}")
  if isinstance(error, errors.RepositoryNotFoundError):
    private = f"look at the name, or {_LOG_IN} if it is private"
    return UserError(f"{url}: {server} has no such repository; {private}")
  if isinstance(error, errors.RevisionNotFoundError):
    right = "give a branch, a tag or a commit that it has"
    return UserError(f"{url}: has no revision {place.revision or 'main'}; {right}")
  if isinstance(error, errors.HFValidationError):
    return UserError(f"{url}: {_RIGHT}")
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
    return _Silent(url, f"{server} was not reached ({type(error).__name__})")
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
    return _Silent(url, f"{server} is out of order or overloaded ({code})")
  return UserError(f"{url}: {server} answered with code {code}")
