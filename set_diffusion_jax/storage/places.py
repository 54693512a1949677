"""Paths on disks and in buckets, and what is done with the files there.

Only the rooms of `storage` know what a URL is. A path is a pathlib.Path on a disk, and
an epath.Path, which Orbax takes as well, in a bucket. A bucket has no folders, only
objects with slashes in their names; an object appears whole or not at all, and cannot
be appended to or renamed. A bucket that is mounted as a folder is a disk here, but one
whose folders cannot be renamed.
"""

import os
import pathlib
import re
import secrets

from etils import epath

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import paths
from set_diffusion_jax.storage import disk, mounts
from set_diffusion_jax.storage.refusals import PACKAGE, explained

ANSWERS_WITHIN = 10.0  # seconds, a store that is asked for the first time
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_EXAMPLES = {
  "disk": "a path",
  "gs": "gs://BUCKET/PATH",
  "hf": "hf://ORG/NAME",
}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
# What the libraries would take for patterns, versions or other folders.
_UNUSABLE = re.compile(r"[*?\[\]#\x00-\x1f\x7f\ud800-\udfff]|//|(^|/)\.{1,2}(/|$)")
_ONE_SLASH = re.compile(r"(gs|hf):/(?!/)")  # a folder of such a name is ./gs:


def path(
  text: str | os.PathLike,
  option: str | None = None,
  stores: tuple[str, ...] = ("disk", "gs"),
) -> pathlib.Path:
  """The path on a disk or in a bucket that a user means.

  Args:
    text: as it was written.
    option: stands before the message of an error, such as "--workdir".
    stores: what is taken here: "disk", "gs".

  Returns:
    A pathlib.Path of a disk (see `paths.given`) or an epath.Path of a bucket.

  Raises:
    UserError: it is none, or not of these stores.
  """
  text = os.fspath(text)
  try:
    url = _URL.match(text)
    if url is None:
      if short := _ONE_SLASH.match(text):
        raise UserError(f"{text}: must have two slashes, as {short[1]}://")
      return paths.given(text)
    if url[1] not in stores:
      *others, last = (_EXAMPLES[store] for store in stores)
      right = f"{', '.join(others)} or {last}" if others else last
      raise UserError(f"{text}: must be {right}; {url[1]}:// is not supported here")
    return _in_bucket(text)
  except UserError as error:
    raise UserError(f"{option}={error}" if option else str(error)) from None


def _in_bucket(text: str) -> epath.Path:
  bucket, _, name = text.removeprefix("gs://").partition("/")
  if not _BUCKET.fullmatch(bucket):
    raise UserError(f"{text}: must be gs://BUCKET/PATH, has no name of a bucket")
  name = name.rstrip("/")
  if found := _UNUSABLE.search(name):
    raise UserError(f"{text}: a path in a bucket cannot have {found[0]!r}")
  if len(name.encode(errors="surrogateescape")) > 900:  # 1024, and what is added here
    raise UserError(f"{text}: is too long, a path in a bucket has at most 900 bytes")
  # Without these, epath takes TensorFlow wherever it is installed, and a listing is
  # kept for ever, so that what another process writes is never seen.
  os.environ.setdefault("EPATH_USE_TF", "0")
  import fsspec

  for protocol in ("gs", "gcs"):
    fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
  return epath.Path(f"gs://{bucket}/{name}" if name else f"gs://{bucket}")


def is_remote(place: str | os.PathLike) -> bool:
  """Whether a path is in a bucket."""
  return os.fspath(place).startswith("gs://")


def renames(place: str | os.PathLike) -> bool:
  """Whether a folder there is renamed at once, and a file can be appended to.

  It is so on disks, but not in buckets, nor where one is mounted as a folder.
  """
  return not is_remote(place) and not mounts.in_bucket(place)


def bucket_and_name(place: pathlib.Path) -> tuple[str, str]:
  """The bucket of a path in one, and the rest of it."""
  bucket, _, name = os.fspath(place).removeprefix("gs://").partition("/")
  return bucket, name


def store():
  """The file system of buckets, the same that epath has.

  Raises:
    UserError: its package is not installed.
  """
  try:
    import fsspec

    return fsspec.filesystem("gcs")
  except ImportError:
    raise UserError(PACKAGE) from None


def absolute(place: pathlib.Path) -> pathlib.Path:
  """The same place from every folder."""
  return place if is_remote(place) else place.absolute()


def read_bytes(place: pathlib.Path) -> bytes:
  """What a file holds; FileNotFoundError where there is none."""
  if is_remote(place):
    return store().cat_file(os.fspath(place))
  return paths.file_content(place)


def write_text(place: pathlib.Path, content: str | bytes) -> None:
  """Writes a file whole or not at all; text as UTF-8."""
  if is_remote(place):
    data = content.encode() if isinstance(content, str) else content
    store().pipe_file(os.fspath(place), data)
  else:
    disk.write_whole(place, content)


def create(place: pathlib.Path, content: str) -> bool:
  """Writes a file whole unless there is one; whether it did.

  Of several processes that do so at once, on whatever host, one succeeds.
  """
  if is_remote(place):
    return _create_in_bucket(os.fspath(place), content.encode())
  return disk.create(place, content)


def _create_in_bucket(url: str, content: bytes) -> bool:
  writer = secrets.token_hex(8)
  metadata = {"writer": writer}
  try:
    store().pipe_file(url, content, metadata=metadata, mode="create")
  except FileExistsError:
    # Perhaps by this very call, whose answer was lost, so that it was sent again.
    try:
      return store().info(url).get("metadata", {}).get("writer") == writer
    except FileNotFoundError:  # removed meanwhile
      return False
  return True


def make_folder(folder: pathlib.Path) -> None:
  """Makes a folder, and those that it is in, on a disk; a bucket has none."""
  if not is_remote(folder):
    folder.mkdir(parents=True, exist_ok=True)


def exists(place: pathlib.Path) -> bool:
  """Whether there is a file, or anything below a folder of this name."""
  return store().exists(os.fspath(place)) if is_remote(place) else place.exists()


def names(folder: pathlib.Path) -> list[str]:
  """Names of what is in a folder now, sorted; of one that is not there, none.

  Files that are not yet moved into place are left out.
  """
  if is_remote(folder):
    try:
      found = store().ls(os.fspath(folder), detail=False)
    except FileNotFoundError:
      return []
    inside = os.fspath(folder).removeprefix("gs://") + "/"
    below = (name.removeprefix(inside) for name in found if name.startswith(inside))
    return sorted({name.strip("/") for name in below} - {""})
  try:
    found = os.listdir(folder)
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(name for name in found if not disk.is_fresh(name))


def sizes(folder: pathlib.Path) -> dict[str, int]:
  """Bytes of the files that lie directly in a folder of a bucket, by name."""
  here = os.fspath(folder).removeprefix("gs://")
  try:
    found = store().ls(os.fspath(folder), detail=True)
  except FileNotFoundError:
    return {}
  files = {
    entry["name"].removeprefix(f"{here}/"): entry["size"]
    for entry in found
    if entry["type"] == "file" and entry["name"].startswith(f"{here}/")
  }
  return {name: size for name, size in files.items() if name and "/" not in name}


def size(place: pathlib.Path) -> int:
  """Bytes of a file in a bucket; FileNotFoundError where there is none."""
  return store().info(os.fspath(place))["size"]


def total_size(folder: pathlib.Path) -> int:
  """Bytes of all that is below a folder of a bucket."""
  here = os.fspath(folder).removeprefix("gs://")
  found = store().find(here, detail=True)
  return sum(
    entry["size"] for name, entry in found.items() if name.startswith(f"{here}/")
  )


def download(place: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a file in a bucket to a disk; FileNotFoundError where there is none."""
  store().get_file(os.fspath(place), os.fspath(target))


def modified(place: pathlib.Path) -> float:
  """When a file was last written: seconds since 1970 by the clock of where it is."""
  if is_remote(place):
    return store().modified(os.fspath(place)).timestamp()
  return place.stat().st_mtime


def reach(place: pathlib.Path, option: str) -> None:
  """Asks a store whether it can be read, once, before anything else is done.

  Raises:
    UserError: it says no, or nothing for some seconds; see `explained`.
  """
  if is_remote(place):
    with explained(f"{option}={place}"):
      try:
        store().find(f"{os.fspath(place)}/config.json", timeout=ANSWERS_WITHIN)
      except FileNotFoundError:  # otherwise it is an empty list
        bucket = os.fspath(place).split("/")[2]
        raise UserError(f"{option}={place}: there is no bucket {bucket!r}") from None
