"""The lease of a work directory in a bucket."""

import json
import threading
import time

import pytest

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage import lease as module
from set_diffusion_jax.storage import places
from set_diffusion_jax.storage.lease import Lease, holds
from tests import buckets


@pytest.fixture
def workdir():
  return places.path(buckets.fresh())


def change(workdir, **fields):
  """Changes what the lease says; by the clock of the store it is fresh."""
  (file,) = files(workdir)
  said = json.loads(places.read_bytes(file))
  places.write_text(file, json.dumps({**said, **fields}))


def files(workdir):
  folder = workdir / module.FOLDER
  return [folder / name for name in places.names(folder)]


def test_given_back_and_taken_again(workdir):
  for number in (1, 2):
    lease = Lease(workdir)
    assert lease.take() is None
    assert holds(workdir, lease.nonce)
    assert files(workdir) == [workdir / module.FOLDER / f"{number}.json"]
    with pytest.raises(UserError, match=rf"^--workdir={workdir}: is held by another"):
      Lease(workdir).take()
    lease.check()
    lease.release()
    assert not holds(workdir, lease.nonce)


def test_taken_over_from_what_is_gone(workdir):
  """From this machine at once; from another once it is silent, by the store's clock."""
  first = Lease(workdir)
  first.take()
  change(workdir, pid=2**22 + 1)
  second = Lease(workdir)
  assert second.take().endswith("which is gone")
  with pytest.raises(UserError, match="another run has taken it over from this one"):
    first.check()
  first.release()
  change(workdir, machine="another boot")
  with pytest.raises(UserError, match="after 600 s without a sign of life"):
    Lease(workdir).take()
  time.sleep(0.01)
  third = Lease(workdir, 0.0)
  assert "which has not been heard of for 0 s" in third.take()
  third.check()
  third.release()
  second.release()
  assert len(files(workdir)) == 1


def test_a_holder_shows_itself(workdir, monkeypatch):
  monkeypatch.setattr(module, "HEARTBEAT", 0.02)
  lease = Lease(workdir)
  lease.take()
  (file,) = files(workdir)
  before = places.modified(file)
  deadline = time.monotonic() + 60
  while places.modified(file) == before:
    assert time.monotonic() < deadline
  lease.check()
  lease.release()
  assert places.read_bytes(file) == b"{}\n"


@pytest.mark.parametrize("given_back", [False, True])
def test_a_heartbeat_that_comes_too_late_does_no_harm(workdir, monkeypatch, given_back):
  """Another run takes over after the first has looked and before it writes."""
  first, second, write = Lease(workdir), Lease(workdir), places.write_text
  late, over = [], threading.Event()

  def after_a_takeover(file, content):
    if late or first.nonce not in content:
      write(file, content)
      return
    late.append(file)
    change(workdir, pid=2**22 + 1)
    assert second.take().endswith("which is gone")
    write(file, content)  # there again, below the number of the second
    over.set()

  monkeypatch.setattr(module, "HEARTBEAT", 0.02)
  monkeypatch.setattr(places, "write_text", after_a_takeover)
  first.take()
  assert over.wait(60)
  assert len(files(workdir)) == 2
  if given_back:
    second.release()
  with pytest.raises(UserError, match="another run has taken it over from this one"):
    first.check()
  first.release()
  if given_back:
    second = Lease(workdir)
    assert second.take() is None
  second.check()
  with pytest.raises(UserError, match="is held by another run"):
    Lease(workdir).take()
  second.check()
  second.release()
