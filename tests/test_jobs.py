"""The watch of a process: outcomes, phases, limits, links, stops, lost peers."""

import contextlib
import functools
import json
import os
import random
import re
import resource
import select
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from set_diffusion_jax import cli
from set_diffusion_jax.jobs import clock, links, outcomes, phases, watch
from set_diffusion_jax.jobs.peers import Peers
from set_diffusion_jax.jobs.stops import Stops
from tests import jobs, tiny
from tests.jobs import Job, config_file
from tests.test_train import settings

WHOLE = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1}


def test_what_ends_and_what_restarts():
  assert outcomes.FINAL == (0, 2, 3, 4, 130)
  assert outcomes.FREE == (42,)
  for code in range(256):
    expected = "final" if code in (0, 2, 3, 4, 130) else "counted"
    assert outcomes.then(code) == ("free" if code == 42 else expected)


@pytest.fixture
def clocked(monkeypatch):
  """An account of phases, and a clock that it goes by: [seconds]."""
  now = [100.0]
  monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
  return phases.Phases(), now


def test_every_second_is_in_one_phase(clocked):
  account, now = clocked
  now[0] += 1
  with account.phase("step", 7):
    now[0] += 2
    with account.phase("input"):
      now[0] += 4
      assert account.now == ("input", 4.0, 7)
    now[0] += 8
    assert account.now == ("step", 8.0, 7)
  spent = {name: s for name, s in account.seconds().items() if s}
  assert spent == {"start": 1.0, "step": 10.0, "input": 4.0}
  assert (account.longest("step"), account.longest("save")) == (8.0, 0.0)
  with pytest.raises(ValueError, match="sleep: must be one of"), account.phase("sleep"):
    pass


def test_parts_of_a_phase_count_for_themselves(clocked):
  account, now = clocked
  with account.phase("evaluation"):
    for seconds in (3, 1, 2):
      now[0] += seconds
      account.tick()
    assert account.now.seconds == 0
  assert (account.longest("evaluation"), account.seconds()["evaluation"]) == (3.0, 6.0)


def test_limits_are_learnt(clocked):
  account, now = clocked
  learnt, given = clock.Clock(account), clock.Clock(account, 20.0)
  assert (learnt.limit("data"), given.limit("data")) == (None, None)
  assert (learnt.limit("step"), given.limit("step")) == (3600.0, 20.0)
  assert (learnt.limit("compile"), given.limit("compile")) == (3600.0, 3600.0)
  with account.phase("step", 1):
    now[0] += 50
  assert learnt.limit("step") == 500.0
  with account.phase("step", 2):
    now[0] += 149
    assert learnt.slow() is None
    now[0] += 2
    where, line = learnt.slow()
    assert (where.step, line) == (
      2,
      "step (step 2) for 151 s, the longest before took 50.0 s",
    )
    assert learnt.slow() is None  # it is said once
    assert learnt.stuck() is None
    now[0] += 350
    right = "is stuck: step (step 2) for 501 s, more than the 500 s that this may take"
    assert learnt.stuck() == right


@pytest.mark.parametrize("seed", range(30))
def test_all_stop_after_one_step_that_none_has_passed(seed):
  """Threads that take steps together, stopped at random moments."""
  rng = random.Random(seed)
  count, total = rng.randint(1, 4), 40
  stops = [Stops() for _ in range(count)]
  barrier = threading.Barrier(count)
  stopped: list[list[int]] = [[] for _ in range(count)]

  def train(number):
    for step in range(1, total + 1):
      barrier.wait()  # a step is taken by all
      if stops[number].reached(step):
        stopped[number].append(step)
        return

  threads = [threading.Thread(target=train, args=(n,)) for n in range(count)]
  early = rng.random() < 0.2
  for thread in () if early else threads:
    thread.start()
  time.sleep(rng.random() * 0.003)
  assert stops[0].begin()
  assert not stops[0].begin()
  for number in rng.sample(range(1, count), count - 1):
    assert stops[0].missing(set(range(1, count)))
    stops[0].note(number, stops[number].pause())
  assert not stops[0].missing(set(range(1, count)))
  step = stops[0].decide()
  if early:
    assert step is None
    return
  for stop in stops:
    stop.settle(step or 1)
  for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
  assert all(found == stopped[0] for found in stopped)
  assert stopped[0] == [step or 1] or (step is not None and step > total)


@pytest.fixture
def closing():
  """Closes what it is given, at the end; returns it."""
  with contextlib.ExitStack() as stack:
    yield lambda thing: stack.enter_context(contextlib.closing(thing))


def serve(peers, selector, until):
  """Lets peers be heard until something is so."""
  deadline = time.monotonic() + 20
  while not until():
    assert time.monotonic() < deadline
    for key, _ in selector.select(0.1):
      key.data()


@pytest.fixture
def first(closing):
  """What process 0 of three is: its peers, selector, listener, and what was heard."""
  heard, selector = [], selectors.DefaultSelector()
  closing(selector)
  hear = lambda peer, message: heard.append((peer.number, message))
  peers = Peers(selector, hear, heard.append)
  peers.count = 3
  listener = links.Listener()
  closing(listener.socket)
  peers.listen(listener)
  yield peers, selector, listener, heard
  for peer in peers.there:
    peer.link.close()
  strangers = list(selector.get_map().values())
  for key in strangers:
    key.fileobj.close()


def test_links_carry_messages_and_their_end(first, closing):
  peers, selector, listener, heard = first
  invitation = listener.invitation("127.0.0.1")
  assert json.loads(json.dumps(invitation)) == invitation
  hosts = ["host.invalid", "127.0.0.1"]
  mine = closing(links.connect({**invitation, "hosts": hosts}, 2))
  serve(peers, selector, lambda: peers.there)
  (peer,) = peers.there
  assert peer.name == f"process 2 on {socket.gethostname()}"
  mine.send({"beat": 1})
  mine.send({"line": "x" * 5000})
  serve(peers, selector, lambda: len(heard) == 2)
  assert [(number, list(message)) for number, message in heard] == [
    (2, ["beat"]),
    (2, ["line"]),
  ]
  mine.close()
  serve(peers, selector, lambda: len(heard) == 3)
  assert heard[2] is peer
  peers.tell({"nobody": "there"}, also_ended=True)
  assert links.connect({**invitation, "hosts": ["host.invalid"]}, 1) is None


STRANGERS = {
  "wrong": b'{"word": "wrong", "process": 1}\n',
  "surrogate": b'{"word": "\\ud800", "process": 1}\n',
  "number": b'{"word": 5, "process": 1}\n',
  "none": b'{"process": 1}\n',
  "list": b"[1, 2]\n",
  "http": b"GET / HTTP/1.1\r\n\r\n",
  "bytes": b"\xff\xfe\n",
  "deep": b"[" * 60_000 + b"\n",
  "nothing": b"",
  "half": b'{"word": ',
}


def test_strangers_are_not_let_in_nor_waited_for(first, closing):
  """Some say nothing at all, and stay; who belongs there comes in meanwhile."""
  peers, selector, listener, heard = first
  where = ("127.0.0.1", listener.socket.getsockname()[1])
  silent = [closing(socket.create_connection(where)) for _ in range(20)]
  for words in STRANGERS.values():
    stranger = closing(socket.create_connection(where))
    stranger.sendall(words)
    if words != STRANGERS["half"]:
      stranger.shutdown(socket.SHUT_WR)
  for number in (1, 2):
    closing(links.connect(listener.invitation("127.0.0.1"), number))
  serve(peers, selector, lambda: peers.complete)
  assert [peer.number for peer in peers.there] == [1, 2]
  assert (heard, len(silent)) == ([], 20)
  with pytest.raises(ConnectionRefusedError):  # nobody else is awaited
    socket.create_connection(where)


def test_a_number_that_is_taken_is_not_let_in(first, closing):
  peers, selector, listener, heard = first
  invitation = listener.invitation("127.0.0.1")
  one = closing(links.connect(invitation, 1))
  serve(peers, selector, lambda: len(peers.there) == 1)
  for number in (0, 1, 3, -1):
    other = closing(links.connect(invitation, number))
    serve(peers, selector, lambda other=other: readable(other) and not other.receive())
  one.send({"here": 1})
  serve(peers, selector, lambda: heard)
  assert heard == [(1, {"here": 1})]
  assert not peers.complete


def readable(link) -> bool:
  """Whether there is something to receive, or the end."""
  return bool(select.select([link.socket], [], [], 0)[0])


def command(folder, *words, **changes):
  """`train` in FOLDER/run, with a configuration of its own."""
  tiny.text_file(folder)
  more = {"train__log_every": 1, "train__checkpoint_every": 1, "train__batch_size": 4}
  fields = settings(folder, **{**WHOLE, **more, **changes})
  return ["train", f"--config={config_file(folder, fields)}", *words]


# The child's main thread stays in a phase, as if the machine were slow there.
STAYING = """
import os, sys, time
from set_diffusion_jax.jobs import phases
from set_diffusion_jax import __main__
enter = phases.Phases._change
def stay(self, act):
  enter(self, act)
  where = self.now
  if (where.phase, where.step) == WHERE and not os.path.exists(FILE):
    open(FILE, "w").close()
    time.sleep(600)
phases.Phases._change = stay
sys.exit(__main__.main())
"""


def staying(tmp_path, phase, words, step=None):
  """A process that stays in a phase, and the file that is there once it does."""
  file = tmp_path / "there"
  code = STAYING.replace("WHERE", repr((phase, step))).replace("FILE", repr(str(file)))
  log = tmp_path / "log"
  with log.open("w") as output:
    process = subprocess.Popen(
      [sys.executable, "-c", code, *words],
      cwd=jobs.ROOT,
      env=jobs.environment(1),
      stdout=output,
      stderr=output,
    )
  deadline = time.monotonic() + jobs.TIMEOUT
  while not file.exists():
    assert process.poll() is None, log.read_text()
    assert time.monotonic() < deadline
    time.sleep(0.05)
  return process, log


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["data", "init", "compile"])
def test_sigterm_before_the_first_step(tmp_path, phase):
  """There is nothing to save: the process ends at once, and gives its lease back."""
  words = command(tmp_path, f"--workdir={tmp_path}/run")
  process, log = staying(tmp_path, phase, words)
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == outcomes.PREEMPTED
  last = log.read_text().splitlines()[-1]
  assert last == "stopped before a step was made; the same command continues"
  job = Job(tmp_path, 1, 1, words)
  assert job.wait() == [0], job.text()
  assert "taken over" not in job.text()


@pytest.mark.slow
def test_a_step_that_hangs(tmp_path):
  """The stacks of all threads, the last figures, and 6."""
  words = command(tmp_path, f"--workdir={tmp_path}/run", "--stuck-after=10")
  process, log = staying(tmp_path, "step", words, step=3)
  assert process.wait(jobs.TIMEOUT) == outcomes.FAILED
  text = log.read_text()
  host = re.escape(socket.gethostname())
  assert re.search(
    rf"process 0 on {host}: step \(step 3\) for 1\d s; last: step 2  lo", text
  )
  assert '"<string>", line 10 in stay' in text or "in stay" in text
  last = text.splitlines()[-1]
  assert re.fullmatch(
    rf"error: process 0 on {host} is stuck: step \(step 3\) for 1\d s, more than the "
    r"10 s that this may take",
    last,
  )


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.parametrize(
  "victim, number", [(0, "SIGKILL"), (1, "SIGKILL"), (1, "SIGSEGV")]
)
def test_survivors_of_a_lost_process(tmp_path, victim, number):
  """They end with 6 and name it."""
  job = Job(
    tmp_path, 2, 1, command(tmp_path, f"--workdir={tmp_path}/run", train__steps=200)
  )
  job.reach(3)
  number = getattr(signal, number)
  job.processes[victim].send_signal(number)
  codes = job.wait()
  assert codes[victim] == -number
  assert codes[1 - victim] == outcomes.FAILED, job.text(1 - victim)
  # When process 0 is gone jax's runtime prints, too, and is stopped from aborting.
  line = rf"^error: process {victim}( on \S+)? was lost; \d+ s before"
  assert re.search(line, job.text(1 - victim), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.parametrize("victim", [0, 1])
def test_survivors_of_a_process_that_stands_still(tmp_path, victim):
  words = command(
    tmp_path, f"--workdir={tmp_path}/run", "--stuck-after=10", train__steps=200
  )
  job = Job(tmp_path, 2, 1, words)
  job.reach(3)
  job.processes[victim].send_signal(signal.SIGSTOP)
  assert job.processes[1 - victim].wait(jobs.TIMEOUT) == outcomes.FAILED
  job.kill()
  line = rf"^error: process {victim}( on \S+)? has shown no sign of life"
  assert re.search(line, job.text(1 - victim), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.jobs
def test_a_mistake_that_one_process_meets_alone(tmp_path):
  """A checkpoint that one host does not have: one line and 2 for both."""
  source = tmp_path / "source"
  job = Job(tmp_path, 1, 1, command(tmp_path, f"--workdir={source}", train__steps=2))
  assert job.wait() == [0], job.text()
  words = command(tmp_path, f"--workdir={tmp_path}/run", init_from=str(source))
  for alone in range(2):
    job = Job(
      tmp_path, 2, 1, words, {alone: [f"--config.init_from={tmp_path}/nowhere"]}
    )
    assert job.wait() == [2, 2], job.text()
    for number in range(2):
      lines = [x for x in job.text(number).splitlines() if x.startswith("error: ")]
      assert len(lines) == 1, job.text(number)


SLOW = """
import sys, time
from set_diffusion_jax import __main__
from set_diffusion_jax.jobs import clock, phases
clock.SLOW_FLOOR = 8.0  # seconds, more than from one beat to the next
enter = phases.Phases._change
def stay(self, act):
  enter(self, act)
  if (self.now.phase, self.now.step) == ("input", 5):
    time.sleep(SECONDS)
phases.Phases._change = stay
sys.exit(__main__.main())
"""


@pytest.mark.slow
@pytest.mark.jobs
def test_a_slow_process_is_named(tmp_path):
  """Once, while the others wait for it; the run goes on."""
  words = command(tmp_path, f"--workdir={tmp_path}/run", train__steps=8)
  words += [f"--coordinator=127.0.0.1:{jobs.free_port()}", "--processes=2"]
  started = []
  for number in range(2):
    code = SLOW.replace("SECONDS", str(20 * number))
    log = tmp_path / f"log-{number}"
    with log.open("w") as output:
      process = subprocess.Popen(
        [sys.executable, "-c", code, *words, f"--process={number}"],
        cwd=jobs.ROOT,
        env=jobs.environment(1),
        stdout=output,
        stderr=output,
      )
    started.append((process, log))
  for process, log in started:
    assert process.wait(jobs.TIMEOUT) == 0, log.read_text()
  lines = [x for x in started[0][1].read_text().splitlines() if "behind" in x]
  (line,) = lines
  assert re.match(
    r"WARNING: step \(step \d\) for \d+ s, the longest before took \d+\.\d s; behind "
    r"the others are process 1 on \S+ \(input \(step 5\) for \d+ s\)$",
    line,
  )


@pytest.fixture
def watched(monkeypatch):
  """The ends of a process that looks as if it were watched."""
  ends = []

  class Watching:
    def fail(self, line, code=outcomes.FAILED):
      ends.append((line, code))
      raise SystemExit(code)

  monkeypatch.setattr(watch, "_current", Watching())
  return ends


@pytest.mark.parametrize(
  "text, code, line",
  [
    (
      "RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes\nmore",
      outcomes.MISFIT,
      "error: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes; a smaller batch, "
      "train.accumulate or another mesh need less; ask plan",
    ),
    (
      "INTERNAL: a chip is gone",
      outcomes.FAILED,
      "error: a device or a peer failed: INTERNAL: a chip is gone",
    ),
  ],
  ids=["memory", "device"],
)
def test_errors_of_the_runtime(watched, text, code, line):
  def act():
    raise jax.errors.JaxRuntimeError(text)

  with pytest.raises(SystemExit):
    cli.guarded(act)
  assert watched == [(line, code)]


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.parametrize("victim", [0, 1])
def test_a_save_that_fails_in_one_process(tmp_path, victim):
  """All end with its line at once, though others wait for what it has not written."""
  words = command(tmp_path, train__steps=400, train__checkpoint_every=5)
  words += [f"--workdir={tmp_path}/run", "--processes=2"]
  words.append(f"--coordinator=127.0.0.1:{jobs.free_port()}")
  found, processes = [[], []], []
  for number in range(2):
    process = subprocess.Popen(
      [sys.executable, "-m", "set_diffusion_jax", *words, f"--process={number}"],
      cwd=jobs.ROOT,
      env=jobs.environment(1),
      stdout=subprocess.PIPE,  # a file could not be written either
      stderr=subprocess.STDOUT,
      text=True,
    )
    read = functools.partial(found[number].extend, process.stdout)
    threading.Thread(target=read, daemon=True).start()
    processes.append(process)
  deadline = time.monotonic() + jobs.TIMEOUT
  while not any(line.startswith("step 6 ") for line in found[0]):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  full = (0, resource.RLIM_INFINITY)
  resource.prlimit(processes[victim].pid, resource.RLIMIT_FSIZE, full)
  codes = [process.wait(jobs.TIMEOUT) for process in processes]
  for process in processes:
    process.stdout.close()
  assert codes == [2, 2], found
  for lines in found:
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert "File too large; steps that are whole are kept" in line


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_job_whose_outputs_are_closed(tmp_path, closed):
  """As some daemons start their programs."""
  words = command(tmp_path, f"--workdir={tmp_path}/run", train__steps=2)
  line = (
    f"exec {shlex.join([sys.executable, '-m', 'set_diffusion_jax', *words])} {closed}"
  )
  job = subprocess.run(
    ["bash", "-c", line], cwd=jobs.ROOT, env=jobs.environment(1), check=False
  )
  assert job.returncode == 0
  assert (tmp_path / "run/checkpoints/2").is_dir()


@pytest.mark.slow
def test_an_account_that_is_no_file(tmp_path):
  words = command(tmp_path, f"--workdir={tmp_path}/run", train__steps=2)
  job = Job(tmp_path, 1, 1, words)
  assert job.wait() == [0], job.text()
  file = tmp_path / "run/goodput.jsonl"
  file.unlink()
  os.mkfifo(file)
  job = Job(tmp_path, 1, 1, words)
  assert job.wait() == [2], job.text()
  assert f"error: {file}: is a pipe or a device" in job.text()
