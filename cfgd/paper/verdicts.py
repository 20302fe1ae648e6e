"""A statistic over seeds, and what it says of a claim.

A claim is that a ratio is above 1, or a difference above 0; or, of two things
that are called alike, that the ratio or difference is within a range around
that. Seeds are the only spread that is counted. Two p-values, from Student's t
over the seeds, say how well the data agrees with the claim being false, and
with it being true:

- "holds" needs the first to be small, for alike things by two one-sided tests
  (TOST; Schuirmann 1987);
- "does not hold" needs the second to be small: a test of its own, and not the
  lack of evidence for "holds";
- else the claim is not resolved.

Both directions are tested, so each has half of the error rate: a claim's
p-value is twice the smaller of the two. Primary claims share one error rate by
Holm's method (1979).

A claim about the best of several places compares minima, and the minimum of
noisy values is too low. Choosing the place on the other seeds removes this
bias, but makes the seeds' values depend on each other: with a flat truth, t
intervals over them exclude it in 9% (3 seeds) to 16% (8 seeds) and not in 5%.
So such a claim is tested place by place: min(above) > min(below) if under each
place of `above` lies some place of `below`. That this is so of each needs no
correction (intersection-union; Berger 1982), the choice of some place does, by
Bonferroni. This is valid for any truth.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import special

HOLDS, FAILS, OPEN = "holds", "does not hold", "not resolved"
_MIN_SEEDS = 3


class Claim(NamedTuple):
  """A claim and how it is tested.

  Attributes:
    text: what is claimed.
    source: who claims it.
    statistic: what is computed of each seed.
    values: one per seed; nan where it cannot be computed. Where the statistic
      compares bests, with the places that the other seeds choose.
    neutral: 1 for ratios, 0 for differences.
    alike: largest factor, or difference, that is called alike; None where the
      claim is that the statistic is above `neutral`.
    primary: whether it is one of those that share one error rate.
    pairs: [A, B, seeds] where the statistic is the lowest of A places against
      the lowest of B places: what it is for each two of them. None where there
      is no choice of places.
  """

  text: str
  source: str
  statistic: str
  values: tuple[float, ...]
  neutral: float
  alike: float | None = None
  primary: bool = False
  pairs: np.ndarray | None = None

  def interval(self, confidence: float) -> tuple[float, float, float]:
    """Return (lower end, mean, upper end) over the seeds.

    Args:
      confidence: of the interval, such as 0.95; of this claim alone.

    Returns:
      Numbers; of ratios the geometric mean. nan if a value is, the ends are
      infinitely wide of one seed.
    """
    pairs, mean = self._pairs(), float(self._scaled(self.values).mean())
    low, high = bounds(pairs, (1 - confidence) / 2)
    ends = float(low), mean, float(high)
    return tuple(map(_exp, ends)) if self.neutral else ends

  def p_values(self) -> tuple[float, float]:
    """Return the p-values of (the claim is false, the claim is true).

    Returns:
      One-sided ones; nan of fewer than three seeds, or of a value that is not
      finite.
    """
    pairs = self._pairs()
    if len(self.values) < _MIN_SEEDS or not np.isfinite(pairs).all():
      return math.nan, math.nan
    if self.alike is None:
      (neutral,) = self._scaled([self.neutral])
      return float(p_above(pairs, neutral)), float(p_below(pairs, neutral))
    return tuple(map(float, p_alike(pairs, *self._scaled(self.range()))))

  def p_value(self) -> float:
    """Return the p-value of the claim, decided in either direction."""
    return float(np.minimum(1, 2 * min(self.p_values())))

  def verdict(self, confidence: float, p: float | None = None) -> str:
    """Return HOLDS, FAILS or OPEN; the last of fewer than three seeds.

    Args:
      confidence: 1 minus the error rate.
      p: the p-value that decides, such as one that is corrected for other
        claims; None for the claim's own.
    """
    p = self.p_value() if p is None else p
    if not p <= 1 - confidence:
      return OPEN
    agrees, differs = self.p_values()
    return HOLDS if agrees < differs else FAILS

  def range(self) -> tuple[float, float]:
    """Return between what a statistic is called alike."""
    if self.neutral:
      return self.neutral / self.alike, self.neutral * self.alike
    return self.neutral - self.alike, self.neutral + self.alike

  def _scaled(self, values):
    values = np.array(values, float)
    return np.log(values) if self.neutral else values

  def _pairs(self):
    pairs = [[self.values]] if self.pairs is None else self.pairs
    return self._scaled(pairs)


def bounds(pairs: np.ndarray, error: float) -> tuple[np.ndarray, np.ndarray]:
  """Return an interval for min(above) - min(below).

  Args:
    pairs: [..., A, B, seeds] differences of A places and B places.
    error: that each end may have.

  Returns:
    (low, high), [...]; infinite of one seed.
  """
  above, below, seeds = pairs.shape[-3:]
  mean, deviation = _moments(pairs)
  if seeds < 2:
    wide = np.full(mean.shape[:-2], math.inf)
    return -wide, wide
  low, high = (
    mean + side * special.stdtrit(seeds - 1, 1 - error / choices) * deviation
    for side, choices in ((-1, below), (1, above))
  )
  return low.max(-1).min(-1), high.min(-2).max(-1)


def p_above(pairs: np.ndarray, than: float) -> np.ndarray:
  """Return the p-value of min(above) - min(below) <= than.

  Args:
    pairs: see `bounds`; of two seeds or more.
    than: a number.

  Returns:
    [...]
  """
  p = special.stdtr(pairs.shape[-1] - 1, -_student(pairs, than))
  return np.minimum(1, pairs.shape[-2] * p.min(-1).max(-1))


def p_below(pairs: np.ndarray, than: float) -> np.ndarray:
  """Return the p-value of min(above) - min(below) > than, as `p_above`."""
  p = special.stdtr(pairs.shape[-1] - 1, _student(pairs, than))
  return np.minimum(1, pairs.shape[-3] * p.min(-2).max(-1))


def p_alike(
  pairs: np.ndarray, least: float, most: float
) -> tuple[np.ndarray, np.ndarray]:
  """Return the p-values of being outside a range, and of being inside.

  Args:
    pairs: see `p_above`.
    least: lower end of the range.
    most: upper end.

  Returns:
    [...] of two one-sided tests, both of which have to say that it is inside;
    [...] of either saying that it is outside, by Bonferroni.
  """
  not_inside = np.maximum(p_above(pairs, least), p_below(pairs, most))
  not_outside = np.minimum(p_below(pairs, least), p_above(pairs, most))
  return not_inside, np.minimum(1, 2 * not_outside)


def _moments(pairs):
  """Return the mean over seeds, and the mean's standard deviation."""
  seeds = pairs.shape[-1]
  deviation = pairs.std(-1, ddof=min(1, seeds - 1)) / math.sqrt(seeds)
  return pairs.mean(-1), deviation


def _student(pairs, than):
  mean, deviation = _moments(pairs)
  with np.errstate(divide="ignore", invalid="ignore"):
    student = (mean - than) / deviation
  sure = np.where(mean > than, math.inf, -math.inf)
  return np.where(deviation > 0, student, sure)


class Decision(NamedTuple):
  """What is said of a claim among others.

  Attributes:
    p: its p-value, see `Claim.p_value`.
    corrected: the same by Holm's method over the primary claims; None for a
      secondary one.
    verdict: HOLDS, FAILS or OPEN.
  """

  p: float
  corrected: float | None
  verdict: str


def decide(claims: Sequence[Claim], confidence: float) -> list[Decision]:
  """Return what is said of each claim.

  Args:
    claims: all of them: the primary ones share one error rate.
    confidence: 1 minus this rate, which is also that of each secondary claim.
  """
  p = [claim.p_value() for claim in claims]
  corrected = iter(
    holm([k for k, claim in zip(p, claims, strict=True) if claim.primary])
  )
  decisions = []
  for own, claim in zip(p, claims, strict=True):
    shared = next(corrected) if claim.primary else None
    by = own if shared is None else shared
    decisions.append(Decision(own, shared, claim.verdict(confidence, by)))
  return decisions


def holm(p_values: Sequence[float]) -> list[float]:
  """Return p-values corrected by Holm's step-down method.

  Claims with a corrected p-value up to alpha have a false one among them with a
  probability of at most alpha.

  Args:
    p_values: of a family; nan is a member that cannot be tested.

  Returns:
    As many, at least as large; nan for nan.
  """
  p = np.array(p_values, float)
  order = np.argsort(p)  # nan last
  factors = len(p) - np.arange(len(p))
  corrected = np.empty_like(p)
  corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
  return corrected.tolist()


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
  places = _places(curves)
  picked = []
  for i, curve in enumerate(curves):
    others = [*curves[:i], *curves[i + 1 :]] or [curve]
    means = [np.mean([other[place] for other in others]) for place in places]
    picked.append(curve[places[int(np.argmin(means))]])
  return picked


def table(curves: Sequence[Mapping[float, float]]) -> np.ndarray:
  """Return the values of all curves at the places in common, [places, seeds].

  Args:
    curves: {place: value} of each seed.
  """
  return np.array(
    [[curve[place] for curve in curves] for place in _places(curves)]
  )


def _places(curves):
  return sorted(set.intersection(*(set(curve) for curve in curves)))


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
