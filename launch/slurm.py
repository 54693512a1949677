"""A job of one or several nodes under Slurm: an sbatch script, submitted.

  python launch/slurm.py --nodes=8 --gpus-per-node=8 --time=24:00:00 -- train \
    --config=configs/mine.py --workdir=/shared/runs/mine

There is one process a GPU, or one a node without GPUs; with --tasks-per-node=1 one
process drives all GPUs of its node. Slurm's time limit and preemption send SIGTERM: the
run saves, ends with 42 and is put back into the queue. After a failure it is, too,
--restarts times in a row, each within an hour of its start. All nodes must see the work
directory.
"""

import shlex
import sys

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.launch import command as shared

# Seconds that tasks have to end by themselves once one has ended. A task that is killed
# for another's end would have the highest code, 137, which is the one of srun.
WAIT = 120  # jax notices within 100 that another process is gone

SCRIPT = """\
#!/bin/bash
{options}
srun --kill-on-bad-exit=0 --wait={wait} {program}
code=$?
failures="{name}-$SLURM_JOB_ID.failures"
[ $SECONDS -gt {lasting} ] && rm --force "$failures"
case $code in
  {final}) ;;
  {free}) scontrol requeue "$SLURM_JOB_ID" ;;
  *)
    echo "$code" >> "$failures"
    [ "$(wc -l < "$failures")" -le {restarts} ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
"""


def script(options, command: list[str]) -> str:
  """What sbatch is given."""
  settings = {
    "job-name": options.name,
    "nodes": options.nodes,
    "ntasks-per-node": options.tasks_per_node or options.gpus_per_node or 1,
    "gpus-per-node": options.gpus_per_node,
    "time": options.time,
    "partition": options.partition,
    "account": options.account,
    "signal": f"TERM@{options.grace}",
    "output": f"{options.name}-%j.log",
  }
  given = [f"--{name}={value}" for name, value in settings.items() if value is not None]
  given += ["--requeue", "--open-mode=append", *options.sbatch]
  return SCRIPT.format(
    options="\n".join(f"#SBATCH {shlex.quote(option)}" for option in given),
    program=shlex.join([options.python, "-m", "set_diffusion_jax", *command]),
    name=options.name,
    wait=WAIT,
    lasting=shared.LASTING,
    final="|".join(map(str, outcomes.FINAL)),
    free="|".join(map(str, outcomes.FREE)),
    restarts=options.restarts,
  )


def main() -> int:
  """The exit code of sbatch."""
  parser = shared.Launcher(__doc__)
  parser.add_argument("--name", type=shared.name, default="set-diffusion")
  parser.add_argument("--nodes", type=shared.whole, default=1, metavar="N")
  parser.add_argument("--gpus-per-node", type=shared.whole, metavar="N")
  parser.add_argument(
    "--tasks-per-node",
    type=shared.whole,
    metavar="N",
    help="one for each GPU of the node, which is the default, or 1 for all of them",
  )
  parser.add_argument("--time", help="limit, as sbatch has it")
  parser.add_argument("--partition")
  parser.add_argument("--account")
  parser.add_argument(
    "--grace",
    type=shared.whole,
    default=120,
    metavar="SECONDS",
    help="SIGTERM comes so long before the time limit; default: 120",
  )
  parser.add_argument(
    "--python", default=sys.executable, help="on the nodes; default: this one"
  )
  parser.add_argument(
    "--sbatch",
    action="append",
    default=[],
    metavar="OPTION",
    help="any other option of sbatch, as --sbatch=--mem=64G; several times",
  )
  shared.restarts(parser)
  options, command = parser.parse()
  tasks, gpus = options.tasks_per_node, options.gpus_per_node
  if None not in (tasks, gpus) and tasks not in (1, gpus):
    right = f"must be {gpus}, a task for each GPU of a node, or 1 for all of them"
    parser.error(f"--tasks-per-node={tasks}: {right}")
  return shared.run(["sbatch"], script(options, command), options.dry_run)


if __name__ == "__main__":
  sys.exit(main())
