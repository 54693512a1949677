"""The other processes of a job, as one of them knows them through its links.

Process 0 is linked with each other one, and hears all; the others hear process 0.
"""

import dataclasses
import functools
import selectors
import socket
import time
from collections.abc import Callable

from set_diffusion_jax.jobs import links
from set_diffusion_jax.jobs.phases import PHASES, Now


@dataclasses.dataclass
class Peer:
  """What is known of another process.

  Attributes:
    number: of the process.
    host: where it runs, as it says; empty of process 0.
    link: to it.
    heard: when it was last heard, by time.monotonic.
    where: what it was doing then.
    ended: whether it has said that it ends, or is gone.
  """

  number: int
  host: str
  link: links.Link
  heard: float = dataclasses.field(default_factory=time.monotonic)
  where: Now = dataclasses.field(default_factory=lambda: Now("start", 0.0, None))
  ended: bool = False

  @property
  def name(self) -> str:
    """As it is said in a line."""
    return process_name(self.number, self.host)


def process_name(number: int, host: str) -> str:
  """As a process is named in a line."""
  return f"process {number} on {host}" if host else f"process {number}"


class Peers:
  """The peers of this process, and what they say.

  Attributes:
    process: the number of this one.
    count: how many there are, this one among them.

  Args:
    selector: waits for what the peers say; whoever uses it calls what it finds.
    hear: is called with a peer and each of its messages.
    lose: is called with a peer that is gone without having said that it ends.
  """

  def __init__(
    self,
    selector: selectors.BaseSelector,
    hear: Callable[[Peer, dict], None],
    lose: Callable[[Peer], None],
  ):
    self._selector, self._hear, self._lose = selector, hear, lose
    self._known: dict[int, Peer] = {}
    self.process, self.count = 0, 1

  def listen(self, listener: links.Listener) -> None:
    """Process 0 lets the others come, until all are there.

    Who knocks and says nothing is not waited for.
    """
    strangers: list[links.Link] = []

    def greet(link: links.Link):
      self._selector.unregister(link.socket)
      strangers.remove(link)
      found = None
      for message in link.receive() or []:
        if found is None:
          found = listener.greet(message)
      number, host = found or (0, "")
      if 0 < number < self.count and number not in self._known:
        self._add(Peer(number, host, link))
      else:
        link.close()
      if self.complete:
        for found in (*(stranger.socket for stranger in strangers), listener.socket):
          self._selector.unregister(found)
          found.close()

    def knocked():
      link = listener.accept()
      if link is not None:
        strangers.append(link)
        read = functools.partial(greet, link)
        self._selector.register(link.socket, selectors.EVENT_READ, read)

    self._selector.register(listener.socket, selectors.EVENT_READ, knocked)

  def follow(self, link: links.Link) -> None:
    """Another process is linked with process 0."""
    self._add(Peer(0, "", link))

  def _add(self, peer: Peer) -> None:
    self._known[peer.number] = peer
    read = lambda: self._read(peer)
    self._selector.register(peer.link.socket, selectors.EVENT_READ, read)

  def _read(self, peer: Peer) -> None:
    messages = peer.link.receive()
    if messages is None:
      self._selector.unregister(peer.link.socket)
      peer.link.close()
      if not peer.ended:
        peer.ended = True
        self._lose(peer)
      return
    peer.heard = time.monotonic()
    for message in messages:
      self._hear(peer, message)

  @property
  def name(self) -> str:
    """Of this process."""
    return process_name(self.process, socket.gethostname())

  @property
  def there(self) -> list[Peer]:
    """Those that have not ended."""
    return [peer for peer in self._known.values() if not peer.ended]

  @property
  def complete(self) -> bool:
    """Whether process 0 has heard of all others."""
    return len(self._known) == self.count - 1

  def tell(self, message: dict, also_ended: bool = False) -> None:
    """Sends a message to process 0, or from there to all others that are there."""
    for peer in list(self._known.values()) if also_ended else self.there:
      peer.link.send(message)

  def excuse(self) -> None:
    """This process stood still itself: the silence of the others is its own."""
    for peer in self._known.values():
      peer.heard = time.monotonic()

  def silent(self, seconds: float) -> list[Peer]:
    """Those that have not been heard for so long."""
    now = time.monotonic()
    return [peer for peer in self.there if now - peer.heard > seconds]

  def behind(self, here: Now) -> list[Peer]:
    """Those that have not come as far as the one that is farthest."""
    order = lambda where: (where.step or 0, PHASES.index(where.phase))
    last = max(map(order, (here, *(peer.where for peer in self.there))))
    return [peer for peer in self.there if order(peer.where) < last]

  def linger(self, seconds: float) -> None:
    """Waits for the others to end: jax's runtime aborts where process 0 is gone."""
    until = time.monotonic() + seconds
    for peer in self._known.values() if self.process == 0 else ():
      while time.monotonic() < until and peer.link.receive() is not None:
        time.sleep(0.01)
