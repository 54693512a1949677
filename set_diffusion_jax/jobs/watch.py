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
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from set_diffusion_jax.inputs import terminal
from set_diffusion_jax.jobs import ending, links, outcomes
from set_diffusion_jax.jobs.clock import Clock
from set_diffusion_jax.jobs.peers import Peer, Peers
from set_diffusion_jax.jobs.phases import PHASES, Now, here
from set_diffusion_jax.jobs.stops import Stops

_BEAT = 5.0  # seconds from one sign of life to the next
_SILENCE = 60.0  # seconds without one; jax itself waits for 100
_LINGER = 10.0  # seconds for the others to end first
_STOPPED = "stopped before a step was made; the same command continues"


class Watch:
  """The watch of this process, from `begin` to its end.

  Args:
    stuck_after: see `Clock`.
  """

  def __init__(self, stuck_after: float | None = None):
    self._clock = Clock(here, stuck_after)
    self._silence = min(_SILENCE, stuck_after or _SILENCE)
    self._selector = selectors.DefaultSelector()
    self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    self._waking, self._wake = socket.socketpair()
    self._waking.setblocking(False)
    self._wake.setblocking(False)
    self._selector.register(self._waking, selectors.EVENT_READ, self._woken)
    self._peers = Peers(self._selector, self._hear, self._lose)
    self._beaten = self._ticked = time.monotonic()
    self._stops, self._decided = Stops(), False
    self._left: int | None = None  # the code with which this process ends well
    self._leaving: int | None = None  # or badly, as it has said itself
    self._judged = False  # all are to end
    self._last_moment: float | None = None

  # What the main thread calls.

  def begin(self) -> None:
    """Starts to watch."""
    faulthandler.enable(ending.errors())  # a segmentation fault shows where
    self.hear_signals()
    threading.Thread(target=self._run, name="watch", daemon=True).start()

  def hear_signals(self) -> None:
    """Takes SIGTERM, again after a library has taken it."""
    signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    _soften_abort()

  def connect(
    self,
    process: int,
    count: int,
    invite: Callable[[dict | None], dict],
    host: str | None,
  ) -> str | None:
    """Links process 0 with the others, once they have met; why not, where that fails.

    Args:
      process: the number of this one.
      count: how many there are.
      invite: returns in all processes what process 0 gives it.
      host: a name of process 0's machine that the others know, if there is one.
    """
    self._peers.process, self._peers.count = process, count
    if process == 0:
      listener = links.Listener()
      invite(listener.invitation(host))
      self._call(lambda: self._peers.listen(listener))
      return None
    invitation = invite(None)
    link = links.connect(invitation, process)
    if link is None:
      names = ", ".join(invitation["hosts"])
      return f"{self._peers.name} cannot connect to {names}, port {invitation['port']}"
    self._call(lambda: self._peers.follow(link))
    return None

  def reached(self, step: int) -> bool:
    """Whether to stop after a step, the same in all processes; once for every step."""
    return self._stops.reached(step)

  def leave(self, code: int, line: str, agreed: bool) -> None:
    """This process is to end; returns only if it ends well.

    Args:
      code: of the exit.
      line: what was printed.
      agreed: whether all processes end in the same way.
    """
    well = code in (outcomes.DONE, outcomes.PREEMPTED)
    if self._peers.count == 1:
      if not well:
        ending.end_now(code)  # a thread that compiles is not waited for
      return
    done = threading.Event()
    first = self._peers.process == 0

    def tell():
      if well:
        self._left = code
        if not first:
          self._peers.tell({"end": code})
        done.set()
        if not self._judged:
          return
      self._leaving = code
      if first and not self._judged:
        self._judge(code, line if agreed else f"{self._peers.name}: {line}")
      if first or self._judged:
        self._peers.linger(_LINGER)
        ending.end_now(code)
      self._peers.tell({"end": code, "line": line, "agreed": agreed})
      self._last_moment = time.monotonic() + _LINGER

    self._call(tell)
    done.wait(3 * _LINGER)
    if not well:
      ending.end_now(code)

  def fail(self, line: str, code: int = outcomes.FAILED) -> NoReturn:
    """Ends after an error that may come from another process: which one is awaited."""
    if self._peers.count > 1:
      time.sleep(_BEAT)
    if not ending.claim():
      ending.wait_for_end()
    ending.say(line)
    self.leave(code, line.splitlines()[-1].removeprefix("error: "), agreed=False)
    ending.end_now(code)

  # The thread.

  def _call(self, act: Callable[[], None]) -> None:
    """Has the thread do something."""
    self._calls.put(act)
    with contextlib.suppress(BlockingIOError):  # it is awake already
      self._wake.send(b"\0")

  def _run(self) -> None:
    try:
      while True:
        for key, _ in self._selector.select(timeout=1.0):
          key.data()
        while not self._calls.empty():
          self._calls.get()()
        self._tick()
    except Exception:  # a process that nobody watches would be waited for in vain
      ending.say(traceback.format_exc())
      ending.end_now(outcomes.FAILED)

  def _woken(self) -> None:
    if signal.SIGTERM not in self._waking.recv(4096):
      return
    if self._peers.process == 0:
      self._begin_stop()
    else:
      self._peers.tell({"stop": True})

  def _tick(self) -> None:
    now = time.monotonic()
    if now - self._ticked > _BEAT:
      self._peers.excuse()
    self._ticked = now
    if self._last_moment is not None and now > self._last_moment:
      codes = (code for code in (self._left, self._leaving) if code is not None)
      ending.end_now(next(codes, outcomes.FAILED))
    if now - self._beaten > _BEAT:
      self._beaten = now
      self._clock.set_alarm(_SILENCE)
      self._peers.tell({"beat": list(here.now)})
    for peer in self._peers.silent(self._silence):
      self._lose(peer, f"has shown no sign of life for {self._silence:.0f} s")
    self._look_at_clock()

  def _look_at_clock(self) -> None:
    stuck, slow = self._clock.stuck(), self._clock.slow()
    if stuck and self._peers.process == 0:
      self._dump(f"{self._peers.name} {stuck}")
    elif stuck and self._last_moment is None:
      self._peers.tell({"stuck": f"{self._peers.name} {stuck}"})
      self._last_moment = time.monotonic() + _LINGER
    elif slow and self._peers.process == 0:
      where, line = slow
      late = ", ".join(f"{p.name} ({p.where})" for p in self._peers.behind(where)[:8])
      _say(f"WARNING: {line}{late and f'; behind the others are {late}'}")

  # Messages.

  def _hear(self, peer: Peer, message: dict) -> None:
    """What another process says; the others hear process 0 only."""
    if _is_place(message.get("beat")):
      peer.where = Now(*message["beat"])
    elif self._peers.process == 0:
      self._hear_as_first(peer, message)
    elif "pause" in message:
      self._peers.tell({"at": self._stops.pause()})
    elif "stop" in message:
      self._stop(message["stop"])
    elif "dump" in message:
      self._show_threads()
      self._end(str(message["dump"]))
    elif "ended" in message:
      self._end(str(message["line"]), int(message["ended"]))

  def _hear_as_first(self, peer: Peer, message: dict) -> None:
    if "stop" in message:
      self._begin_stop()
    elif "at" in message:
      self._stops.note(peer.number, message["at"])
    elif "stuck" in message:
      self._dump(str(message["stuck"]))
    elif "end" in message:
      peer.ended = True
      if message["end"] not in (outcomes.DONE, outcomes.PREEMPTED):
        self._end_with(peer, message["end"], str(message["line"]), message["agreed"])
    self._decide()

  # Ends.

  def _end_with(self, peer: Peer, code: int, line: str, agreed: bool) -> None:
    """All end because one has ended badly."""
    if not agreed:
      line = f"{peer.name}: {line}"
    if code not in [outcome.code for outcome in outcomes.OUTCOMES]:
      code = outcomes.FAILED  # its own error, which may not happen again
    self._judge(code, line)
    self._end(line, code)

  def _lose(self, peer: Peer, how: str = "was lost") -> None:
    """A process is gone without a word."""
    if self._peers.process != 0 and self._left is not None:
      ending.end_now(self._left)  # all is done but jax's farewell
    seconds = time.monotonic() - peer.heard
    line = f"{peer.name} {how}; {seconds:.0f} s before it was in {peer.where.phase}"
    if self._peers.process == 0:
      self._judge(outcomes.FAILED, line)
    self._end(line)

  def _judge(self, code: int, line: str) -> None:
    """Process 0 tells the others how all end."""
    self._judged = True
    self._peers.tell({"ended": code, "line": line}, also_ended=True)

  def _end(self, line: str, code: int = outcomes.FAILED) -> None:
    """This process ends because of another one; process 0 as the last."""
    self._judged = True
    for own in (self._left, self._leaving):
      if own is not None:  # it has said how it ends
        self._peers.linger(_LINGER)
        ending.end_now(own)
    if not ending.claim():
      return  # the main thread has just found a reason of its own, and will leave
    _say(f"error: {line}")
    self._peers.linger(_LINGER)
    ending.end_now(code)

  def _dump(self, line: str) -> None:
    """All show what they are doing, and end."""
    self._peers.tell({"dump": line})
    self._show_threads()
    self._end(line)

  def _show_threads(self) -> None:
    note = f"; last: {here.note}" if here.note else ""
    _say(f"{self._peers.name}: {here.now}{note}")
    faulthandler.dump_traceback(ending.errors(), all_threads=True)

  # Stops.

  def _begin_stop(self) -> None:
    """Process 0, or one that is alone, was asked to stop."""
    if self._stops.begin():
      self._peers.tell({"pause": True})
      self._decide()

  def _decide(self) -> None:
    """Process 0 says when all stop, once it knows where they are."""
    waits = self._stops.missing({peer.number for peer in self._peers.there})
    if self._decided or waits or not self._peers.complete:
      return
    self._decided = True
    step = self._stops.decide()
    self._peers.tell({"stop": step})
    self._stop(step)

  def _stop(self, step: int | None) -> None:
    if step is not None:
      self._stops.settle(step)
    elif self._left is None and ending.claim():
      _say(_STOPPED)
      self._peers.linger(_LINGER)
      ending.end_now(outcomes.PREEMPTED)


def _say(line: str) -> None:
  ending.say(terminal.line(line))


def _is_place(value) -> bool:
  """Whether a message says where a process is."""
  if not isinstance(value, list) or len(value) != 3:
    return False
  phase, seconds, step = value
  known = phase in PHASES and isinstance(seconds, int | float)
  return known and (step is None or isinstance(step, int))


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
