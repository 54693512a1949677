"""What is installed from a wheel, used far from the clone."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from set_diffusion_jax.config import files
from set_diffusion_jax.version import code_digest
from tests import jobs

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-index"]
SETTINGS = ["--config=quickstart:method=set", "--config.train.steps=1"]


def run(words, folder, **variables):
  """What a command prints, in a folder, with nothing of this clone to be found."""
  done = subprocess.run(
    list(map(str, words)),
    cwd=folder,
    env=jobs.environment(1, **variables),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """A wheel of this clone, built in a copy of it."""
  source = tmp_path_factory.mktemp("source")
  for name in ("set_diffusion_jax", "configs", "launch"):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(jobs.ROOT / name, source / name, ignore=ignored)
  for name in ("setup.py", "pyproject.toml", "LICENSE"):
    shutil.copy(jobs.ROOT / name, source)
  build = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir=wheels", "."]
  run(build, source)
  (built,) = (source / "wheels").iterdir()
  return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
  """Where the wheel alone is installed; the rest comes from this environment."""
  target = tmp_path_factory.mktemp("site")
  run([*PIP, "install", *OFFLINE, f"--target={target}", wheel], target)
  return target


def test_every_dependency_has_bounds_and_the_lower_ones_are_tested(wheel):
  with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    lines = archive.read(name).decode().splitlines()
  needed = [line.split(": ")[1] for line in lines if line.startswith("Requires-Dist")]
  needed = {r.name: r for r in map(Requirement, needed) if r.marker is None}
  lines = (jobs.ROOT / "tests" / "constraints-lowest.txt").read_text().splitlines()
  lowest = [Requirement(line) for line in lines if not line.startswith("#")]
  lowest = {r.name: next(iter(r.specifier)) for r in lowest}
  assert set(needed) == set(lowest) and "jax" in needed
  for name, requirement in needed.items():
    bounds = {s.operator: s.version for s in requirement.specifier}
    assert set(bounds) == {">=", "<"}, name
    assert Version(bounds[">="]) == Version(lowest[name].version), name


def test_one_name_at_the_top(site):
  found = {path.name.split("-")[0] for path in site.iterdir()}
  assert found == {"set_diffusion_jax", "bin"}
  package = site / "set_diffusion_jax"
  assert {file.stem for file in (package / "configs").glob("[a-z]*.py")} == set(
    files.names()
  )
  assert (package / "launch" / "gke.py").is_file()


@pytest.mark.parametrize("place", ["wheel", "clone"])
def test_light_launchers_run_as_modules(request, tmp_path, place):
  where = jobs.ROOT if place == "clone" else request.getfixturevalue("site")
  for name in ("local", "slurm"):
    words = [sys.executable, "-m", f"set_diffusion_jax.launch.{name}"]
    words += ["--dry-run", "--", "train", *SETTINGS, "--workdir=run"]
    text = run(words, tmp_path, PYTHONPATH=str(where))
    assert f"-m set_diffusion_jax train {' '.join(SETTINGS)} --workdir=run" in text
  assert not list(tmp_path.iterdir())


# Every configuration by name and every launcher, in one process for the sake of time.
EVERYTHING = """
import runpy, sys
from set_diffusion_jax.config import files
from set_diffusion_jax.configs import corpora, reproduction, scale
from set_diffusion_jax.version import code_digest

variants = {"corpora": [f"corpus={name}" for name in corpora.CORPORA]}
variants["reproduction"] = [f"model={name}" for name in reproduction.MODELS]
variants["scale"] = [f"recipe={name}" for name in scale.RECIPES]
variants["quickstart"] = ["method=ar", "method=set"]
assert set(files.names()) == set(variants)
for name, arguments in variants.items():
  for argument in arguments:
    files.read_config([f"--config={name}:{argument}"])
command = "--dry-run -- train --config=quickstart --workdir=/runs/one".split()
shared = "--name=mine --image=image --topology=v5e:4x4".split()
launchers = {
  "gke": [*shared, "--volume=claim:/runs", *command],
  "tpu": [*shared, "--project=p", "--zone=z", "--nfs=host:/share", *command],
  "quickstart": ["--help"],
  "reproduction": ["--help"],
}
for name, words in launchers.items():
  sys.argv = [name, *words]
  try:
    runpy.run_module(f"set_diffusion_jax.launch.{name}", run_name="__main__")
  except SystemExit as end:
    assert not end.code, name
print(sys.modules["set_diffusion_jax"].__file__, code_digest())
"""


def test_every_configuration_and_launcher(site, tmp_path):
  text = run([sys.executable, "-c", EVERYTHING], tmp_path, PYTHONPATH=str(site))
  assert text.count("--config=quickstart") == 2
  assert text.count("usage: ") == 2
  # A checkpoint of one says nothing of a change to the other.
  file, digest = text.splitlines()[-1].split()
  assert pathlib.Path(file).is_relative_to(site)
  assert digest == code_digest()
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_of_a_fresh_environment(wheel, tmp_path):
  """A virtual environment in which only the dependencies are those of this one."""
  environment, empty = tmp_path / "environment", tmp_path / "empty"
  empty.mkdir()
  run([sys.executable, "-m", "venv", "--without-pip", environment], empty)
  (packages,) = environment.glob("lib/python*/site-packages")
  here = pathlib.Path(pytest.__file__).parents[1]
  (packages / "dependencies.pth").write_text(f"{here}\n")
  target = [f"--python={environment}/bin/python", *OFFLINE, "--ignore-installed"]
  run([*PIP, *target[:1], "install", *target[1:], wheel], empty)
  command = environment / "bin" / "set-diffusion"
  small = ["--config.model.layers=1", "--config.train.batch_size=2"]
  small += ["--config.evaluate.sequences=8"]
  run([command, "train", *SETTINGS, *small, "--workdir=run"], empty, PYTHONPATH="")
  text = run([command, "evaluate", "--checkpoint=run"], empty, PYTHONPATH="")
  assert "perplexity" in text
  gaps = ["infill", "--checkpoint=run", "The [MASK:3]."]
  assert "sample" in run([command, *gaps], empty, PYTHONPATH="")
