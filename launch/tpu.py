"""Cloud TPU queued resources without Kubernetes: TPU VMs that start by themselves.

  python launch/tpu.py --name=mine --image=IMAGE --topology=v5e:16x16 --slices=2 \
    --project=PROJECT --zone=ZONE --spot \
    -- train --config=configs/mine.py --workdir=gs://BUCKET/mine

Every host of every slice runs the image of launch/Dockerfile at each boot. A run in a
bucket needs no shared disk; for other files --nfs=HOST:/SHARE is mounted as /runs.
Where a run saved and stopped (42) it starts again, after a failure --restarts times in
a row, each within an hour of its start. When the run has ended the first host gives the
machines back. The same command may be given again at any time: it asks for machines
where there are none and the run has not ended, and gives back what was preempted.
--watch does so once a minute until the end of the run.
"""

import shlex
import sys

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.launch import command as shared
from set_diffusion_jax.launch import queued
from set_diffusion_jax.plan import Topology

MOUNT = """\
apt-get update && apt-get install --yes nfs-common
mkdir --parents /runs
mountpoint --quiet /runs || mount --types nfs {nfs} /runs || exit 1
"""
# Only the first host of the first slice gives the machines back: the run ends for all.
STARTUP = """\
#!/bin/bash
{mount}gcloud --quiet auth configure-docker {registry}
attribute() {{
  curl --fail --silent --retry 5 --header 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}
again() {{
  for try in 1 2 3 4 5 6 7 8 9 10; do "$@" && return; sleep 30; done
}}
# With a code; what the run last printed is kept, as its machines are not.
finish() {{
  slice=$(attribute tpu-env |
    sed --quiet "s/^MEGASCALE_SLICE_ID: *'*\\([0-9]*\\).*/\\1/p")
  if [ "$(attribute agent-worker-number)" = 0 ] && [ "${{slice:-0}}" = 0 ]; then
{end}  fi
  exit "$1"
}}
left={restarts}
while true; do
  export SET_DIFFUSION_ATTEMPT=$(date +%s)
  docker rm --force run > /dev/null 2>&1
  {docker}
  code=$?
  [ $(($(date +%s) - SET_DIFFUSION_ATTEMPT)) -gt {lasting} ] && left={restarts}
  case $code in
    {final}) finish $code ;;
    {free}) ;;
    *) left=$((left - 1)); [ $left -ge 0 ] || finish $code ;;
  esac
  sleep 10
done
"""
# Hosts that no longer meet lack one of them: new machines may do better.
END = """\
    written() {{ {{ echo "$1"; docker logs --tail=50 run 2>&1; }} | {write}; }}
    [ "$1" = {unreachable} ] || again written "$1"
"""


def at_the_end(options, command: list[str]) -> str:
  """What the first host does when the run has ended.

  Where nothing keeps what the run has printed, it keeps the machines.
  """
  kept = end_of_run(options.name, command)
  if kept is None and not any(word.startswith("--output=") for word in command):
    return '    echo "the machines are kept, with what the run has printed"\n'
  done = ""
  if kept is not None:
    folder = kept.rpartition("/")[0]
    write = f"gcloud storage cp - {shlex.quote(kept)}"
    if not kept.startswith("gs://"):
      write = f"mkdir --parents {shlex.quote(folder)} && cat > {shlex.quote(kept)}"
      write = f"{{ {write}; }}"
    done = END.format(write=write, unreachable=outcomes.UNREACHABLE)
  words = queued.delete(options.name, options.project, options.zone)
  return f"{done}    again {shlex.join(words)}\n"


def end_of_run(name: str, command: list[str]) -> str | None:
  """The file or object, beside its steps, that says how a training ended."""
  for word in command[1:]:
    option, _, place = word.partition("=")
    if command[0] == "train" and option == "--workdir":
      return f"{place.rstrip('/')}/.ended/{name}"
  return None


def startup(options, command: list[str]) -> str:
  """What every host runs when it boots."""
  docker, mount = "docker run --name=run --privileged --network=host".split(), ""
  if options.nfs is not None:
    docker.append("--volume=/runs:/runs")
    mount = MOUNT.format(nfs=shlex.quote(options.nfs))
  job = f"{options.project}/{options.zone}/{options.name}"
  docker += [f"--env=SET_DIFFUSION_JOB={job}", "--env=SET_DIFFUSION_ATTEMPT"]
  docker += [f"--env={name}={value}" for name, value in options.env]
  docker += [f"--stop-timeout={options.grace}", options.image, *command]
  return STARTUP.format(
    mount=mount,
    registry=shlex.quote(options.image.split("/")[0]),
    restarts=options.restarts,
    lasting=shared.LASTING,
    end=at_the_end(options, command),
    docker=shlex.join(docker),
    final="|".join(map(str, outcomes.FINAL)),
    free="|".join(map(str, outcomes.FREE)),
  )


def create(options, topology: Topology) -> list[str]:
  """The command that asks for the machines."""
  cloud, account = topology.chip.cloud, options.service_account
  chips = topology.chips // topology.slices
  nodes = [f"--node-id={options.name}"]
  if topology.slices > 1:
    nodes = [f"--node-count={topology.slices}", f"--node-prefix={options.name}"]
  return [
    *"gcloud compute tpus queued-resources create".split(),
    options.name,
    "--quiet",
    *nodes,
    f"--project={options.project}",
    f"--zone={options.zone}",
    f"--accelerator-type={cloud.kind.format(chips=chips, cores=2 * chips)}",
    f"--runtime-version={options.runtime_version or cloud.image}",
    *(["--spot"] if options.spot else []),
    *([f"--service-account={account}"] if account else []),
    *([f"--scopes={options.scopes}"] if options.scopes else []),
    f"--valid-until-duration={options.valid_until}",
    "--metadata-from-file=startup-script=/dev/stdin",
  ]


def main() -> int:
  """The exit code of gcloud; of the run where it has ended."""
  parser = shared.Launcher(__doc__)
  shared.machines(parser)
  parser.add_argument("--project", required=True)
  parser.add_argument("--zone", required=True)
  parser.add_argument(
    "--nfs", metavar="HOST:/SHARE", help="for files that are in no bucket"
  )
  parser.add_argument(
    "--service-account",
    metavar="EMAIL",
    help="as whom the hosts ask Google; default: Compute Engine's own",
  )
  parser.add_argument(
    "--scopes",
    metavar="SCOPE,...",
    help="what of Google the hosts may ask for; default: as gcloud has it",
  )
  parser.add_argument("--valid-until", default="6h", help="default: 6h")
  parser.add_argument("--runtime-version", help="default: the one for the TPUs")
  parser.add_argument("--grace", type=shared.whole, default=30, metavar="SECONDS")
  parser.add_argument(
    "--watch",
    action="store_true",
    help="stay, and ask for machines again when they are preempted, until the run ends",
  )
  shared.restarts(parser)
  options, command = parser.parse()
  shared.share(options.nfs, "--nfs=HOST:/SHARE", command)
  topology = shared.topology(options.topology, options.slices)
  if not topology.is_tpu:
    parser.error(f"--topology={options.topology}: must be one of TPUs")
  if topology.chip.cloud.kind is None:
    right = "such TPUs are had through GKE: launch/gke.py"
    parser.error(f"--topology={options.topology}: {right}")
  end = end_of_run(options.name, command)
  request = queued.Request(
    options.name,
    options.project,
    options.zone,
    create(options, topology),
    startup(options, command),
    end if end is not None and end.startswith("gs://") else None,
  )
  if options.watch and request.end is None:
    right = "needs train --workdir=gs://BUCKET/PATH, where its hosts write how it ended"
    parser.error(f"--watch: {right}")
  if options.dry_run:
    queued.show(request)
    return 0
  try:
    return queued.watch(request) if options.watch else queued.once(request)
  except KeyboardInterrupt:  # the run goes on
    return outcomes.INTERRUPTED


if __name__ == "__main__":
  sys.exit(main())
