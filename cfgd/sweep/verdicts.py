"""A statistic over seeds, and what it says of a claim.

Each claim is one number per seed: a ratio, which the claim says is above 1, or
a difference, above 0; of two things that are said to be alike it has to be
close to that. Seeds are the only spread that is counted. An interval over them,
from Student's t, decides: a claim holds if all of the interval agrees with it,
does not hold if nothing of it does, and is else not resolved.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

HOLDS, FAILS, OPEN = "holds", "does not hold", "not resolved"
_MIN_SEEDS = 3
_PIECES = 50  # of a line between two points of a frontier
_LEVELS = 101  # of the score, that two frontiers are compared at


class Claim(NamedTuple):
  """A claim and how it is tested.

  Attributes:
    text: what is claimed.
    source: who claims it.
    statistic: what is computed of each seed.
    values: one per seed; nan where it cannot be computed.
    neutral: 1 for ratios, 0 for differences.
    alike: largest factor, or difference, that is called alike; None where the
      claim is that the statistic is above `neutral`.
  """

  text: str
  source: str
  statistic: str
  values: tuple[float, ...]
  neutral: float
  alike: float | None = None

  def interval(self, confidence: float) -> tuple[float, float, float]:
    """Return (lower end, mean, upper end) over the seeds.

    Args:
      confidence: of the interval, such as 0.95.

    Returns:
      Numbers; of ratios the geometric mean. nan if a value is, the ends are
      infinitely wide of one seed.
    """
    values = np.array(self.values)
    values = np.log(values) if self.neutral else values
    mean, half = float(values.mean()), math.inf
    if len(values) > 1:
      quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
      half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
    ends = mean - half, mean, mean + half
    return tuple(map(_exp, ends)) if self.neutral else ends

  def verdict(self, confidence: float) -> str:
    """Return HOLDS, FAILS or OPEN; the last of fewer than three seeds."""
    low, _, high = self.interval(confidence)
    if len(self.values) < _MIN_SEEDS or not math.isfinite(low + high):
      return OPEN
    if self.alike is None:
      agrees, differs = low > self.neutral, high <= self.neutral
    else:
      least, most = self.range()
      agrees = least < low and high < most
      differs = high <= least or most <= low
    return HOLDS if agrees else FAILS if differs else OPEN

  def range(self) -> tuple[float, float]:
    """Return between what a statistic is called alike."""
    if self.neutral:
      return self.neutral / self.alike, self.neutral * self.alike
    return self.neutral - self.alike, self.neutral + self.alike


def _exp(value):
  return math.exp(value) if value < 700 else math.inf


def chosen_elsewhere(curves: Sequence[Mapping[float, float]]) -> list[float]:
  """Return each curve's value where the mean of the others is lowest.

  The lowest of many noisy values is too low; a place that is chosen by other
  seeds is not.

  Args:
    curves: {place: value}, with places in common.

  Returns:
    One value for each; of a single curve its own lowest.
  """
  places = sorted(set.intersection(*(set(curve) for curve in curves)))
  picked = []
  for i, curve in enumerate(curves):
    others = [*curves[:i], *curves[i + 1 :]] or [curve]
    means = [np.mean([other[place] for other in others]) for place in places]
    picked.append(curve[places[int(np.argmin(means))]])
  return picked


def frontier_ratio(one: np.ndarray, other: np.ndarray) -> float:
  """Return by how much one frontier's distance is above another's.

  At each score that both reach, a frontier has the lowest distance of what
  scores at least that, between its points on straight lines of log distance.

  Args:
    one: [(score, distance)] in the order of the strength.
    other: the same.

  Returns:
    Geometric mean of the ratio over the scores in common; nan without any.
  """
  if min(len(one), len(other)) < 2 or not _positive(one, other):
    return math.nan
  dense = [_dense(points) for points in (one, other)]
  low = max(points[:, 0].min() for points in dense)
  high = min(points[:, 0].max() for points in dense)
  if low >= high:
    return math.nan
  levels = np.linspace(low, high, _LEVELS)
  logs = [
    [points[points[:, 0] >= level, 1].min() for level in levels]
    for points in dense
  ]
  return _exp(float(np.mean(np.subtract(*logs))))


def _positive(*frontiers):
  points = np.concatenate(frontiers)
  return np.isfinite(points).all() and (points[:, 1] > 0).all()


def _dense(points):
  """Return [(score, log distance)] with pieces between the points."""
  points = np.stack([points[:, 0], np.log(points[:, 1])], axis=1)
  at = np.arange((len(points) - 1) * _PIECES + 1) / _PIECES
  return np.stack(
    [np.interp(at, np.arange(len(points)), column) for column in points.T],
    axis=1,
  )
