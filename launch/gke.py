"""A JobSet on Google Kubernetes Engine: TPU slices or GPU nodes, applied with kubectl.

  python launch/gke.py --name=mine --image=IMAGE --topology=v5e:16x16 --slices=2 \
    --service-account=runs -- train --config=configs/mine.py --workdir=gs://BUCKET/mine

A slice of TPUs is a job of the set, a host of it a pod; for GPUs there is one job. The
image is that of launch/Dockerfile. A run in a bucket needs no volume; other files are
on a claim that all pods can mount, --volume=runs:/runs. A run that saved and stopped
(42), or whose pods Kubernetes evicts, is restarted for free; after a failure it is
--restarts times in all; a mistake (2) or a diverged loss (4) ends the set. The cluster
needs JobSet 0.10 or later.
"""

import argparse
import sys

import yaml

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.launch import command as shared
from set_diffusion_jax.plan import Topology

CONTAINER, JOB, PORT = "main", "workers", 8476


def hosts(topology: Topology) -> tuple[int, int]:
  """Hosts of a slice, or of all GPUs, and accelerators of a host.

  A slice smaller than a host has one of its own.
  """
  if not topology.is_tpu and topology.chip.label is None:
    right = "must be one for which GKE has a label of nodes"
    shared.fail(f"--topology={topology.name}: {right}")
  accelerators = topology.chips // topology.slices
  each = min(accelerators, topology.chip.host)
  if accelerators % each:
    right = f"must be a multiple of the {each} of a host"
    shared.fail(f"--topology={topology.name}: {right}")
  return accelerators // each, each


def manifest(options, topology: Topology, command: list[str]) -> dict:
  """The JobSet."""
  count, each = hosts(topology)
  job = {
    "parallelism": count,
    "completions": count,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {"rules": pod_rules()},
    "template": {"spec": pod(options, topology, command, count, each)},
  }
  exclusive = {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
  }
  metadata = {"name": options.name, "namespace": options.namespace}
  if topology.is_tpu:  # a slice is a node pool
    metadata["annotations"] = exclusive
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
      "failurePolicy": {"maxRestarts": options.restarts, "rules": set_rules()},
      "replicatedJobs": [
        {"name": JOB, "replicas": topology.slices, "template": {"spec": job}}
      ],
    },
  }


def pod_rules() -> list[dict]:
  """Which ends of a pod end its job at once, and under which number."""
  ended = lambda operator, values: {
    "action": "FailJob",
    "onExitCodes": {
      "containerName": CONTAINER,
      "operator": operator,
      "values": list(values),
    },
  }
  lost = {"type": "DisruptionTarget", "status": "True"}
  return [
    ended("In", outcomes.FREE),
    {"action": "FailJob", "onPodConditions": [lost]},
    ended("In", [code for code in outcomes.FINAL if code]),  # it ends well by itself
  ]


def set_rules() -> list[dict]:
  """What becomes of the set; a crash is under none of these, and is counted."""
  return [
    {
      "name": "mistake",
      "action": "FailJobSet",
      "onJobFailureReasons": ["PodFailurePolicy"],
      "onJobFailureMessagePatterns": ["matching FailJob rule at index 2$"],
    },
    {
      "name": "preempted",
      "action": "RestartJobSetAndIgnoreMaxRestarts",
      "onJobFailureReasons": ["PodFailurePolicy"],
    },
  ]


def pod(options, topology: Topology, command: list[str], count: int, each: int) -> dict:
  """One host."""
  labels = {"cloud.google.com/gke-accelerator": topology.chip.label}
  resource, variables = "nvidia.com/gpu", coordinates(options.name, count)
  if topology.is_tpu:
    labels = {
      "cloud.google.com/gke-tpu-accelerator": topology.chip.cloud.label,
      "cloud.google.com/gke-tpu-topology": "x".join(map(str, topology.shape)),
    }
    resource, variables = "google.com/tpu", []  # GKE says who is who
  if options.spot:
    labels["cloud.google.com/gke-spot"] = "true"
  # Kubernetes replaces $(NAME) in arguments and values, and takes $$ for one $.
  literal = lambda text: text.replace("$", "$$")
  given = [{"name": name, "value": literal(value)} for name, value in options.env]
  container = {
    "name": CONTAINER,
    "image": options.image,
    "args": [literal(word) for word in command],
    "env": [*job_variables(options), *variables, *given],
    "resources": {"limits": {resource: each}},
  }
  spec = {
    "restartPolicy": "Never",
    **identity(options.service_account),
    "terminationGracePeriodSeconds": options.grace,
    "nodeSelector": labels,
    "containers": [container],
  }
  places = []
  if options.volume is not None:
    claim, path = options.volume
    places.append(("runs", path, {"persistentVolumeClaim": {"claimName": claim}}))
  if not topology.is_tpu:  # NCCL connects GPUs of a node there; 64 MiB are the default
    places.append(("memory", "/dev/shm", {"emptyDir": {"medium": "Memory"}}))
  if places:
    container["volumeMounts"] = [
      {"name": n, "mountPath": path} for n, path, _ in places
    ]
    spec["volumes"] = [{"name": n, **source} for n, _, source in places]
  return spec


def identity(service_account: str | None) -> dict:
  """As whom pods ask Google, and on which network they are.

  On the network of their node pods are who the node is, whatever their own account.
  """
  if service_account is None:
    return {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
  return {"serviceAccountName": service_account}


def job_variables(options) -> list[dict]:
  """The environment by which a restarted set takes over its own work directory."""
  path = "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"
  attempt = {"fieldRef": {"fieldPath": path}}
  return [
    {"name": "SET_DIFFUSION_JOB", "value": f"{options.namespace}/{options.name}"},
    {"name": "SET_DIFFUSION_ATTEMPT", "valueFrom": attempt},
  ]


def coordinates(name: str, count: int) -> list[dict]:
  """The environment that tells GPU pods who they are."""
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  return [
    {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-{JOB}-0-0.{name}:{PORT}"},
    {"name": "JAX_NUM_PROCESSES", "value": str(count)},
    {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
  ]


def volume(text: str) -> tuple[str, str]:
  """CLAIM:/PATH."""
  claim, _, path = text.partition(":")
  if not claim or not path.startswith("/"):
    raise argparse.ArgumentTypeError(f"{text}: must be CLAIM:/PATH")
  return claim, path


def main() -> int:
  """The exit code of kubectl."""
  parser = shared.Launcher(__doc__)
  shared.machines(parser)
  parser.add_argument(
    "--volume",
    type=volume,
    metavar="CLAIM:/PATH",
    help="for files that are in no bucket",
  )
  parser.add_argument(
    "--service-account",
    type=shared.name,
    metavar="NAME",
    help="of Kubernetes, in the namespace, as whom buckets are asked by Workload "
    "Identity; pods are then not on the node's network; default: who the node is",
  )
  parser.add_argument("--namespace", default="default")
  parser.add_argument(
    "--grace",
    type=shared.whole,
    default=120,
    metavar="SECONDS",
    help="between SIGTERM and SIGKILL; default: 120, of which spot nodes give 25",
  )
  shared.restarts(parser, default=20, in_all=True)  # a JobSet cannot count otherwise
  options, command = parser.parse()
  shared.share(options.volume, "--volume=CLAIM:/PATH", command)
  topology = shared.topology(options.topology, options.slices)
  text = yaml.safe_dump(manifest(options, topology, command), sort_keys=False)
  return shared.run(["kubectl", "apply", "--filename=-"], text, options.dry_run)


if __name__ == "__main__":
  sys.exit(main())
