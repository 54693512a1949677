"""The watch of a process: signals, the other processes of its job, and the clock.

One thread of each process listens, whatever the main thread is doing: to SIGTERM, to
process 0 (process 0 to all others), and to how long the present phase has taken.

- A process that ends badly says so, and all end with its code and line. One that dies
  is known by its connection, one that is silent by the clock: the others end with
  `outcomes.FAILED`.
- SIGTERM of one is that of all. Before the first step there is nothing to save, and all
  end at once. Later they agree on the step after which all of them save and end.
- A phase that takes longer than its limit: all show what their threads are doing, and
  end with `outcomes.FAILED`.
"""

import contextlib
import ctypes
import faulthandler
import queue
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from set_diffusion_jax.inputs import terminal
from set_diffusion_jax.jobs import ending, links, outcomes
from set_diffusion_jax.jobs.limits import Limits
from set_diffusion_jax.jobs.phases import PHASES, here
from set_diffusion_jax.jobs.stops import Stops

_BEAT = 5.0  # seconds from one sign of life to the next
_SILENCE = 60.0  # seconds without one; jax itself waits for 100
_LINGER = 10.0  # seconds for the others to end first
_STOPPED = "stopped before a step was made; the same command continues"


class _Peer:
  """What process 0 knows of another one."""

  def __init__(self, host: str, link: links.Link):
    self.host, self.link = host, link
    self.heard = time.monotonic()
    self.ended = False  # it has said that it ends well
    self.where = ["start", 0.0, None]  # see `_place`


class Watch:
  """The watch of this process, from `begin` to its end.

  Args:
    stuck_after: see `Limits`.
  """

  def __init__(self, stuck_after: float | None = None):
    self._limits = Limits(here, stuck_after)
    self._silence = min(_SILENCE, stuck_after or _SILENCE)
    self._selector = selectors.DefaultSelector()
    self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    self._waking, self._wake = socket.socketpair()
    self._waking.setblocking(False)
    self._wake.setblocking(False)
    self._selector.register(self._waking, selectors.EVENT_READ, self._woken)
    self._first: links.Link | None = None  # to process 0, in all others
    self._peers: dict[int, _Peer] = {}  # in process 0
    self._process, self._count = 0, 1
    self._heard = self._beaten = self._ticked = time.monotonic()
    self._told: tuple[str, int | None] | None = None
    self._stops = Stops()
    self._decided = False
    self._left: int | None = None  # the code with which this process ends well
    self._leaving: int | None = None  # or badly, as it has said itself
    self._judged = False  # all are to end
    self._last_moment: float | None = None

  # What the main thread calls.

  def begin(self) -> None:
    """Starts to watch."""
    faulthandler.enable()  # a segmentation fault shows where
    self.hear_signals()
    threading.Thread(target=self._run, name="watch", daemon=True).start()

  def hear_signals(self) -> None:
    """Takes SIGTERM, again after a library has taken it."""
    signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    _soften_abort()

  def connect(
    self, process: int, count: int, invite: Callable[[dict | None], dict], host
  ) -> None:
    """Links process 0 with the others, once they have met.

    Args:
      process: the number of this one.
      count: how many there are.
      invite: returns in all processes what process 0 gives it.
      host: a name of process 0's machine that the others know, if there is one.
    """
    self._process, self._count = process, count
    if process == 0:
      listener = links.Listener()
      invite(listener.invitation(host))
      self._calls.put(lambda: self._listen(listener))
    else:
      invitation = invite(None)
      link = links.connect(invitation, process)
      if link is None:
        where = f"port {invitation['port']} of process 0"
        say(f"WARNING: process {process} cannot connect to {where}: a loss shows late")
        return
      self._calls.put(lambda: self._follow(link))
    self._wake_up()

  def reached(self, step: int) -> bool:
    """Whether to stop after a step, the same in all processes; once for every step."""
    return self._stops.reached(step)

  def leave(self, code: int, line: str, agreed: bool) -> None:
    """This process is to end; does not return where others would wait for it.

    Args:
      code: of the exit.
      line: what was printed.
      agreed: whether all processes end in the same way.
    """
    if self._count == 1:
      return
    done = threading.Event()
    well = code in (outcomes.DONE, outcomes.PREEMPTED)

    def tell():
      if well:
        self._left = code
        self._to_first({"end": code})
        done.set()
        if not self._judged:
          return
      self._leaving = code
      if self._first is None and not self._judged:
        self._judge(code, line if agreed else f"{self._name(0)}: {line}")
      if self._first is None or self._judged:
        self._linger()
        ending.end_now(code)
      self._to_first({"end": code, "line": line, "agreed": agreed})
      self._last_moment = time.monotonic() + _LINGER

    self._calls.put(tell)
    self._wake_up()
    done.wait(3 * _LINGER)
    if not well:
      ending.end_now(code)

  def fail(self, line: str, code: int = outcomes.FAILED) -> NoReturn:
    """Ends after an error that may come from another process: which one is awaited."""
    if self._count > 1:
      time.sleep(_BEAT)
    if not ending.claim():
      ending.wait_for_end()
    print(line, file=sys.stderr, flush=True)
    self.leave(code, line, agreed=False)
    ending.end_now(code)

  # The thread.

  def _run(self) -> None:
    while True:
      for key, _ in self._selector.select(timeout=1.0):
        key.data()
      while not self._calls.empty():
        self._calls.get()()
      self._tick()

  def _wake_up(self) -> None:
    with contextlib.suppress(BlockingIOError):  # it is awake already
      self._wake.send(b"\0")

  def _woken(self) -> None:
    if signal.SIGTERM in self._waking.recv(4096):
      self._to_first({"stop": True}) if self._process else self._begin_stop()

  def _tick(self) -> None:
    now = time.monotonic()
    if now - self._ticked > _BEAT:  # this process stood still, its peers may not have
      self._heard = now
      for peer in self._peers.values():
        peer.heard = now
    self._ticked = now
    if self._last_moment is not None and now > self._last_moment:
      codes = (code for code in (self._left, self._leaving) if code is not None)
      ending.end_now(next(codes, outcomes.FAILED))
    if now - self._beaten > _BEAT:
      self._beaten = now
      self._set_alarm()
      self._to_first({"beat": _place()})
      self._to_all({"beat": None})
    for number, peer in self._peers.items():
      if not peer.ended and now - peer.heard > self._silence:
        self._lost(number, f"has shown no sign of life for {self._silence:.0f} s")
    if self._first is not None and now - self._heard > self._silence:
      self._end(f"process 0 has shown no sign of life for {self._silence:.0f} s")
    self._look_at_clock()

  def _look_at_clock(self) -> None:
    phase, seconds, step = here.now
    limit, slow = self._limits.stuck(phase), self._limits.slow(phase)
    if limit is not None and seconds > limit:
      line = f"process {self._process} is stuck: {_described(_place())}, more than the "
      line += f"{limit:.0f} s that this may take"
      if self._first is not None:
        self._to_first({"stuck": line})
        self._last_moment = self._last_moment or time.monotonic() + _LINGER
      else:
        self._dump(line)
    elif slow is not None and seconds > slow and self._told != (phase, step):
      self._told = phase, step
      usual = f"the longest before took {here.longest(phase):.1f} s"
      if self._process == 0:
        say(f"WARNING: {_described(_place())}, {usual}{self._behind()}")

  def _set_alarm(self) -> None:
    """Has the process ended where a hang of its main thread stops this thread, too."""
    phase, seconds, _ = here.now
    limit = self._limits.stuck(phase)
    if limit is None:
      faulthandler.cancel_dump_traceback_later()
    else:
      left = max(limit - seconds, 0.0) + _SILENCE
      faulthandler.dump_traceback_later(left, exit=True)

  def _behind(self) -> str:
    """Which processes the others wait for."""
    places = {0: _place(), **{n: peer.where for n, peer in self._peers.items()}}
    order = lambda place: (place[2] or 0, PHASES.index(place[0]))
    last = max(map(order, places.values()))
    late = [n for n, place in places.items() if order(place) < last]
    if not late or len(places) == 1:
      return ""
    named = (f"{self._name(n)} ({_described(places[n])})" for n in late[:8])
    return f"; behind the others are {', '.join(named)}"

  def _name(self, number: int) -> str:
    host = self._peers[number].host if number in self._peers else socket.gethostname()
    return f"process {number} on {host}"

  # Messages.

  def _to_first(self, message: dict) -> None:
    if self._first is not None:
      self._first.send(message)

  def _to_all(self, message: dict) -> None:
    for peer in self._peers.values():
      if not peer.ended:
        peer.link.send(message)

  def _listen(self, listener: links.Listener) -> None:
    def knocked():
      found = listener.accept()
      if found is None:
        return
      number, host, link = found
      if not 0 < number < self._count or number in self._peers:
        link.close()
        return
      peer = self._peers[number] = _Peer(host, link)
      read = lambda: self._hear(number, peer)
      self._selector.register(link.socket, selectors.EVENT_READ, read)

    self._selector.register(listener.socket, selectors.EVENT_READ, knocked)

  def _hear(self, number: int, peer: _Peer) -> None:
    """Process 0 hears another one."""
    messages = peer.link.receive()
    if messages is None:
      self._selector.unregister(peer.link.socket)
      peer.link.close()
      if not peer.ended:
        peer.ended = True
        self._lost(number, "was lost")
      return
    peer.heard = time.monotonic()
    for message in messages:
      if isinstance(message.get("beat"), list):
        peer.where = message["beat"]
      elif "stop" in message:
        self._begin_stop()
      elif "at" in message:
        self._stops.note(number, message["at"])
      elif "stuck" in message:
        self._dump(str(message["stuck"]))
      elif "end" in message:
        peer.ended = True
        self._peer_ended(number, message)
      self._decide()

  def _follow(self, link: links.Link) -> None:
    self._first = link
    self._heard = time.monotonic()
    self._selector.register(link.socket, selectors.EVENT_READ, self._hear_first)

  def _hear_first(self) -> None:
    """Another process hears process 0."""
    messages = self._first.receive()
    if messages is None:
      self._selector.unregister(self._first.socket)
      self._first = None
      if self._left is None:
        self._end("process 0 was lost")
      else:
        self._last_moment = time.monotonic() + _LINGER  # it may still say good-bye
      return
    self._heard = time.monotonic()
    for message in messages:
      if "pause" in message:
        self._to_first({"at": self._stops.pause()})
      elif "stop" in message:
        self._stop(message["stop"])
      elif "dump" in message:
        self._show_threads()
        self._end(str(message["dump"]))
      elif "ended" in message:
        self._end(str(message["line"]), int(message["ended"]))

  # Ends.

  def _peer_ended(self, number: int, message: dict) -> None:
    code = message["end"]
    if code in (outcomes.DONE, outcomes.PREEMPTED):
      return
    line = str(message["line"])
    if not message["agreed"]:
      line = f"{self._name(number)}: {line}"
    table = [outcome.code for outcome in outcomes.OUTCOMES]
    if code not in table:  # the error is its own, and may not happen again
      code = outcomes.FAILED
    self._judge(code, line)
    self._end(line, code)

  def _lost(self, number: int, how: str) -> None:
    """Another process is gone without a word."""
    peer = self._peers[number]
    before = time.monotonic() - peer.heard
    line = (
      f"{self._name(number)} {how}; {before:.0f} s before it was in {peer.where[0]}"
    )
    self._judge(outcomes.FAILED, line)
    self._end(line)

  def _judge(self, code: int, line: str) -> None:
    """Process 0 tells the others how all end."""
    self._judged = True
    for peer in self._peers.values():
      peer.link.send({"ended": code, "line": line})

  def _end(self, line: str, code: int = outcomes.FAILED) -> None:
    """This process ends because of another one; process 0 as the last."""
    self._judged = True
    for own in (self._left, self._leaving):
      if own is not None:  # it has said how it ends
        self._linger()
        ending.end_now(own)
    if not ending.claim():
      return  # the main thread has just found a reason of its own, and will leave
    print(f"error: {terminal.line(line)}", file=sys.stderr, flush=True)
    self._linger()
    ending.end_now(code)

  def _linger(self) -> None:
    """Waits for the others to end: jax's runtime aborts where process 0 is gone."""
    until = time.monotonic() + _LINGER
    for peer in self._peers.values():
      while time.monotonic() < until and peer.link.receive() is not None:
        time.sleep(0.01)

  def _dump(self, line: str) -> None:
    """All show what they are doing, and end."""
    self._to_all({"dump": line})
    self._show_threads()
    self._end(line)

  def _show_threads(self) -> None:
    where = _described(_place())
    note = f"; {here.note}" if here.note else ""
    print(f"process {self._process}: {where}{note}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)

  # Stops.

  def _begin_stop(self) -> None:
    """Process 0, or one that is alone, was asked to stop."""
    if self._stops.begin():
      self._to_all({"pause": True})
      self._decide()

  def _decide(self) -> None:
    """Process 0 says when all stop, once it knows where they are."""
    here_still = {n for n, peer in self._peers.items() if not peer.ended}
    met = len(self._peers) == self._count - 1
    if self._decided or not met or self._stops.missing(here_still):
      return
    self._decided = True
    step = self._stops.decide()
    self._to_all({"stop": step})
    self._stop(step)

  def _stop(self, step: int | None) -> None:
    if step is not None:
      self._stops.settle(step)
    elif self._left is None and ending.claim():
      say(_STOPPED)
      self._linger()
      ending.end_now(outcomes.PREEMPTED)


def say(line: str) -> None:
  """Prints a line of news."""
  print(terminal.line(line), file=sys.stderr, flush=True)


def _place() -> list:
  """Where this process is, as it is sent."""
  phase, seconds, step = here.now
  return [phase, seconds, step]


def _described(place: list) -> str:
  phase, seconds, step = place
  step = "" if step is None else f" (step {step})"
  return f"{phase}{step} for {seconds:.0f} s"


def _soften_abort() -> None:
  """Gives the watch time to end a process that jax's runtime aborts in a C++ thread.

  It does so when process 0 is gone, just when this thread notices it as well. The
  handler of SIGABRT, for one time, is the C function `sleep`, which gets the number of
  the signal, 6, as its seconds; afterwards the abort goes on.
  """
  library = ctypes.CDLL(None)
  handle = getattr(library, "sysv_signal", None)
  if handle is not None:  # of Linux
    handle.argtypes, handle.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handle(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


_current: Watch | None = None


def begin(stuck_after: float | None = None) -> Watch:
  """Starts the watch of this process."""
  global _current
  _current = Watch(stuck_after)
  _current.begin()
  return _current


def current() -> Watch | None:
  """The watch of this process; None where it was not begun, as in other programs."""
  return _current
