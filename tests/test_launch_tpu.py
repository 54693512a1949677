"""Machines of Cloud TPU: given back at the end, asked for again when preempted."""

import http.server
import itertools
import json
import os
import shutil
import subprocess
import threading
import types

import pytest

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.launch import queued, tpu
from tests import jobs
from tests.queued_resources import STATES, Cloud, Killed

TRAIN = ["train", "--config=c.py", "--workdir=gs://bucket/run/"]
END = "gs://bucket/run/.ended/mine"
# Two preemptions, a request that was not served in time, and an end.
LIVES = [
  ["ACCEPTED", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDING", "SUSPENDED"],
  ["CREATING", "WAITING_FOR_RESOURCES", "FAILED"],
  ["PROVISIONING", "ACTIVE", "SUSPENDED"],
  ["ACTIVE", "ACTIVE", "ACTIVE", 4],
]


def options(**changes):
  values = {"name": "mine", "project": "p", "zone": "z", "image": "registry/image:1"}
  values |= {"nfs": None, "grace": 30, "restarts": 1, "env": []}
  return types.SimpleNamespace(**values | changes)


REQUEST = queued.Request(
  "mine", "p", "z", ["gcloud", *"compute tpus queued-resources create".split()],
  tpu.startup(options(), TRAIN), tpu.end_of_run("mine", TRAIN),
)  # fmt: skip


@pytest.fixture
def cloud(monkeypatch):
  """A function that puts a cloud behind gcloud."""

  def connect(*given, **named):
    found = Cloud(*given, **named)
    monkeypatch.setattr(subprocess, "run", found.run)
    return found

  return connect


@pytest.mark.parametrize("end", [None, "4\n"])
@pytest.mark.parametrize("state", [None, *STATES, "STATE_UNSPECIFIED"])
def test_a_look_at_each_state(cloud, state, end):
  found = cloud([["ACCEPTED"]], state, end)
  line, code = queued.look(REQUEST)
  does = "nothing"
  if state is None:
    does = "create" if end is None else "nothing"
  elif state != "DELETING" and (end is not None or state in ("SUSPENDED", "FAILED")):
    does = "delete"
  assert found.commands == ["describe", "cat", *[does] * (does != "nothing")]
  assert code == (4 if (state, end) == (None, "4\n") else None)
  assert (state or "") in line and ("no more capacity" in line) == (
    state == "FAILED" and does == "delete"
  )


@pytest.mark.parametrize("gives_back", [True, False])
def test_the_watch_goes_on_to_the_end(cloud, capsys, gives_back):
  found = cloud(LIVES)
  found.gives_back = gives_back
  assert queued.watch(REQUEST, found.tick) == 4
  assert found.lives == [] and found.state is None
  assert found.commands.count("create") == 4
  assert found.commands.count("delete") == 3 + (not gives_back)
  lines = capsys.readouterr().err.splitlines()
  assert all(a != b for a, b in itertools.pairwise(lines))
  last = f"mine: the run ended with 4: error: why (remove {END} to start it again)"
  assert lines[-1].endswith(last)
  # A finished run is not started again.
  assert queued.watch(REQUEST, found.tick) == queued.once(REQUEST) == 4
  assert found.commands.count("create") == 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_watch_that_is_killed_and_started_again(cloud, when):
  """At each of its commands, and at all of them."""
  quiet = cloud(LIVES)
  queued.watch(REQUEST, quiet.tick)
  count = len(quiet.commands)
  for killed in [[n] for n in range(count)] + [range(0, 3 * count, 3)]:
    found = cloud(LIVES)
    found.faults = dict.fromkeys(killed, (when, Killed))
    while True:
      try:
        code = queued.watch(REQUEST, found.tick)
        break
      except Killed:
        found.tick()
    assert code == 4 and found.lives == [] and found.state is None


def test_two_watches_at_once(cloud, monkeypatch):
  """Another one acts between what the first has read and what it does."""
  found, inside = cloud(LIVES), []

  def run(words, **named):
    if words[4:5] in (["create"], ["delete"]) and not inside:
      inside.append(words)
      queued.once(REQUEST)
      inside.clear()
    return found.run(words, **named)

  monkeypatch.setattr(subprocess, "run", run)
  assert queued.watch(REQUEST, found.tick) == 4
  assert found.lives == [] and found.state is None


def test_gcloud_may_fail_for_a_while(cloud, capsys):
  quiet = cloud(LIVES)
  queued.watch(REQUEST, quiet.tick)
  found = cloud(LIVES)
  found.faults = dict.fromkeys(range(0, 99, 2), "UNAVAILABLE: try again later")
  assert queued.watch(REQUEST, found.tick) == 4
  assert found.lives == []
  assert "mine: (gcloud) UNAVAILABLE: try again later" in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
  "error", ["PERMISSION_DENIED: no", "[x] does not have permission to access b"]
)
def test_gcloud_that_refuses_ends_the_watch(cloud, capsys, number, error):
  found = cloud(LIVES)
  found.faults = {number: error}
  with pytest.raises(SystemExit) as ended:
    queued.watch(REQUEST, found.tick)
  assert ended.value.code == 2
  assert capsys.readouterr().err == f"error: mine: (gcloud) {error}\n"
  assert queued.once(REQUEST) == 0  # later on, from a terminal
  found.faults = {len(found.commands): error}
  assert queued.once(REQUEST) == 1


def test_without_a_bucket_nothing_is_known_of_the_end(cloud):
  request = queued.Request("mine", "p", "z", REQUEST.create, REQUEST.startup, None)
  found = cloud([["ACTIVE"], ["ACTIVE"]])
  assert [queued.once(request), queued.once(request)] == [0, 0]
  assert found.commands == ["describe", "create", "describe"]


def test_where_the_end_is_written():
  for place in ("gs://bucket/run", "gs://bucket/run/"):
    assert tpu.end_of_run("mine", ["train", f"--workdir={place}"]) == END
  assert tpu.end_of_run("mine", ["evaluate", "--workdir=gs://b/run"]) is None


def missing() -> tuple[int, str]:
  """An answer of Google's: its code and its body."""
  error = {"code": 404, "message": "was not found", "status": "NOT_FOUND"}
  return 404, json.dumps({"error": error})


def handler(found: Cloud):
  """A cloud by the interface that gcloud asks."""
  operation = json.dumps({"name": "projects/p/locations/z/operations/1", "done": True})
  words = ["gcloud", *"compute tpus queued-resources".split()]
  how = {"input": "#!/bin/bash\n", "text": True, "capture_output": True, "check": False}

  def resource(verb, path):
    if verb != "POST" and (found.state is None or "/queuedResources/mine?" not in path):
      return missing()
    command = {"GET": "describe", "POST": "create", "DELETE": "delete"}[verb]
    flags = ["--force", "--async"] if "force=True" in path else []
    ended = found.run([*words, command, *flags], **how)
    assert ended.returncode == 0, ended.stderr
    return 200, ended.stdout or operation

  def stored(path):
    if "/o/run%2F.ended%2Fmine?" not in path:
      return 200, "{}"  # a list of objects
    assert found.end is None  # gcloud reads an object in ways that are not served here
    return missing()

  class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
      self.rfile.read(int(self.headers.get("Content-Length") or 0))
      code, text = 200, operation
      if "/storage/" in self.path:
        code, text = stored(self.path)
      elif "/operations/" not in self.path:
        code, text = resource(self.command, self.path)
      self.send_response(code)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(text)))
      self.end_headers()
      self.wfile.write(text.encode())

    def log_message(self, *given):
      pass

    do_GET = do_POST = do_DELETE = answer

  return Handler


@pytest.fixture
def served(monkeypatch, tmp_path):
  """A cloud behind Google's own gcloud."""
  if not shutil.which("gcloud"):
    pytest.skip("needs gcloud")
  found = Cloud(LIVES)
  address = ("127.0.0.1", jobs.free_port())
  server = http.server.ThreadingHTTPServer(address, handler(found))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f"http://127.0.0.1:{server.server_port}"
  (tmp_path / "token").write_text("token")
  for name, value in {
    "CONFIG": tmp_path / "config",
    "AUTH_ACCESS_TOKEN_FILE": tmp_path / "token",
    "API_ENDPOINT_OVERRIDES_TPU": f"{address}/",
    "API_ENDPOINT_OVERRIDES_STORAGE": f"{address}/storage/v1/",
  }.items():
    monkeypatch.setenv(f"CLOUDSDK_{name}", str(value))
  yield found
  server.shutdown()
  server.server_close()


@pytest.mark.slow
def test_looks_by_the_real_gcloud(served):
  """From one preemption to the next; an end is not read here."""
  asked = [
    *REQUEST.create,
    "mine",
    "--quiet",
    "--node-id=mine",
    "--project=p",
    "--zone=z",
  ]
  asked += ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
  asked += ["--spot", "--metadata-from-file=startup-script=/dev/stdin"]
  request = queued.Request("mine", "p", "z", asked, REQUEST.startup, END)
  for _ in range(30):
    _, code = queued.look(request)
    assert code is None
    served.tick()
    if not served.lives:
      break
  assert served.lives == [] and served.state == "ACTIVE"
  assert queued.look(request) == ("ACTIVE", None)


PROGRAMS = """
docker() {
  case "$1 ${@: -1}" in
    run*) return CODE ;;
    "logs run") echo last lines ;;
    "rm run") ;;
    *) return 1 ;;
  esac
}
sleep() { :; }
curl() {
  case ${@: -1} in
    */agent-worker-number) echo WORKER ;;
    */tpu-env) printf "ZONE: 'z'\\nMEGASCALE_NUM_SLICES: '2'\\nSLICE\\nX: '1'\\n" ;;
    *) return 22 ;;
  esac
}
gcloud() {
  [ "$2 $3" = "cp -" ] && echo $* $(cat) >> log || echo "$*" >> log
  [ $(wc -l < log) -gt FAILURES ]
}
"""


def host(folder, code, worker=0, slice="MEGASCALE_SLICE_ID: '0'", failures=0, **more):
  """What a host asks of gcloud at the end of a run, without the setting up."""
  programs = PROGRAMS.replace("CODE", str(code)).replace("WORKER", str(worker))
  programs = programs.replace("SLICE\\n", f"{slice}\\n" if slice else "")
  programs = programs.replace("FAILURES", str(failures))
  script = tpu.startup(options(**more), more.pop("command", TRAIN))
  log = folder / "log"
  log.unlink(missing_ok=True)
  words = ["bash", "-c", programs + script]
  ended = subprocess.run(words, cwd=folder, env=os.environ, check=False)
  assert ended.returncode == code
  return log.read_text().splitlines()[1:]


DELETE = "compute tpus queued-resources delete mine --project=p --zone=z"
DELETE += " --quiet --force --async"


def test_the_first_host_gives_the_machines_back(tmp_path):
  for code in (*outcomes.FINAL, 1, outcomes.FAILED, 137):
    assert host(tmp_path, code) == [f"storage cp - {END} {code} last lines", DELETE]
  # What did not meet is asked for again by a watch: nothing says that the run ended.
  assert host(tmp_path, outcomes.UNREACHABLE) == [DELETE]
  assert host(tmp_path, 0, slice="") == [f"storage cp - {END} 0 last lines", DELETE]
  for others in ({"worker": 1}, {"worker": ""}, {"slice": "MEGASCALE_SLICE_ID: '1'"}):
    assert host(tmp_path, 0, **others) == []


def test_what_a_run_has_printed_is_not_given_back(tmp_path):
  share = f"--workdir={tmp_path}/run"
  assert host(tmp_path, 4, command=["train", share]) == [DELETE]
  assert (tmp_path / "run/.ended/mine").read_text() == "4\nlast lines\n"
  figures = ["evaluate", "--checkpoint=/runs/a"]
  assert host(tmp_path, 0, command=[*figures, "--output=/runs/b.json"]) == [DELETE]
  assert host(tmp_path, 0, command=figures) == []


def test_giving_back_is_tried_again(tmp_path):
  written = f"storage cp - {END} 2 last lines"
  assert host(tmp_path, 2, failures=3) == [written] * 3 + [DELETE]
  found = host(tmp_path, 2, failures=99)
  assert found == [written] * 10 + [DELETE] * 10


@pytest.mark.parametrize(
  "answer", ["no JSON", "[]", "{}", '{"state": 3}', '{"state": {"state": []}}']
)
def test_answers_that_cannot_be_read_are_asked_for_again(monkeypatch, answer):
  ended = subprocess.CompletedProcess([], 0, answer, "")
  monkeypatch.setattr(subprocess, "run", lambda words, **named: ended)
  with pytest.raises(queued.Refused, match="cannot read what gcloud answers") as error:
    queued.look(REQUEST)
  assert not error.value.lasting


@pytest.mark.parametrize("end", ["", "hello\n"])
def test_an_end_that_says_nothing(cloud, capsys, end):
  cloud([["ACCEPTED"]], None, end)
  with pytest.raises(SystemExit) as error:
    queued.look(REQUEST)
  assert error.value.code == 2
  assert f"error: {END}: does not say how the run ended" in capsys.readouterr().err


def test_a_gcloud_that_hangs_is_asked_again(monkeypatch):
  def run(words, **named):
    raise subprocess.TimeoutExpired(words, named["timeout"])

  monkeypatch.setattr(subprocess, "run", run)
  with pytest.raises(queued.Refused, match="has not answered within 600 s") as error:
    queued.look(REQUEST)
  assert not error.value.lasting
