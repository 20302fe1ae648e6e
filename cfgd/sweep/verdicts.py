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
  """Return the ratio of two curves' distances at equal scores.

  A curve is the path through its points in order of strength, on straight
  lines of log distance over score. Where noise makes its score turn back, it
  passes some scores several times and has no single distance there. So curves
  are compared at the scores that each of them passes exactly once, which loses
  no more than the dip. A part of a curve passes none of these scores in another
  place than the whole does: their ratio is exactly 1.

  Args:
    one: [(score, distance)] in the order of the strength.
    other: the same.

  Returns:
    Geometric mean of one's distance over other's, uniform over the scores that
    are compared; nan without any, or with values that are not finite.
  """
  if min(len(one), len(other)) < 2 or not _positive(one, other):
    return math.nan
  edges = np.unique(np.concatenate([one[:, 0], other[:, 0]]))
  middles = (edges[:-1] + edges[1:]) / 2
  # Between two edges both are straight: the middle is the mean.
  difference = _log_distance(one, middles) - _log_distance(other, middles)
  shared = np.isfinite(difference)
  widths = np.diff(edges)[shared]
  if not widths.sum() > 0:
    return math.nan
  return _exp(float(np.average(difference[shared], weights=widths)))


def _positive(*curves):
  points = np.concatenate(curves)
  return np.isfinite(points).all() and (points[:, 1] > 0).all()


def _log_distance(points, scores):
  """Return the log distance at scores that are none of the points' own.

  Args:
    points: [N, 2] scores and distances, in order.
    scores: [M].

  Returns:
    [M]; nan at scores that the path passes never, or more than once.
  """
  score, log = points[:, 0], np.log(points[:, 1])
  start, end = score[:-1, None], score[1:, None]
  passed = (scores - start) * (scores - end) < 0  # [N - 1, M]
  line = passed.argmax(axis=0)
  start, end = score[line], score[line + 1]
  with np.errstate(divide="ignore", invalid="ignore"):
    part = (scores - start) / (end - start)
  values = log[line] + part * (log[line + 1] - log[line])
  return np.where(passed.sum(axis=0) == 1, values, math.nan)
