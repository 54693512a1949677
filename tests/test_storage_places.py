"""Files on a disk and in a bucket, by the same functions."""

import concurrent.futures
import subprocess
import sys
import time

import fsspec
import pytest

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import folders, places, steps
from tests import buckets, fault_proxy


@pytest.fixture(params=["disk", "gs"])
def folder(request, tmp_path):
  return places.path(tmp_path if request.param == "disk" else buckets.fresh())


def make(folder, *files):
  for name in files:
    if not places.is_remote(folder):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
    places.write_text(folder / name, name)


def test_files_are_written_listed_and_removed(folder):
  assert places.names(folder / "absent") == []
  assert not places.exists(folder / "absent")
  make(folder, "b.txt", "sub/c.txt", "sub/d/e.txt", "sub.txt")
  assert places.names(folder) == ["b.txt", "sub", "sub.txt"]
  assert places.names(folder / "sub") == ["c.txt", "d"]
  assert places.names(folder / "b.txt") == []
  places.write_text(folder / "b.txt", "änderung")
  assert places.read_bytes(folder / "b.txt").decode() == "änderung"
  assert abs(places.modified(folder / "b.txt") - time.time()) < 60
  folders.remove(folder / "sub")
  folders.remove(folder / "sub")
  assert places.names(folder) == ["b.txt", "sub.txt"]
  with pytest.raises(FileNotFoundError):
    places.read_bytes(folder / "sub/c.txt")


def test_one_of_many_creates_a_file(folder):
  if not places.is_remote(folder):
    folder.mkdir(exist_ok=True)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    made = list(pool.map(lambda i: places.create(folder / "a", str(i)), range(8)))
  assert sum(made) == 1
  assert places.read_bytes(folder / "a").decode() == str(made.index(True))
  assert places.names(folder) == ["a"]


def test_a_folder_is_moved(folder):
  make(folder, "3/state/a", "3/meta/b", "3/commit_success.txt", "30/a")
  assert steps.finished(folder / "3")
  folders.move(folder / "3", folder / "damaged")
  assert not steps.finished(folder / "3")
  assert places.names(folder) == ["30", "damaged"]
  assert places.names(folder / "damaged") == ["commit_success.txt", "meta", "state"]
  assert places.read_bytes(folder / "damaged/state/a") == b"3/state/a"


def test_a_move_that_is_cut_short_leaves_an_unfinished_step(monkeypatch):
  folder = places.path(buckets.fresh())
  make(folder, "3/a/commit_success.txt", "3/a/b", "3/commit_success.txt")
  store = fsspec.filesystem("gcs")
  with monkeypatch.context() as context:
    done = []

    def copy_one(source, target):
      if done:
        raise KeyboardInterrupt
      done.append(source)

    context.setattr(store, "cp_file", copy_one)
    with pytest.raises(KeyboardInterrupt):
      folders.move(folder / "3", folder / "damaged")
  assert not steps.finished(folder / "3") and places.names(folder) == ["3"]


def test_a_folder_is_uploaded(tmp_path):
  target = places.path(buckets.fresh()) / "copy"
  make(tmp_path, "x/a", "x/sub/b", "x/commit_success.txt")
  folders.upload(tmp_path / "x", target)
  assert places.names(target) == ["a", "commit_success.txt", "sub"]
  assert places.read_bytes(target / "sub/b") == b"x/sub/b"
  assert places.sizes(target) == {"a": 3, "commit_success.txt": 20}
  assert places.total_size(target) == 3 + 20 + 7


def test_what_was_done_though_the_answer_is_lost():
  """The client asks again, and is told that the file is there, or is not."""
  folder = places.path(buckets.fresh())
  lost = fault_proxy.Once("lost", [("POST", "/upload/.*new"), ("DELETE", "new")])
  with buckets.judged(lost):
    assert places.create(folder / "new", "content")
    assert not places.create(folder / "new", "content")
    folders.remove(folder / "new")
  assert lost.left == [] and not places.exists(folder / "new")
  lost = fault_proxy.Once("lost", [("POST", "rewriteTo"), ("DELETE", "3/a")])
  make(folder, "3/a", "3/b")
  with buckets.judged(lost):
    folders.move(folder / "3", folder / "moved")
  assert lost.left == [] and places.names(folder / "moved") == ["a", "b"]
  assert places.names(folder) == ["moved"]


def test_another_process_is_seen():
  folder = places.path(buckets.fresh())
  make(folder, "a")
  assert places.names(folder) == ["a"]
  code = "from set_diffusion_jax.storage import places as p; import sys;"
  code += "p.write_text(p.path(sys.argv[1]) / 'b', '')"
  subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
  assert places.names(folder) == ["a", "b"]


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("s3://b/x", "s3://b/x: must be a path or gs://BUCKET/PATH; s3:// is not"),
    ("file:///x", "file:// is not supported here"),
    ("gs://", "has no name of a bucket"),
    ("gs:///x", "has no name of a bucket"),
    ("gs://Bucket/x", "has no name of a bucket"),
    ("gs://bucket/a//b", "cannot have '//'"),
    ("gs://bucket/a/../b", "cannot have '/../'"),
    ("gs://bucket/a*", "cannot have '*'"),
  ],
)
def test_other_addresses_are_refused_in_one_line(text, says):
  with pytest.raises(UserError) as caught:
    places.path(text, option="--workdir")
  line = str(caught.value)
  assert line.startswith(f"--workdir={text}: ") and says in line and "\n" not in line


def test_what_lives_on_a_disk_only():
  with pytest.raises(UserError, match="must be a path; gs:// is not supported here"):
    places.path("gs://bucket/x", stores=("disk",))


def test_a_missing_bucket_is_named():
  buckets.server()
  with pytest.raises(UserError, match=r"gs://nobody/x: .* no bucket 'nobody'"):
    places.reach(places.path("gs://nobody/x"), "--workdir")
  places.reach(places.path(buckets.fresh()), "--workdir")


def test_places_are_the_same_from_everywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(places.absolute(places.path("a"))) == str(tmp_path / "a")
  assert str(places.absolute(places.path("gs://bucket/a/"))) == "gs://bucket/a"
