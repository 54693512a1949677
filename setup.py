"""Packaging of set_diffusion_jax."""

from setuptools import find_packages, setup

setup(
  name="set_diffusion_jax",
  version="0.1.0",
  description="Set Diffusion language models in JAX: train, evaluate, sample.",
  license="MIT",
  packages=find_packages(include=["set_diffusion_jax", "set_diffusion_jax.*"]),
  python_requires=">=3.11",
  install_requires=[
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "grain>=0.2.15",
    "array_record>=0.8",
    "tensorflow-datasets>=4.9.8",
    "importlib_resources>=6",  # TFDS imports it without asking for it
    "tokenizers>=0.21",
    "ml-collections>=1.1",
    "pyyaml>=6",
    "etils[epath]>=1.9",
    "jaxtyping>=0.3",
    "ml_dtypes>=0.5",
    "tensorstore>=0.1.70",
    "tensorboardX>=2.6",
    "tqdm>=4.66",
  ],
  extras_require={
    "gpu": ["jax[cuda13]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "sentencepiece": ["sentencepiece>=0.2.3"],
    "torch": ["torch>=2.6", "transformers>=4.52"],  # the other side of parity tests
    "dev": [
      "pytest>=9",
      "pytest-xdist>=3.6",
      "hypothesis>=6",
      "beartype>=0.20",
      "matplotlib>=3.9",
      "safetensors>=0.5",
      "sentencepiece>=0.2.3",
      "jsonschema>=4",
      "ruff==0.17.5",
    ],
  },
  entry_points={"console_scripts": ["set-diffusion = set_diffusion_jax.cli:main"]},
)
