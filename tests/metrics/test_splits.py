"""The rule of the splits, by number of samples and protocol."""

import numpy as np
import pytest

from cfgd.metrics import scores
from cfgd.metrics import splits


@pytest.mark.parametrize(
  ("count", "num_splits", "protocol", "sizes"),
  [
    (50_000, 0, "adm", [5000] * 10),
    (10_000, 0, "adm", [5000] * 2),
    (12_500, 0, "adm", [5000, 5000, 2500]),
    (5_001, 0, "adm", [5000, 1]),
    (5_000, 0, "adm", [5000]),
    (512, 0, "adm", [512]),
    (50_000, 0, "pytorch_fid", [5000] * 10),
    (10_000, 0, "pytorch_fid", [1000] * 10),
    (9_999, 0, "pytorch_fid", [9999]),
    (10_000, 0, "", [1000] * 10),
    (1_000, 0, "", [1000]),
    (1_000, 3, "", [333, 333, 334]),
    (12_500, 10, "adm", [1250] * 10),
    (9, 1, "adm", [9]),
  ],
)
def test_sizes_of_splits(count, num_splits, protocol, sizes):
  edges = splits.edges(count, num_splits, protocol)
  assert (edges[0], edges[-1]) == (0, count)
  np.testing.assert_array_equal(np.diff(edges), sizes)
  assert splits.about(edges)["num_splits"] == len(sizes)


def test_provenance_tells_splits_of_unequal_size():
  assert splits.about([0, 5000, 10_000]) == {"num_splits": 2}
  assert splits.about([0, 5000, 6000]) == {"num_splits": 2, "split_rows": 5000}


def test_one_split_has_no_spread():
  probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 60)
  whole = splits.inception_score("is_x", probabilities, [0, 60])
  assert whole == {
    "is_x": scores.inception_score(probabilities, 1, np.random.default_rng(0))[
      0
    ]
  }
  three = splits.inception_score("is_x", probabilities, [0, 20, 40, 60])
  assert three.keys() == {"is_x", "is_x_std"}
  assert three["is_x_std"] > 0
