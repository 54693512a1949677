"""A proxy in front of a server of HTTP that spoils the requests it is told to."""

import http.client
import http.server
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple

STALL = 2.0  # seconds
# "reset" never reaches the server; of "lost" the server has done what was asked.
FAULTS = ("429", "500", "503", "reset", "lost", "stall")
_OF_ONE_CONNECTION = ("connection", "transfer-encoding", "content-length", "keep-alive")


class Request(NamedTuple):
  """What was asked for.

  Attributes:
    method: such as "GET".
    text: the path and the query, and the start of an upload, which names its object.
  """

  method: str
  text: str


class Once:
  """A judge that spoils the first request of each of several kinds.

  Args:
    fault: one of FAULTS.
    kinds: a method, and a regular expression of what is in the text of a request.

  Attributes:
    left: the kinds of which there was no request so far.
  """

  def __init__(self, fault: str, kinds: list[tuple[str, str]]):
    self._fault, self.left = fault, list(kinds)
    self._lock = threading.Lock()

  def __call__(self, request: Request) -> str | None:
    with self._lock:
      for kind in self.left:
        if kind[0] == request.method and re.search(kind[1], request.text, re.DOTALL):
          self.left.remove(kind)
          return self._fault
    return None


class Proxy:
  """Listens at `url`, until the process ends, and passes requests on to `server`.

  Args:
    server: "http://HOST:PORT".
    judge: is told each request before it is passed on; returns one of FAULTS, or
      nothing for one that is to be passed on as it is. Several threads may call it.
  """

  def __init__(self, server: str, judge: Callable[[Request], str | None]):
    self._server, self._judge = server, judge
    # Google's service tells again how an upload in parts ended; fake-gcs-server has
    # forgotten it.
    self._lost: dict[str, tuple[int, dict, bytes]] = {}
    self._listener = _Listener(("127.0.0.1", 0), _handler(self))
    self.url = f"http://127.0.0.1:{self._listener.server_port}"
    threading.Thread(target=self._listener.serve_forever, daemon=True).start()

  def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
    """Answers one request of a client."""
    body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    start = body[:1000].decode(errors="replace") if "/upload/" in handler.path else ""
    text = urllib.parse.unquote(handler.path) + start
    fault = self._judge(Request(handler.command, text))
    if fault == "stall":
      time.sleep(STALL)
    if fault and fault.isdecimal():
      error = {"code": int(fault), "message": "in a moment"}
      _send(handler, int(fault), {}, json.dumps({"error": error}).encode())
    elif fault == "reset":
      _reset(handler)
    else:
      answer = self._lost.pop(handler.path, None) or self._pass_on(handler, body)
      if fault == "lost":
        if "upload_id=" in handler.path:
          self._lost[handler.path] = answer
        _reset(handler)
      else:
        _send(handler, *answer)

  def _pass_on(self, handler, body: bytes) -> tuple[int, dict, bytes]:
    """Status, headers and content of what the server answers."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(self._server).netloc)
    headers = _kept(handler.headers)
    connection.request(handler.command, handler.path, body, headers)
    response = connection.getresponse()
    content, found = response.read(), _kept(response.headers)
    connection.close()
    if "Location" in found:  # of an upload in parts
      found["Location"] = found["Location"].replace(self._server, self.url)
    return response.status, found, content


class _Listener(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def shutdown_request(self, request) -> None:
    self.close_request(request)  # without the farewell that a reset does not have

  def handle_error(self, request, client_address) -> None:
    pass  # a client that was killed


def _handler(proxy: Proxy) -> type:
  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
      proxy.answer(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *arguments):
      pass

  return Handler


def _kept(headers) -> dict:
  return {k: v for k, v in headers.items() if k.lower() not in _OF_ONE_CONNECTION}


def _send(handler, status: int, headers: dict, content: bytes) -> None:
  handler.send_response_only(status)
  for name, value in headers.items():
    handler.send_header(name, value)
  handler.send_header("Content-Length", str(len(content)))
  handler.end_headers()
  if handler.command != "HEAD":
    handler.wfile.write(content)


def _reset(handler) -> None:
  """Ends a connection as a host does that has forgotten it."""
  linger = struct.pack("ii", 1, 0)
  handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
  handler.close_connection = True
