"""Precision and recall by float32 and bounds, against float64's."""

import pathlib

import numpy as np
import pytest

from cfgd.metrics import manifold
from tests.metrics import oracles

_GOLDEN_PATH = pathlib.Path(__file__).parents[1] / "golden"
_CASES = [("a", 1), ("a", 3), ("a", 5), ("b", 3), ("modes", 3), ("dup", 3)]


@pytest.fixture(scope="module")
def golden():
  with np.load(_GOLDEN_PATH / "fid_is_reference.npz") as arrays:
    return dict(arrays)


@pytest.fixture(params=[2**24, 1000])
def block(request, monkeypatch):
  """Blocks of all rows, and of a few, the last one filled up."""
  monkeypatch.setattr(manifold, "_BLOCK", request.param)


@pytest.mark.parametrize(("case", "k"), _CASES)
@pytest.mark.usefixtures("block")
def test_golden_arrays(golden, case, k):
  real, fake = golden[f"pr_{case}_ref"], golden[f"pr_{case}_sample"]
  expected = tuple(
    golden[f"pr_{case}_k{k}_{name}"] for name in ("precision", "recall")
  )
  assert manifold.precision_recall(real, fake, k) == expected
  for side, features in (("sample", fake), ("ref", real)):
    desired = golden[f"pr_{case}_k{k}_radii2_{side}"]
    radii = manifold.neighbour_radii(features, k)
    np.testing.assert_allclose(radii, desired, rtol=1e-9)
    np.testing.assert_array_equal(radii == 0, desired == 0)
  given = manifold.precision_recall(real, fake, k, real_radii=radii)
  assert given == expected
  assert (golden["pr_dup_k3_radii2_ref"] == 0).any()


def test_precision_and_recall_are_not_swapped():
  # Fake rows within one of two far real clusters: all are precise, half of the
  # real rows are covered.
  rng = np.random.default_rng(0)
  near, far = rng.uniform(size=(2, 200, 2))
  fake = rng.uniform(0.2, 0.8, (400, 2))
  real = np.concatenate([near, far + 100.0])
  precision, recall = manifold.precision_recall(real, fake, 5)
  assert precision == 1.0
  assert 0.1 < recall <= 0.5


def clouds(shift=0.0, scale=1.0, dim=40):
  """Return two clouds that lie over each other in part."""
  rng = np.random.default_rng(0)
  real = rng.standard_normal((700, dim))
  fake = 0.95 * rng.standard_normal((500, dim)) + 0.1
  fake[:40] = real[:40]
  return scale * (real + shift), scale * (fake + shift)


@pytest.mark.parametrize("scale", [1.0, 3e-20, 1e25])
@pytest.mark.parametrize("shift", [0.0, 5.0, 300.0])
def test_results_are_those_of_float64(shift, scale):
  # Features far from 0, of which float32's products keep few digits, and such
  # whose squares float32 cannot hold.
  real, fake = clouds(shift, scale)
  expected = oracles.precision_recall(real, fake, 3)
  assert 0.1 < expected[0] < 0.9
  assert manifold.precision_recall(real, fake, 3) == expected
  np.testing.assert_allclose(
    manifold.neighbour_radii(real, 3),
    oracles.neighbour_radii(real, 3),
    rtol=1e-8,
  )


def test_the_nearest_of_many_are_found_in_groups():
  # 700 rows are more than the groups that are looked at hold.
  assert 8 * manifold._GROUP < 700
  features, _ = clouds()
  features = np.sort(features, axis=0)  # neighbours share a group
  rows = manifold._Rows(features, features.mean(axis=0), 1.0)
  found, last = manifold._nearest(rows.arrays, rows.arrays, 8)
  distances = manifold.squared_distances(features, features)
  expected = np.argsort(distances, axis=1, kind="stable")[:, :8]
  np.testing.assert_array_equal(np.sort(found), np.sort(expected))
  eighth = np.sort(distances, axis=1)[:, 7]
  assert (last <= eighth).all()
  errors = np.asarray(rows.arrays[2])
  assert (eighth - last <= 2 * (errors + errors.max())).all()


def test_what_float32_cannot_tell_is_told_by_float64():
  # Fake rows within 1e-9 of the edge of a ball, on either side.
  axis = np.eye(8)
  real = np.concatenate([np.zeros((1, 8)), axis[:1], 50 + 9 * axis])
  signs = np.where(np.arange(400) % 2, 1, -1)
  directions = np.random.default_rng(0).standard_normal((400, 8))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  directions[:, 0] = -np.abs(directions[:, 0])  # away from the other ball
  fake = (1 + 1e-9 * signs)[:, None] * directions
  precision, _ = manifold.precision_recall(real, fake, 1)
  assert precision == 0.5
  assert manifold.precision_recall(real, fake, 1) == oracles.precision_recall(
    real, fake, 1
  )


def test_more_duplicates_than_are_looked_at():
  points = np.random.default_rng(0).standard_normal((12, 300)) + 5.0
  copies = np.repeat(points, 20, axis=0)
  assert (manifold.neighbour_radii(copies, 3) == 0).all()
  # Rows that float64 cannot tell from copies count as such.
  nearly = copies * (1 + 1e-15 * np.arange(len(copies))[:, None] % 3)
  assert (manifold.neighbour_radii(nearly, 3) == 0).all()
  assert manifold.precision_recall(copies, copies, 3) == (1.0, 1.0)
  assert manifold.precision_recall(copies, copies + 1e-3, 3) == (0.0, 0.0)
  # The 25th neighbour is none of the copies.
  np.testing.assert_allclose(
    manifold.neighbour_radii(copies, 25),
    oracles.neighbour_radii(copies, 25),
    rtol=1e-9,
  )


def test_rows_that_are_all_the_same():
  rows = np.full((9, 4), 0.1)
  assert manifold.precision_recall(rows, rows[:5], 3) == (1.0, 1.0)
  assert manifold.precision_recall(0 * rows, 0 * rows, 3) == (1.0, 1.0)


@pytest.mark.parametrize(
  ("real", "fake", "k", "words"),
  [
    (np.ones((5, 2)), np.ones((5, 2)), 5, r"k=5: must be from 1 to 4"),
    (np.ones((9, 2)), np.ones((5, 2)), 5, r"k=5: must be from 1 to 4"),
    (np.ones((5, 2)), np.ones((5, 2)), 0, r"k=0: must be from 1 to 4"),
    (np.ones((9, 2)), np.ones((9, 3)), 3, "2 and 3 features"),
    (np.ones((9, 2)), np.full((9, 2), np.nan), 3, r"fake\[0, 0\]=nan"),
  ],
)
def test_what_does_not_fit_is_refused(real, fake, k, words):
  with pytest.raises(ValueError, match=words):
    manifold.precision_recall(real, fake, k)
