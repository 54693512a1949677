"""Checkpoints of the Hugging Face hub: the bytes of a directory, at one commit."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from set_diffusion_jax import cli, load
from set_diffusion_jax.convert import convert, describe, located
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.training.train import Run
from tests import jobs, tiny
from tests.convert_files import torch_bytes
from tests.golden import Golden
from tests.hub_server import GONE, TOKEN, Repository, pointed_to
from tests.one_line import refused
from tests.test_convert import reference, stored, train_state
from tests.test_inputs_tokenizers import added, file

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub")

# Its own, of 2.4.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME, URL = "setdlm_dit", "hf://org/model"
PROGRAM = {"modeling.py": b"raise SystemExit", "deep/model.safetensors": b"no"}
PROGRAM |= {"consolidated.safetensors": b"no", "README.md": b"words"}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """A directory in two shards, and the work directory that it was made of."""
  folder = tmp_path_factory.mktemp("hub")
  convert(reference(NAME, folder / "published"), folder / "run")
  convert(folder / "run", folder / "sharded", shard_size=12_000)
  assert len(list((folder / "sharded").glob("model-*.safetensors"))) > 1
  return folder / "sharded", folder / "run"


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A hub, which the client is pointed to, and an empty cache."""
  with pointed_to(monkeypatch, tmp_path) as server:
    yield server


def files_of(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def published(server, folder, name="org/model", extra=None, **kind):
  """A repository with the files of a folder; and its commit."""
  server.repositories[name] = repository = Repository(**kind)
  return repository, repository.commit(files_of(folder) | (extra or {}))


def test_a_repository_is_read_as_its_directory_is(server, both, tmp_path):
  folder, _ = both
  _, commit = published(server, folder, extra=PROGRAM)
  here, there = load(folder), load(URL)
  jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
  assert there.config == here.config
  assert there.tokenizer.describe() == here.tokenizer.describe()
  fetched = server.files_asked()
  assert set(fetched) <= set(files_of(folder)) and "README.md" not in fetched
  assert {"config.json", "model.safetensors.index.json"} <= set(fetched)
  convert(URL, tmp_path / "from_hub", verify=True)
  convert(folder, tmp_path / "from_disk")
  assert server.files_asked() == fetched, "what the cache has was fetched again"
  for name in ("from_hub", "from_disk"):
    convert(tmp_path / name, tmp_path / f"{name}_back")
  assert stored(tmp_path / "from_hub_back") == stored(tmp_path / "from_disk_back")
  pinned = f"{URL}@{commit}"
  assert describe(URL)["path"] == pinned
  found = describe(tmp_path / "from_hub")
  assert found["weights_from"] == {"converted_from": pinned}


def test_a_commit_stays_what_it_is(server, both):
  folder, _ = both
  repository, first = published(server, folder)
  repository.revisions["v1.0"] = first
  config = json.loads((folder / "config.json").read_text())
  changed = json.dumps({**config, "eval_block_size": 1}).encode()
  second = repository.commit(files_of(folder) | {"config.json": changed})
  for revision in (first, "v1.0"):
    assert describe(f"{URL}@{revision}")["path"] == f"{URL}@{first}"
  refused(lambda: describe(URL), "eval_block_size", second)
  repository.revisions["refs/pr/3"] = first
  assert describe(f"{URL}@refs/pr/3")["path"] == f"{URL}@{first}"


def test_pickles_are_fetched_only_where_there_is_nothing_else(server, tmp_path):
  folder = reference(NAME, tmp_path / "source")
  pickled = torch_bytes(dict(Golden(NAME).tensors))
  published(server, folder, extra={"pytorch_model.bin": pickled})
  wanted = describe(URL)["parameters"]
  assert "pytorch_model.bin" not in server.files_asked()
  (folder / "model.safetensors").unlink()
  published(server, folder, "org/old", extra={"pytorch_model.bin": pickled})
  assert describe("hf://org/old")["parameters"] == wanted
  assert "pytorch_model.bin" in server.files_asked()


@pytest.mark.parametrize("kind", ["set", "without a server", "out of order"])
def test_offline_from_the_cache(server, both, monkeypatch, capsys, kind):
  folder, _ = both
  _, commit = published(server, folder)
  wanted = describe(URL)
  if kind == "set":
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
  else:
    server.broken = GONE if kind == "without a server" else 503
  del server.asked[:]
  assert describe(URL) == wanted == describe(f"{URL}@{commit}")
  assert server.files_asked() == []
  said = capsys.readouterr().err
  assert ("the cache is read" in said) == (kind != "set")
  began = time.monotonic()
  words = "HF_HUB_OFFLINE is set" if kind == "set" else server.url
  refused(lambda: describe("hf://org/other"), "hf://org/other", "cache", words)
  refused(lambda: describe(f"{URL}@{'0' * 40}"), "cache", words)
  assert time.monotonic() - began < 40


def test_a_cache_that_is_not_whole(server, both, monkeypatch):
  folder, _ = both
  published(server, folder)
  hub.snapshot_download("org/model", allow_patterns=["config.json"])
  monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
  refused(lambda: describe(URL), URL)


def test_a_server_that_never_answers(server, monkeypatch):
  from set_diffusion_jax.storage import hub as room

  with socket.create_server(("127.0.0.1", 0)) as silent:
    monkeypatch.setattr(room, "_TIMEOUT", 0.3)
    url = f"http://127.0.0.1:{silent.getsockname()[1]}"
    monkeypatch.setattr(hub.constants, "ENDPOINT", url)
    refused(lambda: describe(URL), URL, url, "cache")


def test_what_the_server_refuses(server, both, monkeypatch):
  folder, _ = both
  published(server, folder)
  published(server, folder, "org/gated", gated=True)
  published(server, folder, "org/private", private=True)
  server.repositories["org/empty"] = empty = Repository()
  empty.commit({"README.md": b"words"})
  server.repositories["org/bare"] = bare = Repository()
  bare.commit({"config.json": b"{}"})
  for url, *words in (
    ("hf://org/none", "no such repository", "HF_TOKEN"),
    ("hf://org/private", "no such repository", "HF_TOKEN"),
    ("hf://org/gated", "gated", f"{server.url}/org/gated", "HF_TOKEN"),
    (f"{URL}@v9", "no revision v9"),
    (f"{URL}@{'1' * 40}", "no revision"),
    ("hf://org/empty", "no config.json"),
    ("hf://org/bare", "model.safetensors"),
  ):
    refused(lambda url=url: describe(url), url, *words)
  monkeypatch.setenv("HF_TOKEN", "hf_wrong")
  refused(lambda: describe("hf://org/none"), "token", "401", "HF_TOKEN")
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  assert describe("hf://org/gated")["count"] == describe("hf://org/private")["count"]
  monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", "/dev/null/cache")
  refused(lambda: describe(URL), URL, "/dev/null")
  server.broken = 403
  refused(lambda: describe(URL), URL, "403")


def test_names_that_an_index_gives(server, both):
  folder, _ = both
  for name in ("modeling.py", "../x.safetensors", "a/b.safetensors", 3, None):
    index = json.dumps({"weight_map": {"x": name}}).encode()
    extra = PROGRAM | {"model.safetensors.index.json": index}
    published(server, folder, extra=extra)
    refused(lambda: describe(URL), "model.safetensors.index.json", "name")
  assert "modeling.py" not in server.files_asked()


@pytest.mark.parametrize(
  "url",
  [
    *("hf://", "hf://org", "hf://a/../b", "hf://../b", "hf://a/b/c", "hf://a//b"),
    *("hf://a/b@", "hf://a/b@x y", "hf://a/b@../x", "hf://a/b@a//b", "hf://a/b@-x"),
    *("hf://a/b@x@y", "hf://a b/c", "hf://a/b%2Fc", "hf://a/b?x", "hf://a/b#x"),
    *("hf://a/-b", "hf://a/b.", "hf://a/b--c", "hf://a/b.git", "hf://a/b\n", "hf:///b"),
    *(
      f"hf://a/{'b' * 97}",
      f"hf://a/b@{'c' * 300}",
      "hf://a/\N{CYRILLIC SMALL LETTER A}",
    ),
  ],
)
def test_hostile_names(server, capsys, url, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["sample", f"--checkpoint={url}"]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "--checkpoint=hf://" in said and len(said) < 500
  refused(lambda: load(url), "hf://")
  assert not server.asked and not os.listdir(tmp_path)


def test_without_the_package(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  assert cli.main(["inspect", URL]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and URL in said and "set_diffusion_jax[hub]" in said


def test_a_model_is_uploaded_in_one_commit(server, both, monkeypatch, tmp_path):
  folder, run = both
  refused(lambda: convert(run, "hf://org/new"), "hf://org/new", "token", "HF_TOKEN")
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  report = convert(run, "hf://org/new", shard_size=12_000)
  made = server.repositories["org/new"]
  assert report.verified and made.private and len(made.commits) == 2
  assert report.destination == f"hf://org/new@{made.sha('main')}"
  found = made.commits[made.sha("main")]
  assert found == files_of(folder) | {".gitattributes": b""}
  here, there = load(folder), load(report.destination)
  jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
  assert cli.main(["convert", str(run), "hf://org/new"]) == 2, "it holds a model now"


def test_what_is_there_is_never_written_over(server, both, monkeypatch):
  folder, run = both
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  published(server, folder)
  refused(lambda: convert(run, URL), URL, "config.json", "new repository")
  assert not any(line.startswith(("POST", "PUT")) for line in server.asked)
  refused(lambda: convert(folder, "hf://org/x"), "hf://org/x", "new directory")
  refused(lambda: convert(run, "hf://org/x@v1"), "without a revision")
  server.repositories["org/mine"] = mine = Repository()
  mine.commit({".gitattributes": b"", "README.md": b"my own words"})
  convert(run, "hf://org/mine")
  assert mine.commits[mine.sha("main")]["README.md"] == b"my own words"
  # Somebody else commits between the last look and the upload.
  server.repositories["org/raced"] = raced = Repository()
  raced.commit({".gitattributes": b""})
  server.at_commit = lambda: raced.commit({"config.json": b"theirs"})
  refused(lambda: convert(run, "hf://org/raced"), "hf://org/raced", "meanwhile")
  assert raced.commits[raced.sha("main")] == {"config.json": b"theirs"}


def test_an_upload_that_fails_commits_nothing(server, both, monkeypatch):
  _, run = both
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  server.full = True
  refused(lambda: convert(run, "hf://org/new"), "hf://org/new", "403")
  assert len(server.repositories["org/new"].commits) == 1, "of its creation"
  server.full = False
  assert convert(run, "hf://org/new").destination.startswith("hf://org/new@")


@pytest.mark.parametrize("moment", ["at_blob", "at_commit"])
def test_a_server_that_dies_in_an_upload(server, both, monkeypatch, moment):
  _, run = both
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  monkeypatch.setattr(server, moment, lambda: setattr(server, "broken", GONE))
  line = refused(lambda: convert(run, "hf://org/new"), "hf://org/new", server.url)
  assert "look whether it has the files" in line
  assert len(server.repositories["org/new"].commits) == 1, "of its creation"
  monkeypatch.setattr(server, moment, lambda: None)
  server.broken = None
  assert convert(run, "hf://org/new").destination.startswith("hf://org/new@")


def test_an_upload_whose_answer_is_lost(server, both, monkeypatch):
  _, run = both
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  server.lost = True
  refused(lambda: convert(run, "hf://org/new"), "look whether it has the files")
  assert len(server.repositories["org/new"].commits) == 2, "it is there"
  server.lost = False
  refused(lambda: convert(run, "hf://org/new"), "config.json", "new repository")


def test_a_kill_in_an_upload_commits_nothing(server, both, monkeypatch, tmp_path):
  _, run = both
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  reached, go = threading.Event(), threading.Event()

  def wait():
    reached.set()
    go.wait(60)

  server.at_blob = wait
  home = {
    "HF_ENDPOINT": server.url,
    "HF_HOME": str(tmp_path),
    "HF_HUB_DISABLE_XET": "1",
  }
  code = "from set_diffusion_jax.storage import hub; import pathlib, sys\n"
  code += "hub.upload('hf://org/new', pathlib.Path(sys.argv[1]))"
  folder, _ = both
  process = subprocess.Popen(
    [sys.executable, "-c", code, folder], env={**os.environ, **home}, cwd=jobs.ROOT
  )
  assert reached.wait(60)
  process.kill()
  process.wait()
  go.set()
  server.at_blob = lambda: None
  assert len(server.repositories["org/new"].commits) == 1, "of its creation"
  assert convert(run, "hf://org/new").destination.startswith("hf://org/new@")


def test_nothing_is_uploaded_that_is_not_right(server, both, monkeypatch):
  from set_diffusion_jax.convert import conversion

  _, run = both
  monkeypatch.setenv("HF_TOKEN", TOKEN)

  def wrong(*_):
    raise UserError("--verify: x differs in the result")

  monkeypatch.setattr(conversion, "verify_here", wrong)
  refused(lambda: convert(run, "hf://org/new"), "differs")
  assert not server.repositories


def test_commands_by_the_environment(server, both, tmp_path):
  """As users have it: all settings are huggingface_hub's own variables."""
  folder, _ = both
  _, commit = published(server, folder)
  out = tmp_path / "figures.json"

  def run(*arguments, **more):
    home = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    return subprocess.run(
      [sys.executable, "-m", "set_diffusion_jax", *arguments],
      env={**os.environ, "JAX_PLATFORMS": "cpu", **home, **more},
      capture_output=True,
      text=True,
    )

  found = run("inspect", URL, f"--output={out}")
  assert found.returncode == 0, found.stderr
  assert json.loads(out.read_text())["path"] == f"{URL}@{commit}"
  gone = run("inspect", "hf://org/none")
  assert gone.returncode == 2 and gone.stderr.count("\n") == 1, gone.stderr
  offline = run("inspect", URL, HF_HUB_OFFLINE="1")
  assert offline.returncode == 0 and offline.stdout == found.stdout


def test_a_run_starts_from_a_commit(server, tmp_path):
  train_state(tmp_path / "run")
  convert(tmp_path / "run", tmp_path / "published")
  _, commit = published(server, tmp_path / "published")
  text = {"data__source": "text", "data__train_path": str(tiny.text_file(tmp_path))}
  text |= {"data__validation_path": text["data__train_path"], "model__ffn": 64}

  def started(start):
    return Run.build(tiny.config(init_from=str(start), **text)).start()

  here, from_disk, _ = started(tmp_path / "published")
  there, from_hub, _ = started(f"{URL}@main")
  jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
  assert from_disk.pop("checkpoint") == str(tmp_path / "published")
  assert from_hub.pop("checkpoint") == f"{URL}@{commit}"
  assert from_hub == from_disk and from_hub["loaded"]
  refused(lambda: started("hf://org/none"), "hf://org/none")


def test_figures_and_texts_are_those_of_the_directory(server, tmp_path, capsys):
  train_state(tmp_path / "run")
  convert(tmp_path / "run", tmp_path / "published")
  words = "[UNK] the old river ran past a small".split()
  special = [
    added(8 + i, f"[{n}]") for i, n in enumerate(("BOS", "EOS", "PAD", "MASK"))
  ]
  text = file({word: i for i, word in enumerate(words)}, *special)
  (tmp_path / "published/tokenizer.json").write_text(text)
  _, commit = published(server, tmp_path / "published")
  (tmp_path / "text.txt").write_text("the old river ran past a small river\n" * 40)
  held_out = f"--config.data.validation_path={tmp_path}/text.txt"
  found = []
  for number, name in enumerate((str(tmp_path / "published"), URL)):
    out = tmp_path / f"{number}.json"
    found.append({})
    for verb, *words in (
      ("evaluate", "--config.data.source=text", held_out, "--sequences=4"),
      ("sample", "--length=8", "--num=2"),
      ("infill", "the [MASK:3]"),
    ):
      command = [verb, f"--checkpoint={name}", *words, f"--output={out}"]
      assert cli.main(command) == 0, capsys.readouterr().err
      rows = out.read_text().splitlines() if verb != "evaluate" else [out.read_text()]
      found[-1][verb] = list(map(json.loads, rows))
  for verb, rows in found[1].items():
    for row in rows:
      assert row.pop("checkpoint") == f"{URL}@{commit}"
    for row in (*rows, *found[0][verb]):
      row.pop("seconds", None)
    assert rows == found[0][verb] and rows


def test_a_branch_that_moves_while_it_is_read(server, both, monkeypatch):
  from set_diffusion_jax.storage import hub as room

  folder, _ = both
  repository, commit = published(server, folder)
  get = room.Snapshot.get

  def moving(self, names, most=None):
    found = get(self, names, most)
    repository.commit({"config.json": b"{}"})
    return found

  monkeypatch.setattr(room.Snapshot, "get", moving)
  there = load(URL)
  assert there.origin == f"{URL}@{commit}"
  jax.tree.map(np.testing.assert_array_equal, there.params, load(folder).params)


def test_a_file_that_is_too_large(server, both, monkeypatch):
  folder, _ = both
  published(server, folder)
  size = (folder / "config.json").stat().st_size
  monkeypatch.setattr(located, "LARGEST_JSON", size - 1)
  refused(lambda: load(URL), URL, f"config.json has {size} bytes, must have at most")
  assert not server.files_asked()


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("hf://org/none", "no such repository"),
    ("hf://org/gated", "is a gated repository"),
    ("hf://org/model@v9", "has no revision v9"),
  ],
)
def test_every_command_says_what_is_refused(server, both, tmp_path, capsys, name, says):
  folder, _ = both
  published(server, folder)
  published(server, folder, "org/gated", gated=True)
  for words in (
    *([verb, f"--checkpoint={name}"] for verb in ("evaluate", "sample")),
    ["infill", f"--checkpoint={name}", "It [MASK:3]"],
    ["inspect", name],
    ["convert", name, str(tmp_path / "out")],
  ):
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"error: {name}: ")
    assert says in said
  assert not list(tmp_path.glob("out*"))
