"""Scores of generated images, from their features or class probabilities.

Everything here is NumPy in float64: a float32 eigendecomposition moves the
Frechet distance of 2048 features by tenths. Inputs may be of any float type.
Precision and recall are in `manifold`.
"""

import itertools
from typing import NamedTuple

import numpy as np

_BLOCK_ROWS = 1000  # of a kernel matrix that are in memory at once


class Moments(NamedTuple):
  """What a set of feature rows needs for its mean and covariance.

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


def moments(features):
  """Return the moments of feature rows [N, D]; N may be 0."""
  features = feature_rows("features", features)
  count, dim = features.shape
  if not count:
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))
  mean = features.mean(axis=0)
  centred = features - mean
  return Moments(count, mean, centred.T @ centred)


def merge(a, b):
  """Return the moments of the rows of both.

  The pairwise update of Chan, Golub & LeVeque, "Updating Formulae and a
  Pairwise Algorithm for Computing Sample Variances" (Stanford STAN-CS-79-773).
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


def mean_and_covariance(moments):
  """Return the mean [D] and the unbiased covariance [D, D] (ddof 1)."""
  if moments.count < 2:
    raise ValueError(
      f"moments.count={moments.count}: a covariance needs at least 2 rows; "
      "add more features"
    )
  return moments.mean, moments.scatter / (moments.count - 1)


def factor(cov):
  """Return a matrix F with F @ F.T = cov, [D, D] and positive semi-definite.

  Cholesky's triangular factor where there is one; of a singular covariance the
  symmetric root.
  """
  cov = np.asarray(cov, np.float64)
  try:
    return np.linalg.cholesky(cov)
  except np.linalg.LinAlgError:
    eigenvalues, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T


def frechet_distance(mean_1, cov_1, mean_2, cov_2, *, root_1=None):
  """Return the squared Frechet distance between two Gaussians.

  |m1 - m2|^2 + tr S1 + tr S2 - 2 tr sqrt(F^T S2 F), F F^T = S1: the FID of
  arXiv:1706.08500 if the features are Inception's. The matrix under the root is
  symmetric with the spectrum of S1 S2, so its root is real, where a general
  square root of S1 S2 turns complex for singular covariances. With fewer rows
  than features, rounding amounts to about 1e-8 of the traces, and equal inputs
  may give a result that far below 0. It is not clipped, which would hide a
  mistake.

  Args:
    mean_1: [D] mean of the reference.
    cov_1: [D, D] covariance of the reference.
    mean_2: [D] mean of the samples.
    cov_2: [D, D] covariance of the samples.
    root_1: [D, D] factor(cov_1), to share among many sets of samples.
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


def even_edges(count, num_splits):
  """Return the [S + 1] edges i*N//S of S splits, equal up to rounding."""
  if not 1 <= num_splits <= count:
    raise ValueError(
      f"num_splits={num_splits}: must be from 1 to the {count} rows of probs"
    )
  return [i * count // num_splits for i in range(num_splits + 1)]


def inception_score(probs, splits, rng=None):
  """Return the mean and spread of the Inception Score over splits of the rows.

  exp(mean KL(p(y|x) || p(y))) of arXiv:1606.03498, with p(y) the mean over the
  split, so a split that lacks classes scores lower. Samples stored class by
  class therefore need `rng`: the rows are sorted by value, then permuted, and
  the result depends only on the set of rows and the state of `rng`. (Rounding
  noise in the probabilities, as from another batch size, can still swap
  neighbours in the sorted order and so move rows between splits.)

  Args:
    probs: [N, K] class probabilities, one row per sample.
    splits: number of splits, see `even_edges`, or their [S + 1] edges from 0 to
      N. Splits count alike whatever their size.
    rng: generator of the permutation; None keeps the order of the rows.

  Returns:
    Mean and standard deviation (ddof 0) of the S scores.
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


def kernel_distance(real, fake):
  """Return the unbiased squared MMD with the kernel (x.y / D + 1)^3.

  The kernel Inception distance of arXiv:1801.01401 if the features [N, D] and
  [M, D] are Inception's, over all pairs of rows at once. It may be below 0.
  """
  real, fake = feature_pair(real, fake)
  if min(len(real), len(fake)) < 2:
    raise ValueError(
      f"real, fake: {len(real)} and {len(fake)} rows; the unbiased estimate "
      "needs at least 2 of each"
    )
  cross = _kernel_sum(real, fake) / (len(real) * len(fake))
  within = 0.0
  for rows in (real, fake):
    itself = ((np.square(rows).sum(axis=1) / rows.shape[1] + 1) ** 3).sum()
    pairs = len(rows) * (len(rows) - 1)
    within += (_kernel_sum(rows, rows) - itself) / pairs
  return float(within - 2 * cross)


def _kernel_sum(a, b):
  return sum(
    ((a[start : start + _BLOCK_ROWS] @ b.T / a.shape[1] + 1) ** 3).sum()
    for start in range(0, len(a), _BLOCK_ROWS)
  )


def _exp_mutual_information(probs):
  probs = np.asarray(probs, np.float64)
  marginal = probs.mean(axis=0)
  # mean_x KL(p(y|x) || p(y)), with the cross entropy summed over x first.
  negative_entropy = _p_log_p(probs).sum(axis=1).mean()
  return np.exp(negative_entropy - _p_log_p(marginal).sum())


def _p_log_p(p):
  # 0 log 0 is 0: confident rows underflow in float32.
  return p * np.log(np.where(p > 0, p, 1.0))


def feature_rows(name, features):
  """Return features [N, D] in float64; raise ValueError if they are bad."""
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


def feature_pair(real, fake):
  """Return both sets in float64; raise ValueError if they do not match."""
  real = feature_rows("real", real)
  fake = feature_rows("fake", fake)
  if real.shape[1] != fake.shape[1]:
    raise ValueError(
      f"real, fake: {real.shape[1]} and {fake.shape[1]} features; "
      "take both from the same feature network"
    )
  return real, fake


def _gaussian(index, mean, cov):
  mean = np.asarray(mean, np.float64)
  cov = np.asarray(cov, np.float64)
  if mean.ndim != 1 or cov.shape != mean.shape * 2:
    raise ValueError(
      f"mean_{index}, cov_{index}: shapes {mean.shape} and {cov.shape}; must "
      "be [D] and [D, D]"
    )
  if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
    raise ValueError(
      f"mean_{index}, cov_{index}: a value is not finite; recompute these "
      "statistics from finite features"
    )
  return mean, cov


def _probability_rows(probs):
  probs = np.asarray(probs)
  if probs.ndim != 2:
    raise ValueError(f"probs: shape {probs.shape}; must be [rows, classes]")
  sums = probs.sum(axis=1, dtype=np.float64)
  # 1e-3 accepts a float32 softmax and rejects logits and missing classes.
  good = (np.abs(sums - 1) <= 1e-3) & (probs >= 0).all(axis=1)
  if not good.all():
    row = int(np.argmin(good))
    raise ValueError(
      f"probs[{row}]: sum {sums[row]}, smallest {probs[row].min()}; every row "
      "must be a distribution, so pass softmax outputs and not logits"
    )
  return probs
