"""Files of data sets at the Hugging Face hub, read through its cache.

hf://datasets/ORG/NAME[@REVISION]/PATH, where PATH may be a pattern: `*` and `?` stand
for characters of one name, `**` for folders. A listing of the commit is kept beside the
hub's cache, so that without the server a pattern names the same files or none.
"""

import concurrent.futures
import contextlib
import fnmatch
import json
import pathlib
import re
import urllib.parse
from typing import NamedTuple

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import paths
from set_diffusion_jax.inputs.names import bare_name, shown
from set_diffusion_jax.inputs.records import parse_json
from set_diffusion_jax.storage import disk, hub
from set_diffusion_jax.storage.hub_refusals import explained

SCHEME = f"{hub.SCHEME}datasets/"
RIGHT = f"must be {SCHEME}ORG/NAME/FILE or {SCHEME}ORG/NAME@REVISION/FILE"
_URL = re.compile(r"([^/@]+/[^/@]+(?:@(?:refs/(?:pr|convert)/)?[^/]+)?)/(.+)")
_AT_ONCE = 8  # downloads


class Fetched(NamedTuple):
  """A file of a data set on this disk.

  Attributes:
    path: where it is; its name ends as it does in the repository.
    origin: its address with the commit, which names the same bytes for ever.
  """

  path: pathlib.Path
  origin: str


def is_url(text: str) -> bool:
  """Whether a text is meant as an address of files of a data set."""
  return text.startswith(SCHEME)


def address(url: str) -> tuple[hub.Address, str]:
  """The repository that hf://datasets/ORG/NAME[@REVISION]/PATH names, and the path.

  Raises:
    UserError: it is another address, or has a name that no repository, revision or file
      has.
  """
  found = _URL.fullmatch(url.removeprefix(SCHEME))
  if found is None:
    raise UserError(f"{shown(url)}: {RIGHT}")
  place = hub.named(found[1], shown(url), RIGHT)._replace(kind="dataset")
  for part in found[2].split("/"):
    if part in ("", ".", "..") or "\\" in part or not part.isprintable():
      raise UserError(f"{shown(url)}: a path in a repository cannot have {part!r}")
  return place, found[2]


class Commit:
  """One commit of a data set; its files are fetched when they are asked for.

  The server is asked once which commit a branch or tag stands for. Where it cannot be
  reached, or HF_HUB_OFFLINE is set, what the cache has is read.

  Args:
    url: names it in messages.
    place: the repository and the revision.

  Raises:
    UserError: huggingface_hub is not installed, or the server refuses.
  """

  def __init__(self, url: str, place: hub.Address):
    self._place, self._hub = place, hub.library(url)
    self._commit, self._unreached = hub.asked(self._hub, url, place)
    with explained(self._hub, url, place, self._unreached):
      self._names = self._listing()

  def fetch(self, url: str) -> list[Fetched]:
    """The files that an address of this commit names, sorted by name.

    Raises:
      UserError: there is none, one cannot be fetched, or the cache does not have all.
    """
    _, path = address(url)
    names = self._matching(url, path)
    with (
      explained(self._hub, url, self._place, self._unreached),
      concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
      found = list(pool.map(self._download, names))
    if self._commit is None:  # the cache knows what the branch was
      self._commit = found[0].parents[path.count("/")].name
    origin = f"{SCHEME}{self._place.repository}@{self._commit}"
    return [Fetched(p, f"{origin}/{n}") for p, n in zip(found, names, strict=True)]

  def _download(self, name: str) -> pathlib.Path:
    file = self._hub.hf_hub_download(
      self._place.repository,
      name,
      repo_type=self._place.kind,
      revision=self._commit or self._place.revision,
      local_files_only=self._unreached is not None,
    )
    return pathlib.Path(file)

  def _listing(self) -> list[str] | None:
    """Names of all files; None: the server cannot be asked, and it was not before."""
    revision = self._place.revision or "main"
    if self._unreached is None:
      names = self._hub.HfApi().list_repo_files(
        self._place.repository, revision=self._commit, repo_type=self._place.kind
      )
      kept = json.dumps({"commit": self._commit, "files": names})
      with contextlib.suppress(OSError):  # of a cache that is only read
        for name in (revision, self._commit):
          disk.write_whole(self._kept(name), kept)
      return names
    try:
      file = self._kept(revision)
      found = parse_json(paths.file_content(file), str(file))
      self._commit, names = found["commit"], found["files"]
    except (OSError, UserError, KeyError, TypeError):
      return None
    return names

  def _kept(self, revision: str) -> pathlib.Path:
    """Where the listing of a revision is kept."""
    folder = self._hub.cached_assets_path(
      "set_diffusion_jax",
      f"datasets--{self._place.repository}",
      "listings",
      assets_dir=self._hub.constants.HF_ASSETS_CACHE,
    )
    return folder / f"{urllib.parse.quote(revision, safe='')}.json"

  def _matching(self, url: str, path: str) -> list[str]:
    """Names of the files that a path or a pattern stands for."""
    if self._names is None:
      if set(path) & set("*?["):
        why = f"which files it has is not known, and {self._unreached}"
        right = "name one file, or read it once while the hub can be reached"
        raise UserError(f"{url}: {why}; {right}")
      return [path]
    if path in self._names:
      return [path]
    pattern = path.split("/")
    found = sorted(n for n in self._names if _matches(n.split("/"), pattern))
    if not found:
      raise UserError(f"{url}: has no such file; {_some(self._names, path)}")
    for name in found:
      for part in name.split("/"):
        bare_name(part, url)
    return found


def _matches(name: list[str], pattern: list[str]) -> bool:
  """Whether the parts of a name are those of a pattern, as `glob` has it."""
  if not pattern:
    return not name
  first, *rest = pattern
  if first == "**":
    whole = _matches(name, rest)
    return whole or (bool(name) and name[0][:1] != "." and _matches(name[1:], pattern))
  if not name or (name[0][:1] == "." and first[:1] != "."):
    return False
  return fnmatch.fnmatchcase(name[0], first) and _matches(name[1:], rest)


def _some(names: list[str], path: str) -> str:
  """What there is instead of a file, for a message."""
  if any(name.startswith(f"{path}/") for name in names):
    return f"it is a folder, give a pattern such as {path}/*.jsonl"
  few = ", ".join(shown(name, 60) for name in sorted(names)[:3])
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f"it has {few}{more}"
