"""Four virtual CPU devices for every test; set before JAX is imported.

Most of the suite's time is compilation: programs that run for milliseconds are
compiled without optimisation.
"""

import importlib.metadata
import os

_FLAGS = [
  "--xla_force_host_platform_device_count=4",
  "--xla_backend_optimization_level=0",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # A third less to compile; an unknown flag, as in 0.12, ends the process.
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import pathlib

import numpy as np
import pytest

from cfgd.runtime import xla
from configs import base
from tests import tiny as tiny_config

xla.set_options()


def pytest_configure(config):
  config.addinivalue_line(
    "markers", "slow: left out of `make test`, part of `make test-all`"
  )


# The longest first, so that the workers end together.
_LONG = (
  *("training/test_loop", "test_entry_points", "test_layouts"),
  *("sweep/test_runner", "models/test_parity", "test_diffusion"),
  *("training/test_importer", "sampling/test_sampling", "training/test_steps"),
)


def pytest_collection_modifyitems(items):
  def place(item):
    name = item.nodeid.partition(".py")[0].removeprefix("tests/")
    return _LONG.index(name) if name in _LONG else len(_LONG)

  items.sort(key=place)


@pytest.fixture(scope="session")
def golden():
  """Return a function: name -> arrays of tests/golden (see its README)."""
  folder = pathlib.Path(__file__).parent / "golden"
  return lambda name: np.load(folder / f"{name}.npz")


@pytest.fixture
def set_defaults(monkeypatch):
  """Return a function that changes configs/base.py: SECTION_NAME=value."""
  get_config = base.get_config

  def change(**fields):
    def changed():
      config = get_config()
      with config.unlocked():
        for field, value in fields.items():
          section, name = field.split("_", 1)
          config[section][name] = value
      return config

    monkeypatch.setattr(base, "get_config", changed)

  return change


@pytest.fixture
def tiny():
  """Return the embedded sweep at the smallest size that has all its parts."""
  return make_tiny()


def make_tiny():
  return tiny_config.make_config()
