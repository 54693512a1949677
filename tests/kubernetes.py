"""What Kubernetes and JobSet do about failed pods, as launch/gke.py relies on it.

The rules are those of the documentation: of a Job's pod failure policy
(https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy) and
of a JobSet's failure policy (https://jobset.sigs.k8s.io/docs/concepts/, and its
"Configurable failure policy" proposal), from JobSet 0.10 on.

- The first failed pod of a job that a FailJob rule matches, or that is one more than
  backoffLimit, fails the job. Rules are tried in order; the first that matches counts.
- When jobs have failed, the first rule of the set that matches any of them counts, then
  the job that failed first; without a rule the set restarts, counted.
- A restart starts all jobs again.
"""

import re
from typing import NamedTuple


class End(NamedTuple):
  """A pod's end.

  Attributes:
    code: of its container.
    job: which job of the set, from 0.
    pod: which pod of the job, from 0.
    evicted: the pod has the condition DisruptionTarget.
  """

  code: int
  job: int = 0
  pod: int = 0
  evicted: bool = False


class Failure(NamedTuple):
  """Of a job: the reason and message of its condition."""

  reason: str
  message: str


def run(jobset: dict, starts: list[list[list[End]]]) -> tuple[int, str]:
  """What becomes of a set.

  Args:
    jobset: the manifest.
    starts: for each start of the set the ends of pods in groups; those of a group have
      happened, one after another, when the set is looked at. Pods of which nothing is
      said run on.

  Returns:
    How often it was started, and "Completed", "FailJobSet" or "ReachedMaxRestarts".
  """
  counted = 0
  for number, groups in enumerate(starts, start=1):
    action = _start(jobset, groups)
    if action == "RestartJobSet":
      if counted >= jobset["spec"]["failurePolicy"]["maxRestarts"]:
        return number, "ReachedMaxRestarts"
      counted += 1
    elif action != "RestartJobSetAndIgnoreMaxRestarts":
      return number, action
  raise AssertionError("the starts end before the set does")


def _start(jobset: dict, groups: list[list[End]]) -> str:
  """What is done at the end of a start."""
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  counts = [0] * replicated["replicas"], [0] * replicated["replicas"]
  failures: dict[int, Failure] = {}  # in their order
  for group in groups:
    for end in group:
      assert end.job < replicated["replicas"] and end.pod < job["completions"]
      if end.job in failures:  # its other pods are being stopped
        continue
      if not end.code:
        counts[0][end.job] += 1
        continue
      counts[1][end.job] += 1
      failed = _failure(job, end, counts[1][end.job], jobset["metadata"])
      if failed is not None:
        failures[end.job] = failed
    if failures:
      return _action(jobset["spec"]["failurePolicy"], list(failures.values()))
  assert counts[0] == [job["completions"]] * replicated["replicas"], "some run on"
  return "Completed"


def _failure(job: dict, end: End, failed: int, metadata: dict) -> Failure | None:
  """Whether a failed pod, the failed-th one, is the end of its job."""
  name = f"{metadata['namespace']}/{metadata['name']}-workers-{end.job}-{end.pod}-x"
  (container,) = job["template"]["spec"]["containers"]
  for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
    assert rule["action"] == "FailJob"
    matching = f"matching FailJob rule at index {index}"
    if (codes := rule.get("onExitCodes")) is not None:
      assert codes["containerName"] == container["name"] and 0 not in codes["values"]
      assert len(codes["values"]) <= 255 and codes["operator"] in ("In", "NotIn")
      if (end.code in codes["values"]) == (codes["operator"] == "In"):
        what = f"Container {container['name']} for pod {name} failed with exit code "
        return Failure("PodFailurePolicy", f"{what}{end.code} {matching}")
    elif end.evicted:
      (condition,) = rule["onPodConditions"]
      assert condition == {"type": "DisruptionTarget", "status": "True"}
      what = f"Pod {name} has condition DisruptionTarget {matching}"
      return Failure("PodFailurePolicy", what)
  if failed > job["backoffLimit"]:
    return Failure(
      "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    )
  return None


def _action(policy: dict, failures: list[Failure]) -> str:
  """Of the first rule that matches one of the failed jobs."""
  for rule in policy["rules"]:
    for failure in failures:
      reasons = rule.get("onJobFailureReasons") or [failure.reason]
      patterns = rule.get("onJobFailureMessagePatterns") or [""]
      if failure.reason in reasons and any(
        re.search(pattern, failure.message) for pattern in patterns
      ):
        return rule["action"]
  return "RestartJobSet"
