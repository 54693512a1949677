"""Outputs: nothing of the user's is replaced, what cannot be written costs no work."""

import fcntl
import json
import os
import socket

import pytest

from set_diffusion_jax import cli
from set_diffusion_jax.cli.files import check_output
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.evaluate import PartialResults
from tests import jobs, tiny
from tests.test_inputs_paths import refused

PUBLISHED = jobs.ROOT / "tests/reference/models/setdlm_dit"


@pytest.fixture
def config(tmp_path):
  """A file for --config, and the text that it names."""
  text = tiny.text_file(tmp_path)
  path = tmp_path / "config.py"
  path.write_text(tiny.CONFIG.replace("PATH", str(text)))
  return path


def test_a_picture_replaces_no_text(tmp_path, config, capsys):
  mask = ["inspect", "--mask", f"--config={config}"]
  text = tmp_path / "notes.txt"
  text.write_text("mine")
  refused(capsys, [*mask, f"--output={text}"], "notes.txt: must end in .png")
  assert text.read_text() == "mine"
  picture = tmp_path / "config.png"
  picture.write_bytes(config.read_bytes())
  mask = ["inspect", "--mask", f"--config={picture}", f"--output={picture}"]
  refused(capsys, mask, "is read by this command")


def test_a_picture_goes_into_what_is_open(tmp_path, config):
  mask = ["inspect", "--mask", f"--config={config}"]
  with (tmp_path / "open").open("w+b") as file:
    assert cli.main([*mask, f"--output=/dev/fd/{file.fileno()}"]) == 0
  assert (tmp_path / "open").read_bytes().startswith(b"\x89PNG")


def test_a_configuration_is_not_overwritten(tmp_path, config, capsys):
  before = config.read_bytes()
  (tmp_path / "link").symlink_to(config)
  for output in (config, tmp_path / "link"):
    for given in (config, f"{config}:method=ar"):
      show = ["inspect", "--data", f"--config={given}", f"--output={output}"]
      refused(capsys, show, "is read by this command")
    plan = ["plan", f"--config={config}", "--topology=gpu:h100x1", f"--json={output}"]
    refused(capsys, plan, "--json", "is read by this command")
  assert config.read_bytes() == before


def test_files_that_a_pattern_names_are_not_overwritten(tmp_path, config, capsys):
  show = ["inspect", "--data", f"--config={config}"]
  show += [f"--config.data.train_path={tmp_path}/t*.txt"]
  before = (tmp_path / "text.txt").read_bytes()
  refused(capsys, [*show, f"--output={tmp_path}/text.txt"], "is read by this command")
  assert (tmp_path / "text.txt").read_bytes() == before


def test_a_corpus_of_zero_shot_is_not_overwritten(tmp_path, capsys):
  corpus = tmp_path / "ptb.jsonl"
  corpus.write_text(json.dumps({"sentence": tiny.TEXT * 4}) + "\n")
  command = ["evaluate", f"--checkpoint={PUBLISHED}", "--zero-shot=ptb"]
  command += [f"--zero-shot-data={tmp_path}", f"--output={corpus}"]
  before = corpus.read_bytes()
  refused(capsys, command, "is read by this command")
  assert corpus.read_bytes() == before
  (tmp_path / "o.ptb.json").mkdir()
  refused(
    capsys, [*command[:-1], f"--output={tmp_path}/o"], "o.ptb.json", "a directory"
  )


def test_what_cannot_be_written_is_refused_before_work(tmp_path):
  loop, there = tmp_path / "loop", tmp_path / "there"
  loop.symlink_to(loop)
  there.write_text("mine")
  server = socket.socket(socket.AF_UNIX)
  server.bind(str(tmp_path / "socket"))
  cases = {loop: "symbolic links", there / "x": "Not a directory"}
  cases[tmp_path / "socket"] = "is a socket"
  if os.path.exists("/dev/full"):
    cases[type(loop)("/dev/full")] = "No space left"
  for path, words in cases.items():
    with pytest.raises(UserError, match=f"^--output={path}: .*{words}"):
      check_output(path)
  # What is open for reading alone.
  with there.open("rb") as file, pytest.raises(UserError, match="Bad file descriptor"):
    check_output(type(loop)(f"/dev/fd/{file.fileno()}"))
  reading, writing = os.pipe()
  fcntl.fcntl(reading, fcntl.F_SETFL, os.O_NONBLOCK)
  check_output(type(loop)(f"/dev/fd/{writing}"))  # nothing is written meanwhile
  with pytest.raises(BlockingIOError):
    os.read(reading, 1)
  os.close(reading), os.close(writing), server.close()
  check_output(type(loop)(os.devnull))
  (tmp_path / "dangling").symlink_to("new")
  check_output(tmp_path / "dangling")
  assert there.read_text() == "mine"


def test_rows_that_are_done_replace_no_file_of_the_users(tmp_path):
  output, partial = tmp_path / "o.json", tmp_path / "o.json.partial"
  for mine in ("no newline", '{"a": 1', "a line\n"):
    partial.write_text(mine)
    with pytest.raises(UserError, match=r"o\.json\.partial: holds another"):
      PartialResults(output, {"a": 2}, 3, 1)
    assert partial.read_text() == mine
  partial.write_text('{"a": ')  # of this evaluation, which was killed early
  assert PartialResults(output, {"a": 2}, 3, 1).rows == {}
  partial.unlink()
  os.mkfifo(partial)
  with pytest.raises(UserError, match="a pipe or a device"):
    PartialResults(output, {"a": 2}, 3, 1)


def test_rows_that_are_done_beside_the_longest_name(tmp_path):
  output = tmp_path / ("o" * 255)
  PartialResults(output, {"a": 2}, 3, 1).add({0: (1.5,)})
  again = PartialResults(output, {"a": 2}, 3, 1)
  assert again.rows == {0: (1.5,)}
  again.finish()
  assert os.listdir(tmp_path) == []
