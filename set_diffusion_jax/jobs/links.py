"""Connections between process 0 of a job and each other one: JSON lines over TCP.

The messages are small and few. Whoever connects must know a word that only the
processes of the job share.
"""

import contextlib
import hmac
import json
import secrets
import socket
import time

_LONGEST = 64 * 1024  # bytes of a message
_SECONDS = 5.0  # to send or to connect


class Link:
  """One connection. A fault of it is the same as its end."""

  def __init__(self, connection: socket.socket):
    connection.settimeout(_SECONDS)
    self.socket = connection
    self._waiting = b""

  def send(self, message: dict) -> None:
    """Sends a message, if the other end is there."""
    with contextlib.suppress(OSError):  # its end is noticed by `receive`
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> list[dict] | None:
    """What has come, to be asked when there is something; None at the end."""
    try:
      found = self.socket.recv(_LONGEST)
    except TimeoutError:
      return []
    except OSError:
      found = b""
    if not found:
      return None
    *lines, self._waiting = (self._waiting + found).split(b"\n")
    if len(self._waiting) > _LONGEST:
      return None
    try:
      messages = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
      return None
    return messages if all(isinstance(m, dict) for m in messages) else None

  def close(self) -> None:
    """Ends the connection."""
    self.socket.close()


class Listener:
  """Where process 0 waits for the others.

  Attributes:
    socket: is readable when somebody knocks.
  """

  def __init__(self):
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    self.socket = socket.create_server(
      ("", 0), family=family, backlog=4096, dualstack_ipv6=both
    )
    self.socket.setblocking(False)  # who knocked may be gone again
    self._word = secrets.token_hex(16)

  def invitation(self, host: str | None) -> dict:
    """What the others need to connect.

    Args:
      host: a name of this machine that the others know, if there is one.
    """
    names = [host] if host else []
    names += [socket.gethostname(), socket.getfqdn()]
    port = self.socket.getsockname()[1]
    return {"hosts": list(dict.fromkeys(names)), "port": port, "word": self._word}

  def accept(self) -> Link | None:
    """A link to who knocked, who has not said yet who that is; None if it is gone."""
    try:
      connection, _ = self.socket.accept()
    except OSError:  # of too many open files, too
      time.sleep(0.05)
      return None
    return Link(connection)

  def greet(self, hello: dict) -> tuple[int, str] | None:
    """The number and the host of who says hello; None for a stranger."""
    word, process = hello.get("word"), hello.get("process")
    text = isinstance(word, str) and word.isascii()
    known = text and hmac.compare_digest(word, self._word)
    if not known or type(process) is not int:
      return None
    return process, str(hello.get("host"))


def connect(invitation: dict, process: int) -> Link | None:
  """A link to process 0; None if it cannot be reached."""
  for host in invitation["hosts"]:
    try:
      link = Link(socket.create_connection((host, invitation["port"]), _SECONDS))
    except OSError:
      continue
    link.send(
      {"word": invitation["word"], "process": process, "host": socket.gethostname()}
    )
    return link
  return None
