"""What each launcher does after each exit code, against the one table of outcomes."""

import itertools
import signal
import subprocess
import types

import pytest

from set_diffusion_jax.jobs import outcomes
from set_diffusion_jax.launch import local, slurm, tpu
from tests import jobs

CODES = range(256)
HOUR = 3600
DOCS = (jobs.ROOT / "docs" / "launch.md").read_text()
ENDS = {
  "final": "end, with this code",
  "free": "start again, always",
  "counted": "start again, counted (`--restarts`)",
}


def test_the_docs_show_the_table():
  header = "| code | what happened | launchers here |\n|---|---|---|\n"
  rows = "".join(
    f"| {outcome.code} | {outcome.meaning} | {ENDS[outcome.then]} |\n"
    for outcome in outcomes.OUTCOMES
  )
  other = outcomes.then(1)
  assert {outcomes.then(code) for code in (134, 137, 139, 255)} == {other}
  rows += "| any other | it was killed (137), or a fault of this package's own"
  assert header + rows + f" | {ENDS[other]} |\n" in DOCS


def starts(codes, restarts):
  """How often a job is started whose starts end with these codes, and its last code.

  Args:
    codes: pairs (code, whether the start lasted more than an hour); the last is final.
    restarts: after so many failures in a row.
  """
  left = restarts
  for number, (code, lasted) in enumerate(codes, start=1):
    left = restarts if lasted else left
    left -= outcomes.then(code) == "counted"
    if outcomes.then(code) == "final" or left < 0:
      return number, code
  raise AssertionError("the codes end before the job does")


SEQUENCES = [
  # Every code: what it does once, and when nothing is left.
  *([(code, False), (0, False)] for code in CODES),
  # Failures that do not follow each other within an hour do not run out.
  [(6, False), (137, False), (6, True), (1, False), (42, False), (5, False)],
  [*[(6, True)] * 9, (6, False), (42, True), (134, False), (4, False)],
  [(42, False)] * 9 + [(130, False)],
  [(6, False), (42, False)] * 3,
]


def cases():
  for sequence, restarts in itertools.product(SEQUENCES[256:], (0, 1, 2)):
    yield [*sequence, (0, False)], restarts
  for sequence, restarts in itertools.product(SEQUENCES[:256], (0, 1)):
    yield sequence, restarts


@pytest.fixture
def handlers():
  """Puts back what signals do."""
  before = {number: signal.getsignal(number) for number in local.STOPS}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def test_local_follows_the_table(monkeypatch, handlers):
  now, coming = 0.0, []

  class Job:
    """An attempt, by what it ends with and how long it took."""

    def __init__(self, *given):
      self.ended, self.lasted = coming.pop(0)

    def __enter__(self):
      return self

    def __exit__(self, *exception):
      pass

    def result(self):
      nonlocal now
      now += HOUR + 1 if self.lasted else HOUR
      return self.ended

  monkeypatch.setattr(local, "Job", Job)
  for sequence, restarts in cases():
    coming[:] = sequence
    code = local.supervise([], 1, None, restarts, lambda: now)
    assert (len(sequence) - len(coming), code) == starts(sequence, restarts)


def run(programs: str, each: str, sequences) -> list[tuple[int, int]]:
  """How scripts of bash go on: how often the job is started, and its last code.

  Args:
    programs: functions of bash in place of the programs that the script calls.
    each: the script; the codes and seconds of its starts are in two arrays, and it
      prints the two numbers.
    sequences: of pairs (code, whether the start lasted more than an hour).
  """
  lines = [programs, f"each() (\n{each}\n)"]
  for sequence in sequences:
    codes, lasted = zip(*sequence, strict=True)
    seconds = (str(HOUR + long) for long in lasted)
    lines.append(f"codes=({' '.join(map(str, codes))}) seconds=({' '.join(seconds)})")
    lines.append("SLURM_JOB_ID=$((SLURM_JOB_ID + 1))")
    lines.append("each || true")
  output = subprocess.run(
    ["bash", "-s"], input="\n".join(lines), text=True, capture_output=True, check=True
  ).stdout
  return [tuple(map(int, line.split())) for line in output.splitlines()]


def by_restarts():
  """Sequences by the number of restarts that they run with."""
  sorted_cases = sorted(cases(), key=lambda case: case[1])
  for restarts, group in itertools.groupby(sorted_cases, key=lambda case: case[1]):
    yield restarts, [sequence for sequence, _ in group]


def test_slurm_follows_the_table(tmp_path, monkeypatch):
  """The script of sbatch, as often as it asks for it to be put back into the queue."""
  monkeypatch.chdir(tmp_path)
  unset = ("tasks_per_node", "gpus_per_node", "time", "partition", "account")
  options = types.SimpleNamespace(**dict.fromkeys(unset))
  options.nodes, options.grace, options.sbatch, options.python = 1, 1, [], "python"
  programs = """
srun() { return $CODE; }
scontrol() { [ "$*" = "requeue $SLURM_JOB_ID" ] && asked=1; }
wc() { mapfile -t lines; echo ${#lines[@]}; }  # starts no process
"""
  each = """
for i in "${!codes[@]}"; do
  result=$(CODE=${codes[i]} SECONDS=${seconds[i]}; trap 'echo $? $asked' EXIT
    asked=0; SCRIPT)
  [ "${result#* }" = 0 ] && break
done
echo $((i + 1)) ${result% *}
"""
  for restarts, sequences in by_restarts():
    options.restarts, options.name = restarts, f"mine-{restarts}"
    script = slurm.script(options, ["train"])
    found = run(programs, each.replace("SCRIPT", script), sequences)
    assert found == [starts(sequence, restarts) for sequence in sequences]


def test_tpu_follows_the_table():
  """What a host does from its boot on."""
  options = types.SimpleNamespace(
    nfs=None,
    image="registry/image:1",
    grace=1,
    name="mine",
    project="p",
    zone="z",
    env=[],
  )
  programs = """
docker() {
  [ $1 = run ] || return 0
  now=$((now + seconds[n])) n=$((n + 1))
  return ${codes[n - 1]}
}
sed() { :; }  # starts no process
date() { echo $now; }
gcloud() { :; }
curl() { :; }
sleep() { :; }
n=0 now=0
"""
  for restarts, sequences in by_restarts():
    options.restarts = restarts
    script = tpu.startup(options, ["train"])
    each = f"trap 'echo $n $?' EXIT\n{script}"
    found = run(programs, each, sequences)
    assert found == [starts(sequence, restarts) for sequence in sequences]
