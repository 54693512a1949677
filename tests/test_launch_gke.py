"""What a JobSet of launch/gke.py makes of each end of its pods: a simulation."""

import argparse

import pytest

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.launch import gke
from set_diffusion_jax.plan import parse_topology
from tests import jobset, kubernetes
from tests.kubernetes import End

SLICES, HOSTS = 2, 4
DONE = [[End(0, job, pod) for job in range(SLICES) for pod in range(HOSTS)]]


@pytest.fixture(scope="module")
def manifest():
  """Two slices of four hosts, restarted twice."""
  options = argparse.Namespace(
    name="mine",
    image="registry/image:1",
    namespace="default",
    restarts=2,
    spot=True,
    env=[],
    volume=None,
    service_account=None,
    grace=120,
  )
  found = gke.manifest(options, parse_topology("v5e:4x4", SLICES), ["train"])
  assert jobset.mistakes(found) == []
  return found


def expected(codes):
  """The table's answer to starts that end so: how often one starts, and the end."""
  left = 2
  for number, code in enumerate(codes, start=1):
    then = outcomes.then(code)
    left -= then == "counted"
    if then == "final" or left < 0:
      ends = {"final": "FailJobSet", "counted": "ReachedMaxRestarts"}
      return number, "Completed" if code == outcomes.DONE else ends[then]
  raise AssertionError(codes)


def test_every_code_of_any_host(manifest):
  """One host fails; what the others would end with after it changes nothing."""
  for code in range(1, 256):
    for job, pod in ((0, 0), (1, 3)):
      start = [[End(code, job, pod), End(6, job, 1), End(2, job, 2)]]
      found = kubernetes.run(manifest, [*[start] * 5, DONE])
      assert found == expected([*[code] * 5, 0]), code


def test_all_hosts_end_alike(manifest):
  for code in outcomes.FINAL:
    start = [[End(code, job, pod) for job in range(SLICES) for pod in range(HOSTS)]]
    assert kubernetes.run(manifest, [start]) == expected([code])
  assert kubernetes.run(manifest, [DONE]) == (1, "Completed")


@pytest.mark.parametrize("code", [0, 1, 2, 4, 6, 42, 137, 143])
def test_an_evicted_pod_costs_nothing(manifest, code):
  """By the end of its node or for a pod of higher priority; 0 is no failure at all."""
  start = [[End(code, 1, 2, evicted=True)]]
  if code == 0:
    start[0] += [end for end in DONE[0] if end[1:3] != (1, 2)]
  starts = 1 if code == 0 else 10
  found = kubernetes.run(manifest, [*[start] * 9, DONE])
  assert found == (starts, "Completed")


def test_the_first_failure_of_a_job_counts(manifest):
  """A lost host's peers end with 6 before its node is known to be lost."""
  lost, peer = End(137, 0, 1, evicted=True), End(6, 0, 0)
  assert kubernetes.run(manifest, [*[[[lost, peer]]] * 9, DONE]) == (10, "Completed")
  late = [*[[[peer, lost]]] * 9, DONE]
  assert kubernetes.run(manifest, late) == (3, "ReachedMaxRestarts")
  assert kubernetes.run(manifest, [[[peer], [lost]], DONE]) == (2, "Completed")


def test_slices_that_have_failed_when_the_set_is_looked_at(manifest):
  """A final code counts before an eviction, and this before a failure."""
  mistake, failed = End(2, 0, 3), End(6, 1, 0)
  evicted = End(137, 1, 0, evicted=True)
  for group in ([mistake, evicted], [evicted, mistake], [failed, mistake]):
    assert kubernetes.run(manifest, [[group]]) == (1, "FailJobSet")
  other = End(42, 0, 0)
  for group in ([failed, other], [other, failed]):
    assert kubernetes.run(manifest, [*[[group]] * 9, DONE]) == (10, "Completed")


def test_starts_that_end_differently(manifest):
  for codes in ([42, 6, 42, 137, 0], [6, 5, 42, 42, 4], [134, 42, 1, 42, 139]):
    starts = [DONE if code == 0 else [[End(code, 1, 1)]] for code in codes]
    assert kubernetes.run(manifest, starts) == expected(codes)


def test_the_simulator_sees_wrong_rules(manifest):
  """A rule that is lost, or in another place, is another end."""
  policy = manifest["spec"]["failurePolicy"]
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  for rules in (policy["rules"], job["podFailurePolicy"]["rules"]):
    kept = list(rules)
    for broken in (kept[1:], kept[::-1]):
      rules[:] = broken
      with pytest.raises(AssertionError):
        test_every_code_of_any_host(manifest)
    rules[:] = kept
