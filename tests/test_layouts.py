"""The same numbers on 1, 2 and 4 devices, for any batch: with real networks.

Fakes and images of 4x4 pixels once hid a compiler's fault that spoilt rows of
every call on two devices, and not on one.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests import layouts

# Samples of two layouts may differ by rounding: by 1 of 255, in this share of
# all pixels.
ROUNDED = 2e-3


def run(folder, devices, *wanted):
  """Return the arrays of `tests.layouts` on so many devices."""
  out = folder / f"{devices}.npz"
  # This suite's own XLA_FLAGS have four devices and a lower optimisation.
  environment = os.environ | {"XLA_FLAGS": ""}
  subprocess.run(
    [sys.executable, "-m", "tests.layouts", str(devices), str(out), *wanted],
    env=environment,
    check=True,
  )
  with np.load(out) as arrays:
    return dict(arrays)


def assert_same_samples(found, wanted):
  apart = np.abs(found.astype(int) - wanted)
  assert apart.max() <= 1
  assert apart.mean() <= ROUNDED


def relative(found, wanted):
  return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def assert_same_numbers(found, wanted, limit):
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    assert relative(found[name], value) < limit, name


def test_two_devices_sample_what_four_do(tmp_path):
  # The smallest setting in which the fault that once was shows.
  (two,) = run(tmp_path, 2, "sample:64:12:128").values()
  assert two.std() > 50  # pictures, and no grey
  # In this process: on four devices, and with another optimisation.
  assert_same_samples(two, layouts.sample(8, 12, 128))


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [16, 32])
def test_samples_do_not_depend_on_the_layout(tmp_path, num_steps):
  wanted = [f"sample:{batch}:{num_steps}:256" for batch in (8, 64, 125, 128)]
  one, two, four = (run(tmp_path, devices, *wanted) for devices in (1, 2, 4))
  reference = one[wanted[0]]
  for layout in (one, two, four):
    for what in wanted:
      assert_same_samples(layout[what], reference)


@pytest.mark.slow
def test_gradients_and_features_do_not_depend_on_the_layout(tmp_path):
  wanted = [f"gradient:{batch}" for batch in (32, 256, 500, 512)]
  wanted += ["features", "inception"]
  one, *others = (run(tmp_path, devices, *wanted) for devices in (1, 2, 4))
  for other in others:
    assert_same_numbers(other, one, 1e-5)
