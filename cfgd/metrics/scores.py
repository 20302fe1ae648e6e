"""Scores of generated images, from their features or class probabilities.

Everything here is NumPy in float64: a float32 eigendecomposition moves the
Frechet distance of 2048 features by tenths. Arrays of any float type are taken.
`manifold` has precision and recall on the device, with the same results.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import itertools
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
  """Hold what a stream of feature rows needs for its mean and covariance.

  Attributes:
    count: number of rows.
    mean: [D] mean of the rows.
    scatter: [D, D] sum of outer(row - mean, row - mean) over the rows.
  """

  # Centred, since raw sums end in outer - count * mean mean^T, which cancels
  # (mean / std)^2 of the digits. Pairwise merging cancels nothing and needs no
  # shift that all processes would have to agree on before they see data.
  count: int
  mean: np.ndarray
  scatter: np.ndarray


def empty_moments(dim: int) -> Moments:
  """Return the moments of no rows, the start of a stream.

  Args:
    dim: number of features D.

  Returns:
    Moments with count 0, mean [D] and scatter [D, D].
  """
  return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def merge(a: Moments, b: Moments) -> Moments:
  """Return the moments of the rows of both, as if they were one stream.

  The pairwise update of Chan, Golub & LeVeque, "Updating Formulae and a
  Pairwise Algorithm for Computing Sample Variances" (Stanford STAN-CS-79-773).

  Args:
    a: moments over D features.
    b: moments over D features, of other rows.

  Returns:
    Moments of count a.count + b.count.

  Raises:
    ValueError: if the numbers of features differ.
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f"moments: {a.mean.size} and {b.mean.size} features cannot be merged; "
      "take both from the same feature network"
    )
  if b.count == 0:
    return a
  count = a.count + b.count
  delta = b.mean - a.mean
  mean = a.mean + delta * (b.count / count)
  between = np.outer(delta, delta) * (a.count * b.count / count)
  return Moments(count, mean, a.scatter + b.scatter + between)


def add(moments: Moments, features: np.ndarray) -> Moments:
  """Return the moments after one more batch of rows.

  Args:
    moments: moments over D features.
    features: [N, D] rows; N may be 0 (a process may have no image left).

  Returns:
    Moments of count moments.count + N.

  Raises:
    ValueError: if a feature is not finite or D differs.
  """
  features = feature_rows("features", features)
  if len(features) == 0:
    return moments
  mean = features.mean(axis=0)
  centred = features - mean
  return merge(moments, Moments(len(features), mean, centred.T @ centred))


def mean_and_covariance(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
  """Return the mean and the unbiased covariance (ddof 1, as np.cov).

  Args:
    moments: moments of at least two rows over D features.

  Returns:
    Mean [D] and covariance [D, D].

  Raises:
    ValueError: if there are fewer than two rows.
  """
  if moments.count < 2:
    raise ValueError(
      f"moments.count={moments.count}: a covariance needs at least 2 rows; "
      "add more features"
    )
  return moments.mean, moments.scatter / (moments.count - 1)


def symmetric_root(cov: np.ndarray) -> np.ndarray:
  """Return the symmetric positive square root of a covariance.

  Args:
    cov: [D, D] symmetric, positive semi-definite up to rounding.

  Returns:
    [D, D] root with root @ root = cov.
  """
  eigenvalues, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
  return (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T


def factor(cov: np.ndarray) -> np.ndarray:
  """Return a matrix F with F @ F.T = cov, by the fastest way that works.

  Args:
    cov: [D, D] symmetric, positive semi-definite up to rounding.

  Returns:
    [D, D] Cholesky's triangular factor; of a singular covariance, which may
    have none, the symmetric root.
  """
  try:
    return np.linalg.cholesky(np.asarray(cov, np.float64))
  except np.linalg.LinAlgError:
    return symmetric_root(cov)


def frechet_distance(
  mean_1: np.ndarray,
  cov_1: np.ndarray,
  mean_2: np.ndarray,
  cov_2: np.ndarray,
  *,
  root_1: np.ndarray | None = None,
) -> float:
  """Return the squared Frechet distance between two Gaussians.

  |m1 - m2|^2 + tr S1 + tr S2 - 2 tr sqrt(F^T S2 F), F F^T = S1: the FID of
  arXiv:1706.08500 when the features are Inception's. The matrix under the root
  is symmetric and has the spectrum of S1 S2, so that is real, where a general
  square root of S1 S2 goes complex for singular covariances. With fewer rows
  than features, rounding shows as about 1e-8 of the traces, and equal inputs
  may give a result that far below 0: it is returned as it is, since clipping
  would hide a mistake.

  Args:
    mean_1: [D] mean of the reference.
    cov_1: [D, D] covariance of the reference.
    mean_2: [D] mean of the samples.
    cov_2: [D, D] covariance of the samples.
    root_1: [D, D] factor(cov_1), or symmetric_root(cov_1), if many samples meet
      one reference; None computes it.

  Returns:
    The squared distance.

  Raises:
    ValueError: if the shapes disagree or a value is not finite.
  """
  mean_1, cov_1 = _gaussian("1", mean_1, cov_1)
  mean_2, cov_2 = _gaussian("2", mean_2, cov_2)
  if mean_1.shape != mean_2.shape:
    raise ValueError(
      f"mean_1, mean_2: {mean_1.size} and {mean_2.size} features; "
      "take both from the same feature network"
    )
  if root_1 is None:
    root_1 = factor(cov_1)
  product = root_1.T @ cov_2 @ root_1
  eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
  trace_root = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
  delta = mean_1 - mean_2
  return float(
    delta @ delta + np.trace(cov_1) + np.trace(cov_2) - 2 * trace_root
  )


def even_edges(count: int, num_splits: int) -> list[int]:
  """Return the edges of splits that are equal but for rounding.

  Args:
    count: number of rows N.
    num_splits: number of splits S.

  Returns:
    [S + 1] edges i*N//S: split i has the rows edges[i] to edges[i + 1].

  Raises:
    ValueError: if splits would be empty.
  """
  if not 1 <= num_splits <= count:
    raise ValueError(
      f"num_splits={num_splits}: must be from 1 to the {count} rows of probs"
    )
  return [i * count // num_splits for i in range(num_splits + 1)]


def inception_score(
  probs: np.ndarray,
  splits: int | Sequence[int],
  rng: np.random.Generator | None = None,
) -> tuple[float, float]:
  """Return the mean and spread of the Inception Score over splits of the rows.

  exp(mean KL(p(y|x) || p(y))) of arXiv:1606.03498, with p(y) the mean over the
  split: a split that lacks classes has a lower score. Samples stored class by
  class therefore need `rng`. With it the rows are sorted by value and then
  permuted, so the result depends on the set of rows and the state of `rng`
  alone: bit for bit, any stored order gives the same score. (Rounding noise in
  the probabilities, as from another batch size, can still swap neighbours in
  the sorted order and so move rows between splits.)

  Args:
    probs: [N, K] class probabilities, one row per sample.
    splits: number of splits, see `even_edges`, or their [S + 1] edges from 0 to
      N. A split counts the same whatever its size.
    rng: generator of the permutation; None keeps the order of the rows.

  Returns:
    Mean and standard deviation (ddof 0) of the S scores.

  Raises:
    ValueError: if rows are not distributions or splits would be empty.
  """
  probs = _probability_rows(probs)
  count = len(probs)
  edges = even_edges(count, splits) if isinstance(splits, int) else splits
  if (edges[0], edges[-1]) != (0, count) or (np.diff(edges) < 1).any():
    raise ValueError(
      f"splits={edges}: must rise from 0 to the {count} rows of probs"
    )
  order = np.arange(count)
  if rng is not None:
    order = rng.permutation(np.lexsort(probs.T))
  scores = [
    _exp_mutual_information(probs[order[start:stop]])
    for start, stop in itertools.pairwise(edges)
  ]
  return float(np.mean(scores)), float(np.std(scores))


def neighbour_radii(
  features: np.ndarray, k: int, block_rows: int = 1000
) -> np.ndarray:
  """Return the squared distance of every row to its k-th nearest other row.

  Args:
    features: [N, D] rows.
    k: which neighbour; the row itself is the 0th.
    block_rows: rows at a time; memory grows with block_rows * N.

  Returns:
    [N] squared radii, 0 where a row has k duplicates.

  Raises:
    ValueError: if k is not from 1 to N - 1 or a feature is not finite.
  """
  features = feature_rows("features", features)
  check_neighbour(features, k)
  radii = np.empty(len(features))
  for block in _blocks(len(features), block_rows):
    distances = squared_distances(features[block], features)
    radii[block] = np.partition(distances, k, axis=1)[:, k]
  return radii


def check_neighbour(features: np.ndarray, k: int) -> None:
  """Raise ValueError if rows [N, D] have no k-th neighbour."""
  if not 1 <= k < len(features):
    raise ValueError(
      f"k={k}: must be from 1 to {len(features) - 1}, as there are "
      f"{len(features)} rows"
    )


def precision_recall(
  real: np.ndarray,
  fake: np.ndarray,
  k: int,
  block_rows: int = 1000,
  *,
  real_radii: np.ndarray | None = None,
) -> tuple[float, float]:
  """Return the improved precision and recall of arXiv:1904.06991.

  Precision is the share of fake rows inside the ball of some real row, recall
  the share of real rows inside the ball of some fake row. A ball reaches to the
  k-th neighbour within its own set, boundary included.

  Args:
    real: [N, D] features of the reference.
    fake: [M, D] features of the samples.
    k: which neighbour sets the radius; the paper uses 3.
    block_rows: rows at a time; memory grows with block_rows * max(N, M).
    real_radii: [N] neighbour_radii(real, k), if many samples meet one
      reference; None computes them.

  Returns:
    Precision and recall, both in [0, 1].

  Raises:
    ValueError: if k does not fit, D differs or a feature is not finite.
  """
  real, fake = feature_pair(real, fake)
  if real_radii is None:
    real_radii = neighbour_radii(real, k, block_rows)
  fake_radii = neighbour_radii(fake, k, block_rows)
  real_in = np.zeros(len(real), bool)
  fake_in = np.zeros(len(fake), bool)
  for block in _blocks(len(fake), block_rows):
    distances = squared_distances(fake[block], real)
    fake_in[block] = (distances <= real_radii).any(axis=1)
    real_in |= (distances <= fake_radii[block, None]).any(axis=0)
  return float(fake_in.mean()), float(real_in.mean())


def kernel_distance(
  real: np.ndarray, fake: np.ndarray, block_rows: int = 1000
) -> float:
  """Return the unbiased squared MMD with the kernel (x.y / D + 1)^3.

  The kernel Inception distance of arXiv:1801.01401 when the features are
  Inception's, here over all pairs of rows at once. It may be below 0.

  Args:
    real: [N, D] features of the reference, N >= 2.
    fake: [M, D] features of the samples, M >= 2.
    block_rows: rows at a time; memory grows with block_rows * max(N, M).

  Returns:
    The estimate.

  Raises:
    ValueError: if a set has one row, D differs or a feature is not finite.
  """
  real, fake = feature_pair(real, fake)
  if min(len(real), len(fake)) < 2:
    raise ValueError(
      f"real, fake: {len(real)} and {len(fake)} rows; the unbiased estimate "
      "needs at least 2 of each"
    )
  cross = _kernel_sum(real, fake, block_rows) / (len(real) * len(fake))
  within = 0.0
  for rows in (real, fake):
    itself = ((np.square(rows).sum(axis=1) / rows.shape[1] + 1) ** 3).sum()
    pairs = len(rows) * (len(rows) - 1)
    within += (_kernel_sum(rows, rows, block_rows) - itself) / pairs
  return float(within - 2 * cross)


def _kernel_sum(a: np.ndarray, b: np.ndarray, block_rows: int) -> float:
  dim = a.shape[1]
  return sum(
    ((a[block] @ b.T / dim + 1) ** 3).sum()
    for block in _blocks(len(a), block_rows)
  )


def squared_distances(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Return [B, N] squared distances of rows [B, D] to points [N, D]."""
  norms = np.square(rows).sum(axis=1)[:, None] + np.square(points).sum(axis=1)
  distances = norms - 2 * (rows @ points.T)
  distances[distances <= resolution(rows.shape[1]) * norms] = 0.0
  return distances


def resolution(dim: int) -> float:
  """Return the part of |x|^2 + |y|^2 below which |x - y|^2 counts as 0.

  The expanded square is off by up to about dim eps (|x|^2 + |y|^2). Less than
  that is a duplicate, whose distance has to be 0 for `<=` to see a radius of 0.
  """
  return (dim + 4) * np.finfo(np.float64).eps


def _exp_mutual_information(probs: np.ndarray) -> float:
  probs = np.asarray(probs, np.float64)
  marginal = probs.mean(axis=0)
  # mean_x KL(p(y|x) || p(y)), with the cross entropy summed over x first.
  negative_entropy = _p_log_p(probs).sum(axis=1).mean()
  return np.exp(negative_entropy - _p_log_p(marginal).sum())


def _p_log_p(p: np.ndarray) -> np.ndarray:
  # 0 log 0 is 0: confident rows underflow in float32.
  return p * np.log(np.where(p > 0, p, 1.0))


def _blocks(count: int, block_rows: int) -> Iterator[slice]:
  if block_rows < 1:
    raise ValueError(f"block_rows={block_rows}: must be at least 1")
  for start in range(0, count, block_rows):
    yield slice(start, min(start + block_rows, count))


def feature_rows(name: str, features: np.ndarray) -> np.ndarray:
  """Return features [N, D] in float64, or raise ValueError naming them."""
  features = np.asarray(features, np.float64)
  if features.ndim != 2:
    raise ValueError(
      f"{name}: shape {features.shape}; must be [rows, features]"
    )
  bad = np.argwhere(~np.isfinite(features))
  if len(bad):
    row, column = bad[0]
    raise ValueError(
      f"{name}[{row}, {column}]={features[row, column]}: every feature must be "
      "finite; check the images and weights behind this row"
    )
  return features


def feature_pair(
  real: np.ndarray, fake: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Return both sets in float64, or raise ValueError where they do not fit."""
  real = feature_rows("real", real)
  fake = feature_rows("fake", fake)
  if real.shape[1] != fake.shape[1]:
    raise ValueError(
      f"real, fake: {real.shape[1]} and {fake.shape[1]} features; "
      "take both from the same feature network"
    )
  return real, fake


def _gaussian(
  index: str, mean: np.ndarray, cov: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  mean = np.asarray(mean, np.float64)
  cov = np.asarray(cov, np.float64)
  if mean.ndim != 1 or cov.shape != mean.shape * 2:
    raise ValueError(
      f"mean_{index}, cov_{index}: shapes {mean.shape} and {cov.shape}; must "
      "be [D] and [D, D]"
    )
  if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
    raise ValueError(
      f"mean_{index}, cov_{index}: a value is not finite; make these "
      "statistics again from finite features"
    )
  return mean, cov


def _probability_rows(probs: np.ndarray) -> np.ndarray:
  probs = np.asarray(probs)
  if probs.ndim != 2:
    raise ValueError(f"probs: shape {probs.shape}; must be [rows, classes]")
  sums = probs.sum(axis=1, dtype=np.float64)
  # 1e-3 lets float32 softmax pass and stops logits and missing classes.
  good = (np.abs(sums - 1) <= 1e-3) & (probs >= 0).all(axis=1)
  if not good.all():
    row = int(np.argmin(good))
    raise ValueError(
      f"probs[{row}]: sum {sums[row]}, smallest {probs[row].min()}; every row "
      "must be a distribution, so pass softmax outputs and not logits"
    )
  return probs
