"""A step that cannot be read is not a damaged one."""

import errno
import os
import pathlib

import orbax.checkpoint as ocp
import pytest

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.jobs import processes
from set_diffusion_jax.storage import faults
from set_diffusion_jax.storage.checkpoint import Checkpoints
from set_diffusion_jax.storage.faults import retried, unread
from set_diffusion_jax.storage.saved import DamagedError
from set_diffusion_jax.training.train import Run, train
from tests.test_train import config


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
  monkeypatch.setattr(faults, "PAUSES", (0.0,) * 3)


def fault(number):
  return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
  "error",
  [
    *map(fault, (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN)),
    ValueError('UNKNOWN: Error reading "d/1" [OS error 116: ESTALE Stale handle]'),
    ValueError("UNAVAILABLE: the service is busy"),
  ],
)
@pytest.mark.parametrize("times", [1, 3, 4])
def test_a_passing_fault_is_tried_again(error, times):
  failing = [error] * times

  def act():
    if failing:
      raise failing.pop()
    return "read"

  if times > 3:
    with pytest.raises(type(error)) as raised:
      retried(act)
    assert unread(raised.value) is not None
  else:
    assert retried(act) == "read"


def test_what_says_something_about_bytes_and_what_does_not():
  assert unread(fault(errno.EMFILE)) == "Too many open files"
  assert unread(fault(errno.EACCES)) == "Permission denied"
  assert unread(MemoryError()) == "out of memory"
  for error in (
    fault(errno.ENOENT),
    ValueError("DATA_LOSS: checksum of a chunk"),
    ValueError("NOT_FOUND: d/1"),
  ):
    assert unread(error) is None
  calls = []
  with pytest.raises(FileNotFoundError):
    retried(lambda: calls.append(1) or open("/nowhere/at/all"))  # noqa: SIM115
  assert len(calls) == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run with the steps 2 and 4, and its parts."""
  folder = tmp_path_factory.mktemp("saved")
  c = config(folder, train__steps=4, train__keep_latest=3)
  train(c, folder / "run")
  return Checkpoints(folder / "run" / "checkpoints"), Run.build(c)


def failing(monkeypatch, times, of, name, wanted):
  """Makes a method raise ESTALE the first times that it is called for a path."""
  real, left = getattr(of, name), [times]

  def read(self, *args, **kwargs):
    if wanted in str(args[0] if args else self) and left[0]:
      left[0] -= 1
      raise fault(errno.ESTALE)
    return real(self, *args, **kwargs)

  monkeypatch.setattr(of, name, read)


@pytest.mark.slow
@pytest.mark.parametrize(
  "reader",
  [
    (pathlib.Path, "read_bytes", "4/meta"),
    (ocp.StandardCheckpointHandler, "restore", "4/state"),
    (ocp.JsonCheckpointHandler, "restore", "4/data"),
  ],
)
def test_a_step_that_cannot_be_read_stays_where_it_is(saved, monkeypatch, reader):
  checkpoints, run = saved
  newest = lambda: checkpoints.restore_newest(run.abstract_state(), run.batches())
  with monkeypatch.context() as patch:
    failing(patch, 1, *reader)
    found = newest()
  assert (found.step, found.news) == (4, [])
  with monkeypatch.context() as patch:
    failing(patch, 99, *reader)
    with pytest.raises(UserError, match=r"checkpoints/4: cannot be read \(Stale") as e:
      newest()
  assert not isinstance(e.value, DamagedError)
  assert checkpoints.steps == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("other", [[False, "cannot be read"], [True, "is damaged"]])
def test_what_another_process_finds_is_found_by_all(saved, monkeypatch, other):
  """Damage for one is damage for all, unless one of them could not read at all."""
  checkpoints, run = saved
  sent = [other]
  gather = lambda value: [value, *(sent[:1] and [sent.pop()])]
  monkeypatch.setattr(processes, "from_first", lambda act: act())
  monkeypatch.setattr(processes, "gather", gather)
  newest = lambda: checkpoints.restore_newest(run.abstract_state(), run.batches())
  if other[0]:
    monkeypatch.setattr(Checkpoints, "_set_aside", lambda self, found: [*found])
    found = newest()
    assert (found.step, found.news) == (2, [4])
  else:
    with pytest.raises(UserError, match="cannot be read"):
      newest()
