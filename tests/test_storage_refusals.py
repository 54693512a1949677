"""What a store refuses is one line, before anything else is done."""

import os
import subprocess
import sys

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


@pytest.mark.parametrize(
  ("code", "says"),
  [
    (401, "does not know these credentials (401): gcloud auth application-default"),
    (403, "may not do this (403): the role objectViewer reads"),
    (400, "the store answered no, 400"),
  ],
)
def test_a_refused_request(code, says):
  with buckets.answering(code) as address:
    line = said(address)
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
