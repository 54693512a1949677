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
from collections.abc import Iterable
from typing import NamedTuple

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs.names import shown
from set_diffusion_jax.storage.hub_refusals import RIGHT, Silent, explained

SCHEME = "hf://"
_LONGEST = 96  # characters of ORG and of NAME
_LONGEST_REVISION = 200
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_TIMEOUT = 10  # seconds that the server has to answer the first question
# Of the server itself, or of the owner.
_NO_FILES = (".gitattributes", "README.md")


class Address(NamedTuple):
  """What an hf:// address says.

  Attributes:
    repository: as "ORG/NAME".
    revision: a branch, a tag or a commit; None: the main branch.
    kind: "model" or "dataset".
  """

  repository: str
  revision: str | None
  kind: str = "model"

  @property
  def page(self) -> str:
    """Where people read about it, below the server."""
    return self.repository if self.kind == "model" else f"datasets/{self.repository}"


def is_url(text: str | os.PathLike) -> bool:
  """Whether a text is meant as an address of the hub."""
  return isinstance(text, str) and text.startswith(SCHEME)


def address(url: str) -> Address:
  """The parts of hf://ORG/NAME[@REVISION].

  Raises:
    UserError: it is another one, or has a name that no repository or revision has.
  """
  return named(url.removeprefix(SCHEME), shown(url), RIGHT)


def named(text: str, where: str, right: str) -> Address:
  """The model that ORG/NAME[@REVISION] names.

  Args:
    text: what is behind the scheme.
    where: the address in messages.
    right: what it must be.

  Raises:
    UserError: it is another text, or has a name that no repository or revision has.
  """
  repository, at, revision = text.partition("@")
  parts = repository.split("/")
  if len(parts) != 2 or not all(map(_PART.fullmatch, parts)):
    why = "ORG and NAME have letters, digits and _.- inside"
    raise UserError(f"{where}: {right}; {why}")
  if max(map(len, parts)) > _LONGEST:
    raise UserError(f"{where}: ORG and NAME must have at most {_LONGEST} characters")
  if "--" in repository or ".." in repository or repository.endswith(".git"):
    raise UserError(f"{where}: no repository has -- or .. in its name or ends in .git")
  if at and not _is_revision(revision):
    why = "REVISION must be a branch, a tag or a commit of 40 digits"
    raise UserError(f"{where}: {right}; {why}")
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
    self._hub = library(url)
    _, self._unreached = asked(self._hub, url, self._address)

  def get(self, names: Iterable[str], most: int | None = None) -> pathlib.Path:
    """The folder of the commit, with those of the named files that it has.

    A name is that of a file at the top of the repository. The first call settles the
    commit, and later ones are of the same.

    Args:
      names: of files.
      most: bytes that each may have; None: as many as it has.

    Raises:
      UserError: a file has more bytes or cannot be fetched, or the cache has no such
        commit.
    """
    names = list(names)
    with explained(self._hub, self._url, self._address, self._unreached):
      if most is not None and self._unreached is None:
        self._check_sizes(names, most)
      folder = self._hub.snapshot_download(
        self._address.repository,
        revision=self._commit,
        allow_patterns=[glob.escape(name) for name in names],
        local_files_only=self._unreached is not None,
      )
    self._commit = os.path.basename(folder)
    return pathlib.Path(folder)

  def _check_sizes(self, names: list[str], most: int) -> None:
    found = self._hub.HfApi().get_paths_info(
      self._address.repository, names, revision=self._commit
    )
    for file in found:
      if getattr(file, "size", 0) > most:  # a folder has none
        has = f"has {file.size} bytes, must have at most {most}"
        raise UserError(f"{self._url}: {shown(file.path)} {has}")

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
  hub = library(url)
  with explained(hub, url, place):
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
      none of the files. If the server fell silent it has all of them or none.
  """
  place = _destination(url)
  hub = library(url)
  with explained(hub, url, place):
    api = hub.HfApi()
    api.create_repo(place.repository, private=True, exist_ok=True)
    info = api.model_info(place.repository, timeout=_TIMEOUT)
    there = _check_free(url, info)
  try:
    with explained(hub, url, place):
      done = api.upload_folder(
        repo_id=place.repository,
        folder_path=folder,
        commit_message="Converted by set_diffusion_jax",
        ignore_patterns=sorted(there),
        parent_commit=info.sha,  # the server refuses if somebody was faster
      )
  except Silent as silent:
    right = "look whether it has the files, and try again if not"
    raise UserError(f"{url}: {silent.reason} in the upload; {right}") from None
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


def library(url: str):
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


def asked(hub, url: str, place: Address) -> tuple[str | None, str | None]:
  """The commit of a revision, and why the server cannot be asked for it: one is None.

  Args:
    hub: of `library`.
    url: as it was given.
    place: what it says.

  Raises:
    UserError: it refuses, or knows no such repository or revision.
  """
  if hub.constants.HF_HUB_OFFLINE:
    return None, "HF_HUB_OFFLINE is set"
  try:
    with explained(hub, url, place):
      info = hub.HfApi().repo_info(
        place.repository,
        repo_type=place.kind,
        revision=place.revision,
        timeout=_TIMEOUT,
      )
  except Silent as silent:
    print(f"{url}: {silent.reason}; the cache is read", file=sys.stderr)
    return None, silent.reason
  return info.sha, None
