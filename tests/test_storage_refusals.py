"""What a store refuses is one line, before anything else is done."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from tests import buckets, jobs

CODE = """
import sys
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import places
if "no gcsfs" in sys.argv:
  sys.modules["gcsfs"] = None
if "no credentials" in sys.argv:
  import fsspec, google.auth.exceptions
  def refuse(*arguments, **options):
    raise google.auth.exceptions.DefaultCredentialsError("none found")
  fsspec.filesystem = refuse
try:
  places.reach(places.path("gs://runs/x"), "--workdir")
except UserError as error:
  print(error)
"""


def said(address, *words):
  """What a process says that asks a store at an address."""
  buckets.server()
  done = subprocess.run(
    [sys.executable, "-c", CODE, *words],
    cwd=jobs.ROOT,
    env={**os.environ, "STORAGE_EMULATOR_HOST": address},
    capture_output=True,
    text=True,
    timeout=jobs.TIMEOUT,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("\n") == 1
  return done.stdout.strip()


@pytest.fixture
def refusing():
  """The address of a server that answers every request with a code."""
  servers = []

  def start(code):
    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        content = json.dumps({"error": {"code": code, "message": "no"}}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

      def log_message(self, *arguments):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    servers.append(server)
    return f"http://127.0.0.1:{server.server_port}"

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
  ("code", "says"),
  [
    (401, "does not know these credentials (401): gcloud auth application-default"),
    (403, "may not do this (403): the role objectViewer reads"),
    (400, "the store answered no, 400"),
  ],
)
def test_a_refused_request(refusing, code, says):
  line = said(refusing(code))
  assert line.startswith("--workdir=gs://runs/x: ") and says in line


def test_no_package():
  line = said("http://127.0.0.1:9", "no gcsfs")
  assert line.startswith("--workdir=gs://runs/x: ")
  assert "pip install 'set_diffusion_jax[gcs]'" in line


def test_no_credentials():
  line = said("http://127.0.0.1:9", "no credentials")
  assert "no credentials that Google takes were found: gcloud auth" in line


def test_no_network():
  line = said(f"http://127.0.0.1:{jobs.free_port()}")
  assert line.startswith("--workdir=gs://runs/x: the store cannot be reached")
