"""Tests of cfgd.metrics.scores.

The arrays of golden/fid_is_reference.npz were computed by independent code:
Frechet distances as the nuclear norm of the centred features (`exact`, which
agrees with pytorch-fid's calculate_frechet_distance and scipy.linalg.sqrtm to
the tolerance used here), Inception Scores by improved-gan's rule, KID by its
formula. Features and logits are random float32 numbers.
"""

import pathlib

import numpy as np
import pytest

from cfgd.metrics import scores

_GOLDEN_PATH = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
  with np.load(_GOLDEN_PATH / "fid_is_reference.npz") as arrays:
    return dict(arrays)


def _softmax(logits):
  logits = np.asarray(logits, np.float64)
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  return powers / powers.sum(axis=1, keepdims=True)


def _stream(features, batch):
  moments = scores.moments(features[:0])
  for start in range(0, len(features), batch):
    part = scores.moments(features[start : start + batch])
    moments = scores.merge(moments, part)
  return moments


def _statistics(features, batch=64):
  return scores.mean_and_covariance(_stream(features, batch))


def _singular_tolerance(cov_1, cov_2):
  # An eigendecomposition of a singular covariance cannot do better than the
  # root of float64's rounding.
  return 1e-4 * (np.trace(cov_1) + np.trace(cov_2)) / 100


def test_moments_match_numpy(golden):
  x = golden["fid_full_x"].astype(np.float64)
  mean, cov = _statistics(x, batch=37)
  np.testing.assert_allclose(mean, x.mean(axis=0), rtol=0, atol=1e-13)
  np.testing.assert_allclose(cov, np.cov(x, rowvar=False), rtol=0, atol=1e-13)
  np.testing.assert_array_equal(cov, cov.T)


def test_moments_survive_a_large_mean():
  # Exact in float64 before and after the offset, so only the accumulation can
  # lose digits: raw sums of squares would be off by 1e-3 here.
  x = np.random.default_rng(0).integers(-512, 512, (500, 8)) / 1024
  _, cov = _statistics(x + 2.0**20, batch=33)
  np.testing.assert_allclose(cov, np.cov(x, rowvar=False), rtol=0, atol=1e-9)


@pytest.mark.parametrize("cut", [0, 1, 123, 499, 500])
def test_merge_equals_the_whole(golden, cut):
  x = golden["fid_full_x"]
  merged = scores.merge(_stream(x[:cut], 50), _stream(x[cut:], 50))
  whole = _stream(x, len(x))
  assert merged.count == whole.count == 500
  np.testing.assert_allclose(merged.mean, whole.mean, rtol=0, atol=1e-13)
  np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=0, atol=1e-10)


# NumPy only warns of the mean of no rows.
@pytest.mark.filterwarnings("error")
def test_empty_batch_and_empty_merge_change_nothing(golden):
  x = golden["fid_full_x"]
  moments = _stream(x, 100)
  assert scores.merge(moments, scores.moments(x[:0])) is moments
  nothing = scores.merge(scores.moments(x[:0]), scores.moments(x[:0]))
  assert nothing.count == 0
  assert np.isfinite(nothing.mean).all()


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_distance_does_not_depend_on_the_batch_size(golden, batch):
  distance = scores.frechet_distance(
    *_statistics(golden["fid_full_x"], batch),
    *_statistics(golden["fid_full_y"], batch),
  )
  np.testing.assert_allclose(distance, golden["fid_full_exact"], rtol=1e-9)


def test_frechet_shift_is_its_squared_length(golden):
  x = golden["fid_full_x"].astype(np.float64)
  distance = scores.frechet_distance(
    *_statistics(x), *_statistics(x + golden["fid_shift_vector"])
  )
  np.testing.assert_allclose(distance, golden["fid_shift_exact"], rtol=1e-9)
  np.testing.assert_allclose(
    distance, golden["fid_shift_closed_form"], rtol=1e-9
  )


def test_frechet_diagonal_closed_form(golden):
  distance = scores.frechet_distance(
    golden["fid_diag_mu1"],
    np.diag(golden["fid_diag_var1"]),
    golden["fid_diag_mu2"],
    np.diag(golden["fid_diag_var2"]),
  )
  np.testing.assert_allclose(
    distance, golden["fid_diag_closed_form"], rtol=1e-9
  )


@pytest.mark.parametrize("case", ["rankdef", "lowrank"])
def test_frechet_singular(golden, case):
  mean_1, cov_1 = _statistics(golden[f"fid_{case}_x"])
  mean_2, cov_2 = _statistics(golden[f"fid_{case}_y"])
  distance = scores.frechet_distance(mean_1, cov_1, mean_2, cov_2)
  np.testing.assert_allclose(
    distance,
    golden[f"fid_{case}_exact"],
    rtol=0,
    atol=_singular_tolerance(cov_1, cov_2),
  )


def test_frechet_identical(golden):
  for case in ("full", "rankdef"):
    suffix = "" if case == "full" else f"_{case}"
    mean, cov = _statistics(golden[f"fid_{case}_x"])
    # Only the singular one loses digits.
    tolerance = 1e-9 if case == "full" else _singular_tolerance(cov, cov)
    distance = scores.frechet_distance(mean, cov, mean, cov)
    expected = golden[f"fid_identical{suffix}_exact"]
    np.testing.assert_allclose(distance, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_frechet_2048_features_with_a_cached_root(golden):
  statistics = []
  check = []
  for seed, count in zip(
    golden["fid_2048_seeds"], golden["fid_2048_n"], strict=True
  ):
    normal = np.random.default_rng(seed).standard_normal((count, 2048))
    features = np.maximum(normal * 0.5 + 0.3, 0).astype(np.float32)
    check.append(features.sum(dtype=np.float64))
    statistics.append(_statistics(features))
  np.testing.assert_allclose(check, golden["fid_2048_check"], rtol=1e-12)
  (mean_1, cov_1), (mean_2, cov_2) = statistics
  distance = scores.frechet_distance(
    mean_1, cov_1, mean_2, cov_2, root_1=scores.factor(cov_1)
  )
  np.testing.assert_allclose(
    distance,
    golden["fid_2048_exact"],
    rtol=0,
    atol=_singular_tolerance(cov_1, cov_2),
  )


def test_frechet_uses_the_given_root(golden):
  first = _statistics(golden["fid_full_x"])
  second = _statistics(golden["fid_full_y"])
  root = scores.factor(first[1])
  own = scores.frechet_distance(*first, *second)
  given = scores.frechet_distance(*first, *second, root_1=root)
  np.testing.assert_allclose(given, own, rtol=1e-12)
  without_cross = scores.frechet_distance(
    *first, *second, root_1=np.zeros_like(root)
  )
  delta = first[0] - second[0]
  expected = delta @ delta + np.trace(first[1]) + np.trace(second[1])
  np.testing.assert_allclose(without_cross, expected, rtol=1e-12)


@pytest.mark.parametrize("num_splits", [1, 5, 10])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_inception_score_matches_reference(golden, num_splits, dtype):
  probs = _softmax(golden["is_logits"]).astype(dtype)
  mean, std = scores.inception_score(probs, num_splits)
  name = f"splits{num_splits}"
  np.testing.assert_allclose(mean, golden[f"is_mean_{name}"], rtol=1e-6)
  np.testing.assert_allclose(std, golden[f"is_std_{name}"], rtol=1e-5)
  edges = [i * len(probs) // num_splits for i in range(num_splits + 1)]
  for i, expected in enumerate(golden[f"is_scores_{name}"]):
    part = probs[edges[i] : edges[i + 1]]
    np.testing.assert_allclose(
      scores.inception_score(part, 1), (expected, 0.0), rtol=1e-6
    )


def test_inception_score_of_parts_with_a_shorter_last_one(golden):
  probs = _softmax(golden["is_logits"])
  parts = [probs[start : start + 300] for start in range(0, 1003, 300)]
  expected = [
    np.exp(np.mean(np.sum(p * np.log(p / p.mean(axis=0)), axis=1)))
    for p in parts
  ]
  assert len(parts[-1]) == 103
  mean, std = scores.inception_score(probs, [0, 300, 600, 900, 1003])
  # The plain mean, as guided-diffusion: a short part counts like a whole one.
  np.testing.assert_allclose(mean, np.mean(expected), rtol=1e-12)
  np.testing.assert_allclose(std, np.std(expected), rtol=1e-9)


@pytest.mark.parametrize("edges", [[0, 4], [1, 5], [0, 3, 3, 5], [0, 4, 2, 5]])
def test_edges_of_splits_must_rise_from_the_first_row_to_the_last(edges):
  with pytest.raises(ValueError, match=r"splits=.*must rise from 0 to the 5"):
    scores.inception_score(np.full((5, 2), 0.5), edges)


def test_inception_score_counts_zero_times_log_zero_as_zero(golden):
  scale = float(golden["is_peaked_logit_scale"])
  probs = _softmax(scale * golden["is_logits"]).astype(np.float32)
  assert (probs == 0).mean() > 0.5
  mean, std = scores.inception_score(probs, 10)
  np.testing.assert_allclose(mean, golden["is_peaked_mean"], rtol=1e-6)
  np.testing.assert_allclose(std, golden["is_peaked_std"], rtol=1e-5)


def test_inception_score_extremes():
  classes = 20
  sure = np.eye(classes)[np.arange(10 * classes) % classes]
  np.testing.assert_allclose(
    scores.inception_score(sure, 10), (classes, 0.0), rtol=1e-12, atol=1e-12
  )
  unsure = np.full((50, classes), 1 / classes)
  np.testing.assert_allclose(
    scores.inception_score(unsure, 5), (1.0, 0.0), rtol=1e-12, atol=1e-12
  )


def test_inception_score_of_one_split_ignores_the_order(golden):
  probs = _softmax(golden["is_logits"])
  shuffled = np.random.default_rng(1).permutation(probs)
  np.testing.assert_allclose(
    scores.inception_score(shuffled, 1),
    scores.inception_score(probs, 1),
    rtol=1e-12,
  )


@pytest.mark.parametrize("order_seed", range(3))
def test_inception_score_with_rng_ignores_the_order(golden, order_seed):
  probs = _softmax(golden["is_logits"]).astype(np.float32)
  # Ties in a column must not let the stored order through.
  probs = np.concatenate([probs, probs[:100], np.eye(40, dtype=np.float32)])
  shuffled = np.random.default_rng(order_seed).permutation(probs)
  assert scores.inception_score(shuffled, 10) != scores.inception_score(
    probs, 10
  )
  assert scores.inception_score(
    shuffled, 10, np.random.default_rng(7)
  ) == scores.inception_score(probs, 10, np.random.default_rng(7))


def test_inception_score_with_rng_mends_samples_stored_by_class():
  labels = np.repeat(np.arange(20), 500)
  noise = np.random.default_rng(0).standard_normal((len(labels), 20))
  probs = _softmax(noise + 6.0 * np.eye(20)[labels])
  by_class, _ = scores.inception_score(probs, 10)
  permuted, _ = scores.inception_score(probs, 10, np.random.default_rng(0))
  together, _ = scores.inception_score(probs, 1)
  assert by_class < 0.2 * together
  # 10 splits of 1000 rows: the class shares vary by a few percent.
  np.testing.assert_allclose(permuted, together, rtol=0.02)


def test_inception_score_rng_draws_other_splits(golden):
  probs = _softmax(golden["is_logits"])
  first = scores.inception_score(probs, 10, np.random.default_rng(0))
  second = scores.inception_score(probs, 10, np.random.default_rng(1))
  assert first != second


@pytest.mark.parametrize("block_rows", [7, 1000])
def test_kernel_distance(golden, block_rows, monkeypatch):
  monkeypatch.setattr(scores, "_BLOCK_ROWS", block_rows)
  x, y = golden["fid_full_x"], golden["fid_full_y"]
  np.testing.assert_allclose(
    scores.kernel_distance(x, y),
    golden["kid_full_unbiased"],
    rtol=1e-5,
  )
  for i, expected in enumerate(golden["kid_blocks100"]):
    rows = slice(100 * i, 100 * (i + 1))
    np.testing.assert_allclose(
      scores.kernel_distance(x[rows], y[rows]), expected, rtol=1e-5
    )


def _with_value(value):
  features = np.ones((4, 3))
  features[2, 1] = value
  return features


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value):
  bad, good = _with_value(value), np.ones((4, 3))
  with pytest.raises(ValueError, match=r"features\[2, 1\]=.*must be finite"):
    scores.moments(bad)
  with pytest.raises(ValueError, match=r"real\[2, 1\]="):
    scores.kernel_distance(bad, good)
  with pytest.raises(ValueError, match=r"fake\[2, 1\]="):
    scores.kernel_distance(good, bad)


@pytest.mark.parametrize("rows", [0, 1])
def test_covariance_of_fewer_than_two_rows_is_refused(rows):
  moments = scores.moments(np.ones((rows, 3)))
  with pytest.raises(ValueError, match=rf"count={rows}: .* at least 2"):
    scores.mean_and_covariance(moments)


def test_features_of_another_size_are_refused():
  three, four = np.ones((5, 3)), np.ones((5, 4))
  with pytest.raises(ValueError, match="3 and 4 features"):
    scores.merge(scores.moments(three), scores.moments(four))
  with pytest.raises(ValueError, match="3 and 4 features"):
    scores.kernel_distance(three, four)
  with pytest.raises(ValueError, match="3 and 4 features"):
    scores.frechet_distance(*_statistics(three), *_statistics(four))
  with pytest.raises(ValueError, match=r"must be \[rows, features\]"):
    scores.moments(three[0])


def test_frechet_refuses_bad_statistics():
  mean, cov = np.zeros(3), np.eye(3)
  with pytest.raises(ValueError, match=r"mean_1, cov_1: shapes"):
    scores.frechet_distance(mean, cov[0], mean, cov)
  with pytest.raises(ValueError, match="mean_2, cov_2: a value is not finite"):
    scores.frechet_distance(mean, cov, mean, cov * np.nan)


@pytest.mark.parametrize("num_splits", [-1, 0, 6])
def test_splits_must_fit(num_splits):
  with pytest.raises(ValueError, match=rf"num_splits={num_splits}: must be"):
    scores.inception_score(np.full((5, 2), 0.5), num_splits)


@pytest.mark.parametrize(
  "row", [[3.0, -2.0], [0.5, 0.6], [np.nan, 1.0], [0.0, 0.0]]
)
def test_rows_that_are_no_distribution_are_refused(row):
  probs = np.array([[0.5, 0.5], row])
  with pytest.raises(ValueError, match=r"probs\[1\]: .*must be a distrib"):
    scores.inception_score(probs, 1)


def test_unbiased_kernel_distance_needs_two_rows():
  with pytest.raises(ValueError, match="1 and 5 rows"):
    scores.kernel_distance(np.ones((1, 2)), np.ones((5, 2)))


@pytest.mark.parametrize("case", ["full", "rankdef"])
def test_factor(golden, case):
  x = golden[f"fid_{case}_x"]
  cov = np.cov(x, rowvar=False)
  factor = scores.factor(cov)
  scale = np.trace(cov)
  np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-12 * scale)


def test_factor_of_a_singular_covariance_without_cholesky():
  cov = np.diag([1.0, 4.0, 0.0])
  np.testing.assert_allclose(scores.factor(cov), np.diag([1.0, 2.0, 0.0]))
