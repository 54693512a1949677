"""Text from outside: one rule for every way in, one line for what cannot be read."""

import gzip
import io
import json
import os
import random
import subprocess
import sys

import pytest

from set_diffusion_jax import cli, data
from set_diffusion_jax.cli.texts import given_texts, read_texts
from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data import sources
from set_diffusion_jax.data.zero_shot import zero_shot_data
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.inputs import text as module

# Characters that some readers take for line ends, and NUL: text, all of them.
ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x00h\ufeffi"


def held_out(path, source, **fields):
  config = DataConfig(source=source, validation_path=str(path), **fields)
  return sources.read_validation(config)


def refused(act, *words):
  """The one line with which something is refused, which has all of these words."""
  with pytest.raises(UserError) as caught:
    act()
  message = str(caught.value)
  assert "\n" not in message and all(word in message for word in words), message


# Bytes of a file, its lines, and what is said about it.
FILES = {
  "plain": (b"one\ntwo\n", ["one\n", "two\n"], ""),
  "no newline at the end": (b"one\ntwo", ["one\n", "two"], ""),
  "mark": (b"\xef\xbb\xbfone\ntwo\n", ["one\n", "two\n"], "1 byte-order mark"),
  "CRLF": (b"one\r\ntwo\r\n", ["one\n", "two\n"], "2 line end(s) of CR LF"),
  "both": (b"\xef\xbb\xbfone\r\ntwo", ["one\n", "two"], "1 line end(s) of CR LF"),
  "CR alone": (b"one\rtwo\n", ["one\rtwo\n"], "1 carriage return(s) that end no line"),
  "CR CR LF": (b"one\r\r\n", ["one\r\n"], "1 line end(s) of CR LF"),
  "CR at the end": (b"one\r", ["one\r"], "1 carriage return(s)"),
  "a mark inside": ("one\n\ufefftwo\n".encode(), ["one\n", "\ufefftwo\n"], ""),
  "odd": (f"{ODD}\n".encode(), [f"{ODD}\n"], ""),
  "one character": (b"a", ["a"], ""),
  "blank lines": (b"\n\r\n \nx", ["\n", "\n", " \n", "x"], "1 line end(s)"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_lines_are_the_same_for_every_reader(tmp_path, capsys, name, packed):
  content, lines, said = FILES[name]
  path = tmp_path / ("ptb.txt.gz" if packed else "ptb.txt")
  path.write_bytes(gzip.compress(content) if packed else content)
  assert held_out(path, "lines") == lines
  assert held_out(path, "text") == ["".join(lines)]
  corpus = zero_shot_data("ptb", DataConfig(), tmp_path)
  plain = DataConfig(source="lines", validation_path=str(path), detokenizer="ptb")
  assert sources.read_validation(corpus) == sources.read_validation(plain)
  given = [line.removesuffix("\n") for line in lines if line.strip()]
  assert read_texts(str(path), "prompt") == given
  printed = capsys.readouterr().err
  assert said in printed and bool(printed) == bool(said)


def test_what_was_changed_is_said_once(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes(b"\xef\xbb\xbf" + b"one two three\r\n" * 40)
  config = DataConfig(source="lines", train_path=str(path), length=16)
  corpus = data.load(config)
  (note,) = corpus.notes
  assert note == (
    f'data.train_path = "{path}": 1 byte-order mark(s) left out, '
    "40 line end(s) of CR LF read as newlines"
  )
  path.write_bytes(b"one two three\n" * 40)
  plain = data.load(config)
  assert plain.notes == ()
  assert plain.fingerprint == corpus.fingerprint  # the same text
  config = DataConfig(source="lines", validation_path=str(path), length=16)
  path.write_bytes(b"one two three\r\n" * 40)
  (note,) = data.load_validation(config, data.ByteTokenizer()).notes
  assert note.endswith('a.txt": 40 line end(s) of CR LF read as newlines')


# Bytes of a file that is refused, and words of the message.
BROKEN = {
  "UTF-16LE": ("\ufeffone\n".encode("utf-16-le"), "is UTF-16, must be UTF-8", "iconv"),
  "UTF-16BE": ("\ufeffone\n".encode("utf-16-be"), "is UTF-16, must be UTF-8", "iconv"),
  "UTF-32LE": ("\ufeffone\n".encode("utf-32-le"), "is UTF-32, must be UTF-8"),
  "UTF-32BE": ("\ufeffone\n".encode("utf-32-be"), "is UTF-32, must be UTF-8"),
  "no mark LE": ("one\n".encode("utf-16-le"), "seems to be UTF-16LE", "iconv"),
  "no mark BE": ("one\n".encode("utf-16-be"), "seems to be UTF-16BE", "iconv"),
  "Latin-1": ("one\ncafé\n".encode("latin-1"), "is not UTF-8 at byte 7"),
  "a surrogate": (b"one\n\xed\xa0\xbd\n", "is not UTF-8 at byte 4"),
  "overlong": (b"one\n\xc0\xaf\n", "is not UTF-8 at byte 4"),
  "cut short": ("é".encode()[:1], "is not UTF-8 at byte 0"),
  "packed": (gzip.compress(b"one\n"), "is packed by gzip", ".gz"),
  "pointer": (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "is a git-lfs pointer",
    "git lfs pull",
  ),
  "empty": (b"", "holds no text"),
  "a mark alone": (b"\xef\xbb\xbf", "holds no text"),
  "blank": (b" \r\n\t\n\x0c", "holds no text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_text_is_refused(tmp_path, name):
  content, *words = BROKEN[name]
  path = tmp_path / "a.txt"
  path.write_bytes(content)
  for source in ("lines", "text"):
    refused(lambda source=source: held_out(path, source), "a.txt", *words)
  refused(lambda: held_out(path, "jsonl"), "a.txt")
  refused(lambda: read_texts(str(path), "prompt"), "--input=", *words)
  config = DataConfig(source="lines", train_path=str(path))
  refused(lambda: data.prepare(config, tmp_path / "out"), *words)
  assert not (tmp_path / "out").exists()


PACKED = gzip.compress(random.Random(0).randbytes(2000).hex().encode() + b"\n", mtime=0)


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (PACKED[:-20], "ended before"),
    (PACKED + b"garbage", "Not a gzipped file"),
    (b"one\n", "Not a gzipped file"),
    (PACKED[:60] + b"\0\0\0" + PACKED[63:], ""),
    (gzip.compress(bytes(1_000_001)), "holds more than 1,000,000 bytes"),
    (gzip.compress(b"lines\n" * 200_000), "holds more than 1,000,000 bytes"),
    (gzip.compress(b"\xff\xfea\0"), "is UTF-16"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
  ],
  ids=["cut", "more", "plain", "damaged", "zeros", "lines", "UTF-16", "pointer"],
)
def test_packed_files_that_are_refused(tmp_path, monkeypatch, content, words):
  monkeypatch.setattr(module, "UNPACKED_BYTES", 10**6)
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(content)
  for source in ("text", "lines"):
    refused(lambda source=source: held_out(path, source), "a.jsonl.gz", words)
  refused(lambda: read_texts(str(path), "prompt"), "--input=", words)


def test_packed_files_that_are_read(tmp_path):
  path = tmp_path / "a.txt.gz"
  path.write_bytes(PACKED + PACKED + bytes(512))  # two members, and padding of tar
  assert [len(line) for line in held_out(path, "lines")] == [4001, 4001]


def test_paths_that_are_no_files(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "link").symlink_to("gone")
  (tmp_path / "folder.txt").mkdir()
  for name, words in (
    ("pipe", "no regular file"),
    ("folder.txt", "is a directory"),
    ("link", "no such file"),
    ("*.txt", "no such file"),
    ("a\nb", "no such file"),
    ("x" * 300, "File name too long"),
    ("a\0b", "no such file"),
  ):
    refused(lambda name=name: held_out(tmp_path / name, "text"), words)
  refused(lambda: read_texts(str(tmp_path), "prompt"), "Is a directory")


@pytest.mark.parametrize(
  "name",
  ["book [1912].txt", "a*b?.txt", "[!x].txt", "{a}%20#b|c.txt", "a\nb\udcff.txt"],
)
def test_a_name_that_exists_is_that_file(tmp_path, name):
  folder = tmp_path / "my [old] books*"
  folder.mkdir()
  (folder / name).write_text("this one")
  (folder / "book 1.txt").write_text("another")
  (folder / "x.txt").write_text("another")
  assert held_out(folder / name, "text") == ["this one"]
  assert len(held_out(folder / "*.txt", "text")) == 3
  assert held_out(folder / "[x].txt", "text") == ["another"]
  assert held_out(tmp_path / "**" / "x.txt", "text") == ["another"]


def test_a_file_that_changes_between_two_readings(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("one\ntwo\nthree\n")
  source = sources.Source(DataConfig(source="lines", train_path=str(path)))
  assert source.count("train") == 3
  path.write_text("one\ntwo\nthree\nfour\n")
  refused(lambda: source.count("train"), "has changed while it was read")


def write_records(path, lines):
  path.write_bytes(b"".join(line + b"\n" for line in lines))


# Lines of JSON that are read, and their text.
RECORDS = {
  "a mark": (b'\xef\xbb\xbf{"text": "a"}', "a"),
  "CR": (b'{"text": "a"}\r', "a"),
  "ends of lines": (json.dumps({"text": ODD}, ensure_ascii=False).encode(), ODD),
  "escapes": (json.dumps({"text": f"{ODD}\r\n\r"}).encode(), f"{ODD}\r\n\r"),
  "a pair": (rb'{"text": "\ud83d\ude00"}', "\N{GRINNING FACE}"),
  "NaN": (b'{"text": "a", "score": NaN, "b": -Infinity, "c": 1e999}', "a"),
  "brackets": (b'{"text": "%s"}' % (b"[{," * 500_000), "[{," * 500_000),
  "nested": (b'{"text": "a", "b": %s}' % (b"[" * 200 + b"]" * 200), "a"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_read_as_they_are(tmp_path, name):
  line, text = RECORDS[name]
  path = tmp_path / "a.jsonl"
  write_records(path, [b"", line, b" \r", line])
  assert held_out(path, "jsonl") == [text, text]
  assert read_texts(str(path), "text") == [text, text]


# Lines of JSON that are refused, and words of the message.
BROKEN_RECORDS = {
  "deep": (b'{"text": "a", "b": %s}' % (b"[" * 10**5 + b"]" * 10**5), "nested"),
  "deep and open": (b'{"text": "a", "b": ' + b'{"c":' * 10**5, "nested"),
  "long": (b'{"text": "a", "b": %s}' % (b"9" * 5000), "more than 4,300 digits"),
  "many": (b'{"text": "a", "b": [%s0]}' % (b"0," * 1_100_000), "values"),
  "twice": (b'{"text": "a", "text": "b"}', "the key 'text' is there twice"),
  "a surrogate": (rb'{"text": "\ud83d"}', "half a character"),
  "an array": (b'["a"]', "must be a JSON object"),
  "a text": (b'"a"', "must be a JSON object"),
  "a number": (b'{"text": 1}', '"text"'),
  "null": (b'{"text": null}', '"text"'),
  "another field": (b'{"body\\n": "a"}', '"text"'),
  "two objects": (b'{"text": "a"} {"text": "b"}', "is not JSON (Extra data"),
  "two lines": (b'{"text": "a"}\r{"text": "b"}', "is not JSON (Extra data"),
  "a control character": (b'{"text": "a\tb"}', "is not JSON (Invalid control"),
  "cut short": (b'{"text": "a', "is not JSON (Unterminated string"),
  "single quotes": (b"{'text': 'a'}", "is not JSON"),
}


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_broken_records_name_their_line(tmp_path, name):
  line, words = BROKEN_RECORDS[name]
  path = tmp_path / "a.jsonl"
  write_records(path, [b'{"text": "good"}', b"", line])
  refused(lambda: held_out(path, "jsonl"), "line 3", words)
  refused(lambda: read_texts(str(path), "text"), "line 3", words)


def test_plain_texts_and_records_are_told_apart(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text('\n  {"text": "a"}\n')
  assert read_texts(str(path), "text") == ["a"]
  path.write_text('x\n{"text": "a"}\n')
  assert read_texts(str(path), "text") == ["x", '{"text": "a"}']
  path = tmp_path / "a.jsonl"  # by its name
  path.write_text('x\n{"text": "a"}\n')
  refused(lambda: read_texts(str(path), "text"), "line 1", "is not JSON")


def test_standard_input_is_bytes(monkeypatch):
  """Whatever encoding and line ends Python has for text."""
  content = "\ufeffé\r\nx\u2028y\n".encode()
  for encoding in ("ascii", "latin-1", "utf-16"):
    stream = io.TextIOWrapper(io.BytesIO(content), encoding=encoding)
    monkeypatch.setattr("sys.stdin", stream)
    assert read_texts("-", "prompt") == ["é", "x\u2028y"]
  monkeypatch.setattr("sys.stdin", io.StringIO("é\n"))
  assert read_texts("-", "prompt") == ["é"]
  monkeypatch.setattr("sys.stdin", None)
  refused(lambda: read_texts("-", "prompt"), "no standard input")


def test_an_endless_stream_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(module, "STREAM_BYTES", 10**6)
  refused(lambda: read_texts("/dev/zero", "prompt"), "holds more than 1,000,000 bytes")
  with open("/dev/zero", encoding="ascii") as endless:
    monkeypatch.setattr("sys.stdin", endless)
    refused(lambda: read_texts("-", "prompt"), "holds more than 1,000,000 bytes")


def test_arguments_are_utf8_in_any_locale():
  assert given_texts(["é", "a\nb"], "--prompt") == ["é", "a\nb"]
  assert given_texts(None, "--prompt") == []
  as_bytes = "é\U0001f600".encode().decode("ascii", errors="surrogateescape")
  assert given_texts([as_bytes], "--prompt") == ["é\U0001f600"]
  for broken in ("caf\udce9", "\ud83d"):
    refused(lambda broken=broken: given_texts([broken], "--prompt"), "is not UTF-8")


def test_no_locale_changes_what_is_read(tmp_path):
  """Neither of a file nor of standard input nor of an argument."""
  path = tmp_path / "a.jsonl"
  path.write_bytes('{"prompt": "The line\u2028break é"}\r\n'.encode())
  code = (
    "import sys; from set_diffusion_jax.cli.texts import given_texts, read_texts; "
    "print(ascii([*given_texts(sys.argv[2:], ''), *read_texts(sys.argv[1], 'prompt'), "
    "*read_texts('-', 'prompt')]), sys.stdin.encoding)"
  )
  for name in ("C",):
    locale = {"LC_ALL": name, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
      [sys.executable, "-c", code, str(path), "naïve"],
      input=path.read_bytes(),
      env={**os.environ, **locale},
      capture_output=True,
      check=True,
    )
    texts = ["naïve", *["The line\u2028break é"] * 2]
    assert done.stdout.decode().strip() != f"{texts!a} utf-8"
    assert done.stdout.decode().startswith(ascii(texts))


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["sample", "--prompt=caf\udce9"], "--prompt: 'caf\\udce9' is not UTF-8"),
    (["sample", "--prompt=\ud83d"], "is not UTF-8"),
    (["sample", "--stop=\udce9"], "--stop: "),
    (["infill", "\udce9 [MASK]"], "is not UTF-8"),
    (["sample", "--input={}"], "line 1: half a character (a surrogate) at 10"),
  ],
)
def test_half_characters_are_one_line(tmp_path, capsys, arguments, words):
  path = tmp_path / "surrogate.jsonl"
  path.write_bytes(b'{"prompt": "cut emoji \\ud83d"}\n')
  arguments = [argument.format(path) for argument in arguments]
  assert cli.main([*arguments, f"--checkpoint={tmp_path}/none"]) == 2
  printed = capsys.readouterr().err
  assert printed.startswith("error: ") and printed.count("\n") == 1
  assert words in printed
