"""Who the other processes are; meshes of slices; how fast a run says it goes."""

import types

import jax
import pytest
from jax.experimental import multihost_utils

from set_diffusion_jax import sharding
from set_diffusion_jax.config import MeshConfig
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.hardware.chips import peak_flops
from set_diffusion_jax.jobs import cluster, processes
from set_diffusion_jax.training.throughput import Trace
from tests import jobs

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
}
EXPLICIT = {
  "JAX_COORDINATOR_ADDRESS": "host:1234",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "3",
}
GPUS = (
  "SLURM_STEP_TASKS_PER_NODE",
  "SLURM_GPUS_ON_NODE",
  "CUDA_VISIBLE_DEVICES",
  "ROCR_VISIBLE_DEVICES",
  "JAX_LOCAL_DEVICE_IDS",
  "JAX_PLATFORMS",
)
GKE = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


@pytest.fixture
def joined(monkeypatch):
  """What jax.distributed.initialize is called with, in an environment without a job."""
  calls = []
  for name in (*SLURM, *EXPLICIT, *GKE, "TPU_PROCESS_ADDRESSES"):
    monkeypatch.delenv(name, raising=False)
  record = lambda *given, **named: calls.append((given, named))
  monkeypatch.setattr(jax.distributed, "initialize", record)
  monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda name: None)
  return calls


def test_one_process_joins_nobody(joined):
  cluster.start()
  assert joined == []


@pytest.mark.parametrize(
  "environment, flags, expected, detection",
  [
    (EXPLICIT, {}, ("host:1234", 4, 3), "deactivate"),
    ({**SLURM, **EXPLICIT}, {"process": 0}, ("host:1234", 4, 0), "deactivate"),
    (
      SLURM,
      {"coordinator": "h:1", "processes": 2, "process": 1},
      ("h:1", 2, 1),
      "deactivate",
    ),
    (SLURM, {}, (None, None, None), None),
    (GKE, {}, (None, None, None), None),
  ],
)
def test_flags_then_environment_then_scheduler(
  joined, monkeypatch, environment, flags, expected, detection
):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  cluster.start(**flags)
  ((given, named),) = joined
  assert given[:3] == expected
  assert named["cluster_detection_method"] == detection


@pytest.mark.parametrize(
  "tasks, node, seen, expected",
  [
    ("8(x2)", "8", "0,1,2,3,4,5,6,7", None),  # jax gives each the one of its number
    ("1(x2)", "8", "0,1,2,3,4,5,6,7", list(range(8))),
    ("1(x2)", "4", "", list(range(4))),
    ("1", "", "GPU-3f,GPU-77", [0, 1]),
    ("8(x2)", "8", "3", [0]),  # bound by Slurm: a task sees its own only
    ("2(x2)", "8", "4,5,6,7", [0, 1, 2, 3]),
    ("2(x2)", "", "", None),  # no GPUs
  ],
)
def test_the_gpus_of_a_slurm_task(joined, monkeypatch, tasks, node, seen, expected):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  for name, value in zip(GPUS, (tasks, node, seen, "", None, None), strict=True):
    monkeypatch.delenv(name, raising=False)
    if value is not None:
      monkeypatch.setenv(name, value)
  cluster.start()
  ((given, _),) = joined
  assert given[3] == expected
  monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "1")  # the user's own choice counts
  cluster.start()
  assert joined[1][0][3] is None


@pytest.mark.parametrize("tasks", ["2(x3)", "1,2", "16"])
def test_slurm_tasks_that_leave_gpus_unused(joined, monkeypatch, tasks):
  for name in GPUS:
    monkeypatch.delenv(name, raising=False)
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
  monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
  with pytest.raises(UserError) as error:
    cluster.start()
  assert f"SLURM_STEP_TASKS_PER_NODE={tasks}: with 8 GPUs" in str(error.value)
  assert joined == []
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  cluster.start()
  assert joined[0][0][3] is None


@pytest.mark.parametrize(
  "environment, flags, words",
  [
    ({}, {"processes": 2}, ["--processes=2", "--coordinator, --process must be"]),
    ({"JAX_PROCESS_ID": "1"}, {}, ["JAX_PROCESS_ID=1", "--processes must be"]),
    ({**EXPLICIT, "JAX_PROCESS_ID": "one"}, {}, ["JAX_PROCESS_ID=one", "number"]),
    ({**EXPLICIT, "JAX_PROCESS_ID": "4"}, {}, ["JAX_PROCESS_ID=4", "below", "4"]),
    (EXPLICIT, {"coordinator": "host"}, ["--coordinator=host", "HOST:PORT"]),
  ],
)
def test_wrong_coordinates(joined, monkeypatch, environment, flags, words):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError) as error:
    cluster.start(**flags)
  assert all(word in str(error.value) for word in words), error.value
  assert joined == []


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_jax_reads_what_gke_injects(tmp_path, slices):
  """Two hosts of one slice, or one of each of two, met through jax's own detection."""
  code = (
    "import jax; from set_diffusion_jax.jobs import cluster, processes;"
    "cluster.start();"
    "print(jax.process_count(), processes.gather(jax.process_index()))"
  )
  started, port = [], str(jobs.free_port())
  for index in range(2):
    environment = {
      **jobs.environment(1),
      "JAX_FORCE_TPU_INIT": "1",
      "JAX_COORDINATOR_PORT": port,
      "TPU_WORKER_ID": str(index if slices == 1 else 0),
      "TPU_WORKER_HOSTNAMES": "localhost,localhost" if slices == 1 else "localhost",
      "MEGASCALE_COORDINATOR_ADDRESS": "localhost" if slices > 1 else "",
      "MEGASCALE_NUM_SLICES": str(slices) if slices > 1 else "",
      "MEGASCALE_SLICE_ID": str(index) if slices > 1 else "",
    }
    started.append(jobs.python(tmp_path / f"log-{index}", code, environment))
  for log, process in started:
    assert process.wait(jobs.TIMEOUT) == 0, log.read_text()
    assert log.read_text().splitlines()[-1] == "2 [0, 1]"


def devices(count, slices):
  """Stand-ins for devices of several slices."""
  each = count // slices
  return [
    types.SimpleNamespace(platform="cpu", slice_index=i // each, process_index=0, id=i)
    for i in range(count)
  ]


@pytest.mark.parametrize("process", [0, 1])
def test_what_only_one_process_has_is_seen_by_all(monkeypatch, process):
  """Otherwise one would end, and the others wait for it."""
  rows = [{"jax": "1"}, {"jax": "1", "libtpu": "2"}]
  monkeypatch.setattr(processes, "gather", lambda facts: rows)
  with pytest.raises(UserError, match="libtpu = None in process 0, '2' in process 1"):
    processes.check_same(rows[process])


def test_slices_are_found_and_checked():
  assert sharding._mesh_shape(MeshConfig(fsdp=2), 16, 2) == (2, 4, 2, 1)
  assert sharding._mesh_shape(MeshConfig(slice=2), 8, 1) == (2, 4, 1, 1)
  with pytest.raises(UserError, match=r"mesh.slice = 1: must be 2"):
    sharding.make_mesh(MeshConfig(slice=1), devices(8, 2))
  with pytest.raises(UserError, match=r"mesh = 3 x -1 x 1 x 1 .*the 8 devices"):
    sharding.make_mesh(MeshConfig(slice=3), devices(8, 1))


@pytest.mark.multidevice
def test_slices_share_out_rows_and_hold_all_parameters():
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  mesh = sharding.make_mesh(MeshConfig(slice=2, fsdp=2))
  assert dict(mesh.shape) == {"slice": 2, "data": 1, "fsdp": 2, "tensor": 1}
  assert sharding.row_ways(mesh) == 4
  assert sharding.row_share(mesh) == (0, 1)
  for pattern, axes in sharding.RULES:
    assert not {"slice", "data"} & set(axes), pattern
  with pytest.raises(UserError, match=r"batch = 6: must be a multiple of 4 .slice 2"):
    sharding.check_batch("batch", 6, mesh)


def test_peaks_of_device_kinds():
  peaks = {
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v4": 275e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA B300 SXM6 AC": 2250e12,
    "NVIDIA GB200": 2500e12,
    "TPU7x": 2307e12 / 2,  # a chip is two devices
  }
  assert {kind: peak_flops(kind) for kind in peaks} == peaks
  assert peak_flops("cpu") is None
  assert peak_flops("NVIDIA H100 PCIe") is None


def test_a_trace_of_a_few_steps(tmp_path):
  with Trace(tmp_path / "profile", first=10) as trace:
    for step in range(11, 18):
      trace.before(step, [])
      jax.block_until_ready(jax.numpy.ones(3) + step)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  with Trace(None, first=0) as trace:
    trace.before(3, [])
