"""Launchers: what they would run, the supervisor, a real Slurm."""

import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from set_diffusion_jax.launch import command, local
from tests import jobs, jobset, tiny
from tests.test_train import assert_identical, config, final, settings

LAUNCH = jobs.ROOT / "launch"
COMMAND = ["--", "train", "--config=c.py:method=set", "--workdir=/runs/two words"]
GKE = ["--name=mine", "--image=registry/image:1", "--volume=claim:/runs"]
TPU = ["--name=mine", "--image=registry/image:1", "--project=p", "--zone=z"]
NAMED = ["--", "train", "--config=quickstart:method=set", "--workdir=/runs/one"]
RECIPE = ["--", "train", "--config=scale:recipe=owt_110m", "--workdir=/runs/one"]
NODE = ["--gpus-per-node=8"]
TPU += ["--nfs=10.0.0.2:/share"]


BUCKET = ["--", "train", "--config=c.py", "--workdir=gs://bucket/run"]


@pytest.fixture
def launch(monkeypatch, capsys):
  """Runs a launcher in this process; its exit code, what it printed, its errors."""

  def run(script, *words):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
      runpy.run_path(str(LAUNCH / f"{script}.py"), run_name="__main__")
    return end.value.code, *capsys.readouterr()

  return run


@pytest.fixture
def shown(launch):
  """The command and its standard input that --dry-run prints."""

  def show(script, *words, command=COMMAND):
    code, output, errors = launch(script, *words, "--dry-run", *command)
    assert code == 0, errors
    command, _, rest = output.partition(" <<'END'\n")
    text, _, end = rest.rpartition("END\n")
    assert end == ""
    return shlex.split(command.replace("\\\n", ""), comments=True), text

  return show


def test_what_is_shown_is_one_command_whatever_it_holds():
  text = "a\nEND\ntouch here\nEND_\n"
  shown = command.fed(["cat"], text)
  ended = subprocess.run(
    ["bash", "-c", shown], capture_output=True, text=True, check=True
  )
  assert (ended.stdout, ended.stderr) == (text, "")


@pytest.mark.parametrize("script", ["gke", "local"])
def test_a_reader_that_has_seen_enough(script):
  words = {"gke": [*GKE, "--topology=v5e:16x16"], "local": ["--processes=1"]}[script]
  reading, writing = os.pipe()
  os.close(reading)
  ended = subprocess.run(
    [sys.executable, LAUNCH / f"{script}.py", *words, "--dry-run", *NAMED],
    stdout=writing,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  os.close(writing)
  assert (ended.returncode, ended.stderr) == (0, "")


def is_bash(text):
  return not subprocess.run(
    ["bash", "-n"], input=text, text=True, check=False
  ).returncode


def test_slurm_script(shown):
  words = ["--nodes=2", "--gpus-per-node=8", "--time=1:00:00", "--sbatch=--mem=64G"]
  command, text = shown("slurm", *words)
  assert command == ["sbatch"]
  options = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
  assert set(options) >= {
    "--nodes=2",
    "--ntasks-per-node=8",
    "--gpus-per-node=8",
    "--time=1:00:00",
    "--signal=TERM@120",
    "--requeue",
    "--open-mode=append",
    "--mem=64G",
  }
  (srun,) = [line for line in text.splitlines() if line.startswith("srun")]
  assert shlex.split(srun)[1:] == [
    "--kill-on-bad-exit=0",
    "--wait=120",
    sys.executable,
    "-m",
    "set_diffusion_jax",
    *COMMAND[1:],
  ]
  assert (
    subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
  )


def test_one_task_drives_the_gpus_of_a_node(shown):
  _, text = shown("slurm", *NODE, "--tasks-per-node=1")
  assert "#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8\n" in text


def test_queued_resources(shown):
  words, text = shown(
    "tpu", *TPU, "--topology=v5p:4x4x4", "--slices=2", "--spot", "--restarts=7"
  )
  assert words[:6] == "gcloud compute tpus queued-resources create mine".split()
  assert set(words) >= {
    "--node-count=2",
    "--node-prefix=mine",
    "--accelerator-type=v5p-128",
    "--runtime-version=v2-alpha-tpuv5",
    "--spot",
    "--metadata-from-file=startup-script=/dev/stdin",
  }
  words, _ = shown("tpu", *TPU, "--topology=v5e:16x16")
  assert {"--node-id=mine", "--accelerator-type=v5litepod-256"} <= set(words)
  (docker,) = [x for x in text.splitlines() if x.strip().startswith("docker run")]
  assert shlex.split(docker)[-4:] == ["registry/image:1", *COMMAND[1:]]
  assert "--env=SET_DIFFUSION_ATTEMPT" in docker  # a later start has a higher number
  assert "export SET_DIFFUSION_ATTEMPT=$(date +%s)" in text
  assert "--spot" not in words
  assert (
    subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
  )


@pytest.fixture
def manifest(shown):
  """The JobSet that kubectl would be given."""

  def render(*words, given=GKE, **more):
    command, text = shown("gke", *given, *words, **more)
    assert command == ["kubectl", "apply", "--filename=-"]
    return yaml.safe_load(text)

  return render


def job_of(found):
  (job,) = found["spec"]["replicatedJobs"]
  return job, job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_jobset_of_tpu_slices(manifest):
  found = manifest("--topology=v5e:16x16", "--slices=4", "--spot")
  replicated, job, pod = job_of(found)
  assert replicated["replicas"] == 4
  assert job["parallelism"] == job["completions"] == 64
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "16x16",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["args"] == COMMAND[1:]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  job, attempt = container["env"]  # and nothing that GKE says itself
  assert job == {"name": "SET_DIFFUSION_JOB", "value": "default/mine"}
  assert attempt["name"] == "SET_DIFFUSION_ATTEMPT"
  assert "restart-attempt" in attempt["valueFrom"]["fieldRef"]["fieldPath"]
  one = job_of(manifest("--topology=v5e:1x1"))
  assert one[1]["parallelism"] == 1
  assert one[2]["containers"][0]["resources"]["limits"] == {"google.com/tpu": 1}


def test_jobset_of_newer_chips(manifest):
  """Chips of a machine and labels come from the one table."""
  _, job, pod = job_of(manifest("--topology=tpu7x:2x2x4"))
  assert job["parallelism"] == 4
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu7x",
    "cloud.google.com/gke-tpu-topology": "2x2x4",
  }
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
  _, job, pod = job_of(manifest("--topology=gpu:gb200x72"))
  assert job["parallelism"] == 18
  assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-gb200"}
  assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_a_run_in_a_bucket_needs_no_volume(manifest, shown):
  found = manifest("--topology=v5e:4x4", given=GKE[:2], command=BUCKET)
  assert jobset.mistakes(found) == []
  _, _, pod = job_of(found)
  (container,) = pod["containers"]
  assert "volumes" not in pod and "volumeMounts" not in container
  assert container["args"] == BUCKET[1:] and pod["hostNetwork"]
  words = ["--topology=v5e:4x4", "--volume=claim:/data"]  # such as for the corpus
  _, _, pod = job_of(manifest(*words, given=GKE[:2], command=BUCKET))
  assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/data"
  words, text = shown("tpu", *TPU[:4], "--topology=v5e:4x4", command=BUCKET)
  assert "nfs" not in text and "/runs" not in text and is_bash(text)
  assert not [w for w in words if w.startswith(("--service-account", "--scopes"))]


def test_service_accounts(manifest, shown):
  words = ["--topology=gpu:h100x16", "--service-account=runs"]
  found = manifest(*words, given=GKE[:2], command=BUCKET)
  assert jobset.mistakes(found) == []
  _, _, pod = job_of(found)
  assert pod["serviceAccountName"] == "runs"
  assert "hostNetwork" not in pod and "dnsPolicy" not in pod  # there it is the node's
  account, scopes = "runs@p.iam.gserviceaccount.com", "https://x/auth/cloud-platform"
  options = [f"--service-account={account}", f"--scopes={scopes}"]
  words, _ = shown("tpu", *TPU, "--topology=v5e:4x4", *options)
  assert set(options) <= set(words)


def test_variables_of_the_run(manifest, shown, monkeypatch):
  monkeypatch.setenv("HERE", "as it is")
  given = ["--env=HERE", "--env=B=a=$(HOME) $$ it's\n2 lines", "--env=EMPTY="]
  values = {"HERE": "as it is", "B": "a=$(HOME) $$ it's\n2 lines", "EMPTY": ""}
  command = [*BUCKET, "--config.data.source=$(HOME)"]
  found = manifest("--topology=gpu:h100x16", *given, command=command)
  assert jobset.mistakes(found) == []
  (container,) = job_of(found)[2]["containers"]
  variables = {v["name"]: v["value"] for v in container["env"] if "value" in v}
  # Kubernetes replaces $(NAME) and reads $$ as one $.
  assert {name: variables[name].replace("$$", "$") for name in values} == values
  assert "$(" not in re.sub(r"\$\$", "", "".join([*container["args"], variables["B"]]))
  _, text = shown("tpu", *TPU, "--topology=v5e:4x4", *given)
  docker = text[text.index("docker run") : text.index("  code=$?")]
  assert is_bash(text)
  words = shlex.split(docker)
  assert {f"--env={name}={value}" for name, value in values.items()} <= set(words)
  assert words[-len(COMMAND) :] == ["registry/image:1", *COMMAND[1:]]


def test_gpus_have_shared_memory(manifest):
  found = manifest("--topology=gpu:h100x16")
  assert jobset.mistakes(found) == []
  pod = job_of(found)[2]
  mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
  assert mounts == {"runs": "/runs", "memory": "/dev/shm"}
  assert {"name": "memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
  pod = job_of(manifest("--topology=v5e:4x4"))[2]
  assert [volume["name"] for volume in pod["volumes"]] == ["runs"]


@pytest.mark.parametrize(
  ("verb", "words", "named"),
  [
    ("train", ["--config=c.py", "--workdir=/runs/one"], "--workdir=/runs/one"),
    ("train", ["--config=c.py", "--workdir=s3://b/one"], "--workdir=s3://b/one"),
    ("train", ["--config=c.py"], "train, without a place"),
    ("evaluate", ["--checkpoint=/runs/one"], "--checkpoint=/runs/one"),
    ("evaluate", ["--checkpoint=gs://b/x", "--output=/runs/x"], "--output=/runs/x"),
  ],
)
def test_files_on_a_disk_need_one_that_lasts(launch, verb, words, named):
  for script, given, option in (("gke", GKE, "--volume="), ("tpu", TPU, "--nfs=")):
    kept = [word for word in given if not word.startswith(option)]
    command = ["--topology=v5e:4x4", "--dry-run", "--", verb, *words]
    code, output, errors = launch(script, *kept, *command)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"error: {named}: needs {option}")
    assert launch(script, *given, *command)[0] == 0
  for place in ("gs://b/x", "hf://org/name"):
    command = ["--topology=v5e:4x4", "--dry-run", "--", "evaluate"]
    assert launch("gke", *GKE[:2], *command, f"--checkpoint={place}")[0] == 0


def test_jobset_of_gpus_says_who_is_who(manifest):
  found = manifest("--topology=gpu:h100x64")
  replicated, job, pod = job_of(found)
  assert (replicated["replicas"], job["parallelism"]) == (1, 8)
  env = {v["name"]: v for v in pod["containers"][0]["env"]}
  host = f"mine-{replicated['name']}-0-0.mine"
  assert env["JAX_COORDINATOR_ADDRESS"]["value"].split(":")[0] == host
  assert env["JAX_NUM_PROCESSES"]["value"] == "8"
  assert (
    "completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  )


@pytest.mark.parametrize(
  "words",
  [
    ["--topology=v5e:16x16"],
    ["--topology=v6e:16x16", "--slices=4", "--spot"],
    ["--topology=v4:2x2x1"],
    ["--topology=gpu:h100x64", "--restarts=0"],
  ],
)
def test_manifests_follow_the_schema(manifest, words):
  found = manifest(*words)
  assert jobset.mistakes(found) == []
  # The schema does see mistakes: one at a time.
  for where, fault in (
    (["spec"], {"replicas": 2}),
    (["spec", "failurePolicy"], {"maxRestart": 2}),
    (["spec", "failurePolicy", "rules", 0], {"action": "Restart"}),
    (["spec", "replicatedJobs", 0, "template", "spec"], {"parallelism": "four"}),
    (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec"], {"gpu": 1}),
  ):
    broken = yaml.safe_load(yaml.safe_dump(found))
    target = broken
    for key in where:
      target = target[key]
    target.update(fault)
    (line,) = jobset.mistakes(broken)
    assert next(iter(fault)) in line


def test_the_table_of_a_schema():
  """As `python -m tests.jobset` makes it: equal objects share a place."""
  word, number = {"type": "string"}, {"type": "integer"}
  port = {"type": "object", "required": ["number"], "properties": {"number": number}}
  fields = {
    "action": {"type": "string", "enum": ["Stop", "Go"]},
    "labels": {"type": "object", "additionalProperties": word},
    "limit": {"x-kubernetes-int-or-string": True},
    "one": port,
    "ports": {"type": "array", "items": port},
  }
  schema = {"openAPIV3Schema": {"type": "object", "properties": fields}}
  version = {"name": "v1alpha2", "schema": schema}
  assert jobset.table({"spec": {"versions": [version]}}) == [
    {
      "action": "Stop|Go",
      "labels": "{string}",
      "limit": "quantity",
      "one": "#1",
      "ports": "[#1]",
    },
    {"number!": "integer"},
  ]


@pytest.mark.parametrize(
  "script, words, message",
  [
    ("local", ["--processes=2", *COMMAND], "needs --devices"),
    ("local", ["--processes=0", *COMMAND], "--processes: 0"),
    ("local", [], "after -- there must be a command"),
    ("local", ["--", "sample"], "must be one of train, evaluate"),
    ("local", [*COMMAND, "--process=1"], "the launcher sets this"),
    ("slurm", ["--name=Two_Words", *COMMAND], "--name: Two_Words"),
    (
      "slurm",
      [*NODE, "--tasks-per-node=2", *COMMAND],
      "must be 8, a task for each GPU",
    ),
    ("slurm", ["--restarts=-1", *COMMAND], "--restarts: -1: must be a whole number"),
    ("slurm", ["--node=2", *COMMAND], "unrecognized arguments: --node=2"),
    ("gke", [*GKE, "--topology=v9:1", *COMMAND], "--topology=v9:1: must be one of"),
    ("gke", [*GKE, "--topology=gpu:h100x12", *COMMAND], "whole machines of 8"),
    ("gke", [*GKE, "--topology=v5e:2x3", *COMMAND], "must be a multiple of the 4"),
    ("gke", [*GKE[:2], "--volume=runs", "--topology=v4:2x2x1"], "must be CLAIM:/PATH"),
    ("gke", [*GKE, "--topology=gpu:b300x8", *COMMAND], "GKE has a label of nodes"),
    ("gke", [*GKE, "--env=A-B=1"], "--env: A-B=1: must be NAME=VALUE or NAME"),
    ("gke", [*GKE, "--env=NOT_SET_HERE"], "--env: NOT_SET_HERE: is not set here"),
    ("tpu", [*TPU, "--env=JAX_PROCESS_ID=1"], "JAX_PROCESS_ID: the launcher or the"),
    (
      "gke",
      [*GKE, "--env=A=1", "--env=A=2", "--topology=v4:2x2x1", *COMMAND],
      "A: is given 2",
    ),
    ("tpu", [*TPU, "--topology=gpu:h100x8", *COMMAND], "must be one of TPUs"),
    ("tpu", [*TPU, "--topology=tpu7x:2x2x1", *COMMAND], "are had through GKE"),
    ("slurm", ["--", "train", "--config=quikstart"], "the names are corpora, quickst"),
    ("slurm", [*NAMED, "--config.model.widht=3"], "did you mean model.width?"),
    ("local", RECIPE, 'data.source = "none": this configuration leaves the text to'),
    ("gke", [*GKE, "--topology=v5e:16x16", *RECIPE], 'data.source = "none"'),
    ("tpu", [*TPU, "--topology=v5e:16x16", *RECIPE], 'data.source = "none"'),
  ],
)
def test_mistakes_end_in_a_line(launch, script, words, message):
  code, _, errors = launch(script, *words)
  assert code == 2
  (line,) = errors.splitlines()
  assert line.startswith("error: ")
  assert message in line


def test_a_recipe_with_its_text_is_launched(launch):
  text = ["--config.data.source=prepared", "--config.data.directory=/runs/tokens"]
  for words in (NAMED, [*RECIPE, *text]):
    code, output, errors = launch("local", "--dry-run", *words)
    assert (code, errors) == (0, "")
    assert shlex.split(output)[1:] == ["-m", "set_diffusion_jax", *words[1:]]


@pytest.fixture
def supervise(tmp_path, monkeypatch):
  """`supervise` of launch/local.py, over Python code instead of a training."""
  monkeypatch.chdir(tmp_path)
  before = [signal.getsignal(number) for number in local.STOPS]
  yield lambda code, count, restarts: local.supervise(
    [sys.executable, "-c", code], count, None, restarts
  )
  for number, handler in zip(local.STOPS, before, strict=True):
    signal.signal(number, handler)


# Ends with the codes of a list, one an attempt; process 0 only counts the attempts.
ATTEMPTS = """
import os, pathlib, signal, sys, time
me = int(os.environ.get("JAX_PROCESS_ID", 0))
log = pathlib.Path(f"attempts-{me}")
attempt = len(log.read_text()) if log.exists() else 0
log.write_text("x" * (attempt + 1))
code = CODES[attempt]
other = pathlib.Path("attempts-1")  # of which the end of process 0 may be the end
while not (other.exists() and len(other.read_text()) > attempt):
  time.sleep(0.01)
if me == 1 and code not in (0, 42):
  time.sleep(60)  # a survivor that waits for the one that died
if code < 0:
  os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.mark.parametrize(
  "codes, restarts, expected, attempts",
  [
    ([0], 0, 0, 1),
    ([42, 42, 42, 0], 0, 0, 4),
    ([-9, 134, 0], 2, 0, 3),
    ([-9, -6, 5], 2, 5, 3),
    ([2], 5, 2, 1),
    ([42, 4], 5, 4, 2),
  ],
)
def test_the_supervisor_restarts_what_can_go_on(
  supervise, tmp_path, monkeypatch, codes, restarts, expected, attempts
):
  monkeypatch.setattr(local, "GRACE", 0.2)
  code = ATTEMPTS.replace("CODES", repr(codes))
  assert supervise(code, 2, restarts) == expected
  for process in range(2):
    assert len((tmp_path / f"attempts-{process}").read_text()) == attempts


def test_the_environment_of_a_process(monkeypatch):
  """What the user asks of XLA holds for every process."""
  monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
  found = local.environment(2, 3, 1, 99)
  assert found == {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_dump_to=x --xla_force_host_platform_device_count=3",
    "JAX_COORDINATOR_ADDRESS": "127.0.0.1:99",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
  }
  assert local.environment(1, None, 0, 99) == {}


@pytest.mark.jobs
@pytest.mark.slow
def test_local_goes_on_after_a_kill(tmp_path):
  """kill -9 of one of two processes: the launcher starts both again, to the end."""
  tiny.text_file(tmp_path)
  mesh = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1}
  fields = settings(
    tmp_path, train__steps=30, train__log_every=1, train__checkpoint_every=1, **mesh
  )
  file = jobs.config_file(tmp_path, fields)
  log = tmp_path / "log"
  with log.open("w") as output:
    process = subprocess.Popen(
      [
        *(sys.executable, LAUNCH / "local.py", "--processes=2", "--devices=1", "--"),
        *("train", f"--config={file}", f"--workdir={tmp_path}/run"),
      ],
      cwd=jobs.ROOT,
      env=jobs.environment(1),
      stderr=output,
      stdout=output,
    )
  wait_for(log, r"step 5 ", process)
  children = subprocess.run(
    ["ps", "-o", "pid=", "--ppid", str(process.pid)],
    capture_output=True,
    text=True,
    check=True,
  )
  os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
  assert process.wait(jobs.TIMEOUT) == 0, log.read_text()
  text = log.read_text()
  assert "ended with 137" in text
  assert "starting again; 2 restarts are left" in text
  assert "continues from step" in text
  assert "step 30  held out" in text


def wait_for(log: pathlib.Path, pattern: str, process=None) -> None:
  deadline = time.monotonic() + jobs.TIMEOUT
  while not (log.exists() and re.search(pattern, log.read_text())):
    assert process is None or process.poll() is None, log.read_text()
    assert time.monotonic() < deadline, log.exists() and log.read_text()
    time.sleep(0.2)


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


@pytest.fixture
def slurm(tmp_path):
  """A Slurm of one node, this one; the environment in which its commands work."""
  tools = "munged mungekey slurmctld slurmd sbatch scontrol".split()
  if os.geteuid() or not all(shutil.which(tool) for tool in tools):
    pytest.skip("needs root, slurm-wlm and munge")
  home = tmp_path / "slurm"
  for folder in (home, home / "state", home / "spool"):
    folder.mkdir()
  host = socket.gethostname().split(".")[0]
  conf = home / "slurm.conf"
  conf.write_text(
    SLURM_CONF.format(host=host, home=home, ports=[jobs.free_port(), jobs.free_port()])
  )
  environment = {"SLURM_CONF": str(conf), "PATH": os.environ["PATH"]}
  subprocess.run(["mungekey", "--create", f"--keyfile={home}/key"], check=True)
  munge = ["munged", "--foreground", "--force", f"--key-file={home}/key"]
  names = ("socket", "pid-file", "log-file", "seed-file")
  munge += [f"--{name}={home}/munge.{name.split('-')[0]}" for name in names]
  daemons = []
  for words in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", host]):
    with (home / f"{words[0]}.out").open("w") as log:
      daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
    time.sleep(2)
  yield environment
  for daemon in reversed(daemons):
    daemon.terminate()
    daemon.wait(60)


@pytest.mark.jobs
@pytest.mark.slow
def test_a_real_slurm_runs_the_script(slurm, tmp_path):
  """Two tasks; SIGTERM saves and requeues; the end equals a run that was not stopped.

  A requeued job starts when the credentials of its last start have expired.
  """
  tiny.text_file(tmp_path)
  mesh = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1}
  changes = {**mesh, "train__steps": 40, "train__log_every": 1}
  changes |= {"train__checkpoint_every": 2}
  file = jobs.config_file(tmp_path, settings(tmp_path, **changes))
  run, whole = tmp_path / "run", tmp_path / "whole"
  submitted = subprocess.run(
    [
      *(sys.executable, LAUNCH / "slurm.py", "--name=mine", "--tasks-per-node=2"),
      *("--restarts=0", "--", "train", f"--config={file}", f"--workdir={run}"),
    ],
    cwd=tmp_path,
    env={**jobs.environment(1), **slurm, "PYTHONPATH": str(jobs.ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert submitted.returncode == 0, submitted.stderr
  number = submitted.stdout.split()[-1]
  log = tmp_path / f"mine-{number}.log"
  try:
    wait_for(log, r"step 5 ")
    scancel = ["scancel", "--signal=TERM", f"{number}.0"]
    subprocess.run(scancel, env=slurm, check=True)
    wait_for(log, r"stopped at step \d+, which is saved")
    wait_for(log, "continues from step")
    wait_for(log, r"step 40  held out")
    while subprocess.check_output(["squeue", "--noheader"], env=slurm):
      time.sleep(1)
  finally:
    subprocess.run(["scancel", number], env=slurm, check=False)
  job = jobs.Job(tmp_path, 2, 1, ["train", f"--config={file}", f"--workdir={whole}"])
  assert job.wait() == [0, 0], job.text()
  same = config(tmp_path, **changes)
  assert_identical(final(same, run), final(same, whole))
