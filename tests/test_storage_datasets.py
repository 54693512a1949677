"""Text of data sets at the Hugging Face hub, for `prepare`: one commit, recorded."""

import dataclasses
import gzip
import json
import sys

import pytest

from set_diffusion_jax import cli, data
from set_diffusion_jax.config import Config, DataConfig
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import hub_datasets
from tests import tiny
from tests.hub_server import GONE, TOKEN, Repository, pointed_to
from tests.one_line import refused

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub")

# Its own, of 2.4.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ROOT = "hf://datasets/org/texts"
LINES = [json.dumps({"text": f"{i}. {tiny.TEXT}"}).encode() + b"\n" for i in range(12)]
FILES = {
  "README.md": b"words",
  "data/train-0.jsonl": b"".join(LINES[:6]),
  "data/train-1.jsonl.gz": gzip.compress(b"".join(LINES[6:9]), mtime=0),
  "data/deep/train-2.jsonl": LINES[9],
  "data/.hidden/train-3.jsonl": b"not JSON",
  "held out [1].jsonl": b"".join(LINES[10:]),
}


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A hub, which the client is pointed to, and an empty cache."""
  with pointed_to(monkeypatch, tmp_path) as server:
    yield server


def published(server, files=FILES, name="org/texts", **kind):
  server.repositories[f"datasets/{name}"] = repository = Repository(**kind)
  return repository, repository.commit(files)


def of(train, validation=None, **changes):
  given = {"source": "jsonl", "train_path": train, "validation_path": validation}
  return DataConfig(**given, length=16, **changes)


def prepared(config, folder):
  """The manifest, and the other files of what is prepared."""
  data.prepare(config, folder, shard=300)
  found = {path.name: path.read_bytes() for path in folder.iterdir()}
  return json.loads(found.pop("manifest.json")), found


def test_files_are_read_as_those_of_a_disk(server, tmp_path):
  _, commit = published(server)
  for name, content in FILES.items():
    path = tmp_path / "disk" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  names = ("data/**/train-*.jsonl*", "held out [1].jsonl")
  here, files = prepared(of(*(f"{tmp_path}/disk/{n}" for n in names)), tmp_path / "a")
  there, same = prepared(of(*(f"{ROOT}/{n}" for n in names)), tmp_path / "b")
  assert files == same and there["sides"] == here["sides"]
  assert there["settings"]["train_path"] == f"{ROOT}/{names[0]}"
  begin = len(f"{tmp_path}/disk/")
  expected = [{**f, "file": f["file"][begin:]} for f in here["source_files"]]
  pinned = f"{ROOT}@{commit}/"
  assert [
    {**f, "file": f["file"].removeprefix(pinned)} for f in there["source_files"]
  ] == expected
  assert len(expected) == 4 and all("hidden" not in f["file"] for f in expected)
  assert server.files_asked() == sorted(f["file"] for f in expected)


def test_a_commit_stays_what_it_is(server, tmp_path):
  repository, first = published(server)
  repository.revisions.update({"v1": first, "refs/convert/json": first})
  later = repository.commit({**FILES, "data/train-0.jsonl": b"".join(LINES[2:4])})
  count = lambda revision, name: prepared(
    of(f"{ROOT}{revision}/data/train-0.jsonl", validation_documents=1), tmp_path / name
  )[0]
  for number, revision in enumerate((f"@{first}", "@v1", "@refs/convert/json")):
    found = count(revision, f"{number}")
    assert found["sides"]["train"]["documents"] == 5
    (file,) = found["source_files"]
    assert file["file"] == f"{ROOT}@{first}/data/train-0.jsonl"
  found = count("", "main")
  assert found["sides"]["train"]["documents"] == 1
  assert found["source_files"][0]["file"] == f"{ROOT}@{later}/data/train-0.jsonl"


def test_both_sides_are_of_one_commit(server, monkeypatch, tmp_path):
  repository, first = published(server)
  real = hub_datasets.Commit.fetch

  def then_the_branch_moves(self, url):
    found = real(self, url)
    repository.commit({**FILES, "held out [1].jsonl": LINES[0]})
    return found

  monkeypatch.setattr(hub_datasets.Commit, "fetch", then_the_branch_moves)
  both = of(f"{ROOT}/data/train-0.jsonl", f"{ROOT}/held out [1].jsonl")
  manifest, _ = prepared(both, tmp_path / "out")
  assert manifest["sides"]["validation"]["documents"] == 2
  assert all(first in source["file"] for source in manifest["source_files"])


@pytest.mark.parametrize("kind", ["set", "without a server"])
def test_offline_a_pattern_is_all_of_its_files_or_none(
  server, monkeypatch, tmp_path, kind
):
  published(server)
  pattern = of(f"{ROOT}/data/*.jsonl*", f"{ROOT}/held out [1].jsonl")
  wanted = prepared(pattern, tmp_path / "online")
  hub.hf_hub_download("org/texts", "README.md", repo_type="dataset", revision="main")
  single = of(f"{ROOT}/data/train-0.jsonl", validation_documents=1)
  if kind == "set":
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
  else:
    server.broken = GONE
  del server.asked[:]
  assert prepared(pattern, tmp_path / "offline") == wanted
  assert server.files_asked() == []
  refused(lambda: data.prepare(of(f"{ROOT}/**"), tmp_path / "x"), "not whole in the")
  # What another program has fetched is known by name only.
  monkeypatch.setattr(hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "other"))
  refused(lambda: data.prepare(pattern, tmp_path / "x"), ROOT, "name one file")
  found = prepared(single, tmp_path / "single")[0]
  commit = wanted[0]["source_files"][0]["file"].split("/")[4]
  assert found["source_files"][0]["file"].split("/")[4] == commit


def test_what_the_server_refuses(server, monkeypatch, tmp_path):
  published(server)
  published(server, name="org/gated", gated=True)
  hostile = {"data/..\\x.jsonl": b"x", "data/a\nb.jsonl": b"x"}
  published(server, hostile, "org/hostile")
  for url, *words in (
    ("hf://datasets/org/none/x", "no such repository", "HF_TOKEN"),
    ("hf://datasets/org/gated/README.md", "gated", "/datasets/org/gated", "HF_TOKEN"),
    (f"{ROOT}@v9/README.md", "no revision v9"),
    (f"{ROOT}/none.jsonl", "has no such file; it has README.md"),
    (f"{ROOT}/data", "it is a folder, give a pattern such as data/*.jsonl"),
    (f"{ROOT}/*.txt", "has no such file"),
    ("hf://datasets/org/hostile/data/*", "file name", "must be a file"),
  ):
    refused(lambda url=url: data.prepare(of(url), tmp_path / "x"), url, *words)
  assert not (tmp_path / "x").exists()
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  gated = of("hf://datasets/org/gated/data/*.jsonl", validation_documents=1)
  data.prepare(gated, tmp_path / "x")
  published(server, {"a.jsonl": b"{}\n"}, "org/broken")
  broken = of("hf://datasets/org/broken/a.jsonl")
  commit = server.repositories["datasets/org/broken"].sha("main")
  refused(
    lambda: data.prepare(broken, tmp_path / "y"), f"org/broken@{commit}/a.jsonl, line 1"
  )


@pytest.mark.parametrize(
  "url",
  [
    *(ROOT, f"{ROOT}/", "hf://datasets/", "hf://datasets/texts", f"{ROOT}@/a"),
    *(f"{ROOT}/../a", f"{ROOT}/a//b", f"{ROOT}/./a", f"{ROOT}/a\\b", f"{ROOT}/a\nb"),
    *(f"{ROOT}@x y/a", f"{ROOT}@../a", "hf://datasets/../x/a", "hf://datasets/a b/c/d"),
    "hf://org/model/file.txt",
  ],
)
def test_other_addresses_are_refused_before_anything_is_asked(server, url):
  with pytest.raises(UserError) as error:
    Config.from_dict({"data": {"source": "jsonl", "train_path": url}})
  message = str(error.value)
  assert message.startswith("data.train_path = ") and "\n" not in message
  assert not server.asked


def test_only_prepare_reads_them(server, tmp_path, capsys):
  published(server)
  fields = ["--config.data.source=jsonl", f"--config.data.train_path={ROOT}/data/*l"]
  command = ["--config=quickstart", *fields]
  assert cli.main(["train", *command, f"--workdir={tmp_path}/run"]) == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1 and "is read by `prepare` alone" in line
  assert not server.asked and not (tmp_path / "run").exists()
  assert cli.main(["prepare", *command, f"--output={tmp_path}/out"]) == 0
  there = {"source": "prepared", "directory": str(tmp_path / "out")}
  trained = dataclasses.replace(of(f"{ROOT}/data/*l"), **there)
  assert len(data.load(trained).train)


def test_without_the_package(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  url = f"{ROOT}/a.jsonl"
  refused(lambda: data.prepare(of(url), tmp_path / "x"), url, "set_diffusion_jax[hub]")
