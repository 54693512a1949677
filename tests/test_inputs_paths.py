"""Paths are taken as they are written; files are there whole or stay what they are."""

import contextlib
import io
import json
import os
import pathlib
import resource
import stat
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import cli, convert, data
from set_diffusion_jax.config import Config
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import paths
from set_diffusion_jax.storage import disk
from set_diffusion_jax.storage.checkpoint import Checkpoints, abstract
from tests import jobs, tiny

PUBLISHED = jobs.ROOT / "tests/reference/models/setdlm_dit"
ODD = {
  "brackets": "exp[1]",
  "hash": "a#1",
  "percent": "a%20b",
  "question": "a?x",
  "pipe": "a|b",
  "newline": "new\nline",
  "space": " sp ace ",
  "dot": "dot.",
  "dash": "-dash",
  "star": "*",
  "braces": "{a,b}",
  "at": "a@2",
  "variable": "$HOME",
  "backslash": "back\\slash",
  "longest": "\N{CJK UNIFIED IDEOGRAPH-65E5}" * 85,
  "bytes": os.fsdecode(b"bad\xff"),
}
odd = pytest.mark.parametrize("name", ODD.values(), ids=ODD)


def refused(capsys, arguments, *words):
  """Exit code 2 and one line that has all the words."""
  capsys.readouterr()
  assert cli.main([str(a) for a in arguments]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("error: ")
  for word in words:
    assert word in line, line


class Position:
  """Stands for a data iterator."""

  def get_state(self):
    return {"next": 3}

  def set_state(self, state):
    assert state == {"next": 3}


@odd
def test_a_checkpoint_in_any_folder(tmp_path, name):
  folder = tmp_path / name / "checkpoints"
  state = {"w": jnp.arange(12.0).reshape(3, 4), "key": jax.random.key(3)}
  with Checkpoints(folder, keep_latest=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, state, Position(), {"is": "whole"}, None)
  assert os.listdir(tmp_path) == [name]
  assert sorted(os.listdir(folder)) == ["2", "3"]
  found = Checkpoints(folder)
  shapes = abstract(state, jax.tree.map(lambda x: x.sharding, state))
  restored = found.restore(3, shapes, Position())
  np.testing.assert_array_equal(restored["w"], state["w"])
  assert found.restore_meta(3)["is"] == "whole"


@odd
def test_conversion_between_any_folders(tmp_path, capsys, name):
  orbax, back = tmp_path / "orbax", tmp_path / "back"
  assert cli.main(["convert", str(PUBLISHED), f"{orbax}/{name}"]) == 0
  assert cli.main(["convert", f"{orbax}/{name}", f"{back}/{name}"]) == 0
  assert os.listdir(orbax) == os.listdir(back) == [name]
  assert cli.main(["inspect", f"{orbax}/{name}", f"--output={back}/i.json"]) == 0
  first, second = (convert.describe(p) for p in (PUBLISHED, back / name))
  assert first["parameters"] == second["parameters"]


@odd
def test_a_corpus_of_any_name(tmp_path, name):
  folder = tmp_path / name
  folder.mkdir()
  text = folder / name
  text.write_text(tiny.TEXT * 20)
  (tmp_path / "1").mkdir()  # what a pattern would find, too
  settings = {"data__source": "text", "data__train_path": str(text)}
  corpus = data.load(tiny.config(**settings).data)
  (tmp_path / "config.py").write_text(
    f"from tests import tiny\ndef get_config(): return tiny.settings(**{settings!r})\n"
  )
  out = tmp_path / "out" / name
  command = ["prepare", f"--config={tmp_path}/config.py", f"--output={out}"]
  assert cli.main([*command, "--workers=1"]) == 0
  assert os.listdir(tmp_path / "out") == [name]
  changed = {"data__source": "prepared", "data__directory": str(out)}
  prepared = data.load(tiny.config(**changed).data)
  assert (
    prepared.fingerprint["train_sequences"] == corpus.fingerprint["train_sequences"]
  )
  for row in (0, 3):
    expected, found = (
      corpus.train.batch(np.array([row])),
      prepared.train.batch(np.array([row])),
    )
    np.testing.assert_array_equal(found[0]["tokens"], expected[0]["tokens"])


def test_a_pattern_in_a_folder_with_brackets(tmp_path):
  folder = tmp_path / "exp[1]"
  folder.mkdir()
  for name in ("b.txt", "a.txt", "c.json"):
    (folder / name).write_text(name)
  found = paths.matching(f"{folder}/*.txt")
  assert found == [folder / "a.txt", folder / "b.txt"]


@pytest.mark.parametrize(
  "text, words",
  [
    ("", "is empty"),
    ("gs://bucket/run", "URLs are not supported"),
    ("hf://owner/model", "URLs are not supported"),
    ("a\0b", "zero byte"),
    ("\N{LATIN SMALL LETTER E WITH ACUTE}" * 128, "256 bytes"),
    ("x/" * 2100, "4095"),
    ("~nobody-of-that-name/run", "no user"),
  ],
)
def test_paths_that_are_none(text, words):
  with pytest.raises(UserError, match=words):
    paths.given(text)


def test_urls_are_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  url = "s3://bucket/run"
  refused(
    capsys, ["train", "--config=quickstart", f"--workdir={url}"], "--workdir", url
  )
  refused(capsys, ["sample", f"--checkpoint={url}"], "--checkpoint", url)
  refused(capsys, ["inspect", url], url)
  refused(capsys, ["convert", PUBLISHED, url], "destination", url)
  refused(capsys, ["prepare", "--config=quickstart", f"--output={url}"], url)
  refused(capsys, ["inspect", PUBLISHED, "--output=s3://b/o.json"], "--output", "s3:")
  with pytest.raises(UserError, match="a path or hf://ORG/NAME; s3:// is not"):
    convert.convert(PUBLISHED, url)
  assert not os.listdir(tmp_path)


def test_the_home_directory(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert cli.main(["convert", str(PUBLISHED), "~/run"]) == 0
  assert cli.main(["inspect", "~/run", "--output=~/i.json"]) == 0
  assert sorted(os.listdir(tmp_path)) == ["i.json", "run"]
  assert convert.describe("~/run")["format"] == "orbax"
  (tmp_path / "text").write_text(tiny.TEXT * 20)
  fields = {"source": "text", "train_path": "~/text", "tokenizer": "~/t.json"}
  settings = tiny.settings().to_dict()
  settings["data"].update(fields, validation_path="~/v", directory="~/d")
  settings["init_from"] = "~/run"
  config = Config.from_dict(settings)
  found = [getattr(config.data, name) for name in ("train_path", "validation_path")]
  found += [config.data.directory, config.data.tokenizer, config.init_from]
  names = ("text", "v", "d", "t.json", "run")
  assert found == [str(tmp_path / name) for name in names]
  assert paths.expanded("$HOME/x") == "$HOME/x"


def test_a_file_is_whole_and_has_the_users_mode(tmp_path):
  before = os.umask(0o027)
  try:
    disk.write_whole(tmp_path / "new", "text")
  finally:
    os.umask(before)
  private = tmp_path / "private"
  private.write_text("old")
  private.chmod(0o600)
  disk.write_whole(private, b"new")
  modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("new", "private")]
  assert modes == [0o640, 0o600]
  assert private.read_text() == "new"
  longest = tmp_path / ("x" * 255)
  disk.write_whole(longest, "text")
  assert longest.read_text() == "text"
  assert sorted(os.listdir(tmp_path)) == ["new", "private", "x" * 255]


def test_links_pipes_and_devices_stay_what_they_are(tmp_path):
  (tmp_path / "folder").mkdir()
  target, link = tmp_path / "folder" / "target", tmp_path / "link"
  link.symlink_to("folder/target")
  for text in ("first", "second"):  # of a link to nothing, then to a file
    disk.write_whole(link, text)
    assert link.is_symlink() and target.read_text() == text
  fifo = tmp_path / "fifo"
  os.mkfifo(fifo)
  found = []
  reader = threading.Thread(target=lambda: found.append(fifo.read_text()))
  reader.start()
  disk.write_whole(fifo, "piped")
  reader.join()
  assert found == ["piped"] and fifo.is_fifo()
  device = tmp_path / "null"
  try:
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
  except PermissionError:
    device = pathlib.Path(os.devnull)
  assert cli.main(["inspect", str(PUBLISHED), f"--output={device}"]) == 0
  assert device.is_char_device()


def test_an_open_file_is_written_on(tmp_path):
  with (tmp_path / "out").open("wb") as file:
    file.write(b"before\n")
    file.flush()
    link = tmp_path / "link"
    link.symlink_to(f"/dev/fd/{file.fileno()}")
    for path in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}", link):
      disk.write_whole(pathlib.Path(path), "text\n")
    file.write(b"after\n")
  assert (tmp_path / "out").read_text() == "before\ntext\ntext\ntext\nafter\n"


def test_inputs_are_not_overwritten(tmp_path, capsys):
  run = tmp_path / "run"
  assert cli.main(["convert", str(PUBLISHED), str(run)]) == 0
  before = (run / "config.json").read_bytes()
  (tmp_path / "link").symlink_to(run / "config.json")
  for output in (run / "config.json", tmp_path / "link", run / "checkpoints/0/meta/x"):
    for verb in (["inspect", run], ["sample", f"--checkpoint={run}"]):
      refused(capsys, [*verb, f"--output={output}"], "read by this command")
  assert (run / "config.json").read_bytes() == before
  assert cli.main(["inspect", str(run), f"--output={run}/figures.json"]) == 0
  prompts = tmp_path / "prompts"
  prompts.write_text("one\n")
  sample = ["sample", f"--checkpoint={run}", f"--input={prompts}"]
  refused(capsys, [*sample, f"--output={prompts}"], "read by this command")
  for name in ("special_tokens_map.json", "merges.txt", "backbone_config.json"):
    infill = [
      "infill",
      f"--checkpoint={PUBLISHED}",
      "a",
      f"--output={PUBLISHED}/{name}",
    ]
    refused(capsys, infill, "read by this command")


def test_the_file_is_complete_when_the_reader_has_left(tmp_path, monkeypatch):
  output = tmp_path / "o.json"
  reading, writing = os.pipe()
  os.close(reading)
  with os.fdopen(writing, "w") as pipe:
    monkeypatch.setattr(sys, "stdout", pipe)
    assert cli.main(["inspect", str(PUBLISHED), f"--output={output}"]) == 0
  assert json.loads(output.read_text())["format"] == "pytorch"


def test_what_standard_output_cannot_encode(tmp_path, monkeypatch):
  folder = tmp_path / "\N{LATIN SMALL LETTER E WITH ACUTE}"
  folder.symlink_to(PUBLISHED)
  written = io.BytesIO()
  ascii_only = io.TextIOWrapper(written, encoding="ascii")
  monkeypatch.setattr(sys, "stdout", ascii_only)
  assert cli.main(["inspect", str(folder)]) == 0
  assert b"/\\xe9: pytorch" in written.getvalue()


@contextlib.contextmanager
def small_files(size):
  """Files cannot grow beyond so many bytes, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line(tmp_path, capsys):
  text = tiny.text_file(tmp_path, lines=400)
  (tmp_path / "config.py").write_text(
    "from tests import tiny\ndef get_config(): return tiny.settings("
    f"data__source='text', data__train_path={str(text)!r})\n"
  )
  assert cli.main(["convert", str(PUBLISHED), f"{tmp_path}/orbax"]) == 0
  before = sorted(os.listdir(tmp_path))
  # Newer versions of tensorstore do not pass on what the system said.
  commands = [
    (["convert", PUBLISHED, tmp_path / "new"], "nothing was written"),
    (["convert", tmp_path / "orbax", tmp_path / "new"], "File too large"),
    (["inspect", PUBLISHED, f"--output={tmp_path}/figures.json"], "File too large"),
  ]
  for command, reason in commands:
    with small_files(1000):
      refused(capsys, command, reason)
    assert sorted(os.listdir(tmp_path)) == before
  out = f"--output={tmp_path}/prepared"
  prepare = ["prepare", f"--config={tmp_path}/config.py", out, "--workers=1"]
  with small_files(2000):
    refused(capsys, prepare, out, "the same command goes on")
  assert cli.main(prepare) == 0


def test_training_on_a_full_disk(tmp_path, capsys):
  text = tiny.text_file(tmp_path)
  (tmp_path / "config.py").write_text(
    "from tests import tiny\ndef get_config(): return tiny.settings(model__layers=1, "
    f"data__source='text', data__train_path={str(text)!r}, evaluate__sequences=2)\n"
  )
  run = tmp_path / "run[1]"
  command = ["train", f"--config={tmp_path}/config.py", f"--workdir={run}"]
  assert cli.main([*command, "--config.train.steps=2"]) == 0
  with small_files(8000):  # more than the metrics have so far
    refused(capsys, command, f"--workdir={run}: File too large", "steps that are whole")
  assert Checkpoints(run / "checkpoints").steps == [2]
  assert cli.main(command) == 0
  assert "continues from step 2" in capsys.readouterr().err
  assert Checkpoints(run / "checkpoints").steps == [4, 6]
