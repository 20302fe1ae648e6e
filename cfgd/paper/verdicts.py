"""Verdicts on claims, from a statistic's values over seeds.

A claim says that a ratio is above 1 or a difference above 0; or, if two things
are claimed to be alike, that the ratio or difference is within a range around
that. Seeds are the only source of variation considered. Two p-values from
Student's t over the seeds measure how well the data agrees with the claim being
false, and with its being true:

- "holds" needs the first to be small; for alike things both of two one-sided
  tests must agree (TOST; Schuirmann 1987);
- "does not hold" needs the second to be small: a test of its own, not a lack of
  evidence for "holds";
- otherwise the claim is not resolved.

Each direction gets half of the error rate: a claim's p-value is twice the
smaller of the two. Primary claims share one error rate by Holm's method (1979).

Claims about the best of several places compare minima, and the minimum of noisy
values is biased low. Choosing the place on the other seeds removes this bias
but correlates the seeds' values: if the truth is flat, t intervals over them
exclude it in 9% (3 seeds) to 16% (8 seeds) of cases instead of 5%. Such claims
are therefore tested place by place: min(above) > min(below) if for each place
of `above` some place of `below` is lower. "Each" needs no correction
(intersection-union; Berger 1982), "some" needs Bonferroni's. This is valid for
any truth.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

HOLDS, FAILS, OPEN = "holds", "does not hold", "not resolved"
_MIN_SEEDS = 3


class Claim(NamedTuple):
  """A claim and the values that it is tested on.

  Attributes:
    text: the claim.
    source: who claims it.
    statistic: what is computed for each seed.
    values: one per seed, nan where it is undefined. Minima are at the places
      that the other seeds choose.
    neutral: 1 for ratios, 0 for differences.
    alike: largest factor, or difference, that counts as alike; None if the
      claim is that the statistic is above `neutral`.
    primary: whether it shares the error rate of the primary claims.
    pairs: [A, B, seeds] if the statistic compares the minimum over A places
      with that over B places: its value for each two of them.
  """

  text: str
  source: str
  statistic: str
  values: tuple[float, ...]
  neutral: float
  alike: float | None = None
  primary: bool = False
  pairs: np.ndarray | None = None

  def interval(self, confidence):
    """Return (lower end, mean, upper end) over the seeds.

    Means of ratios are geometric. All are nan if a value is; for one seed the
    interval is infinitely wide.
    """
    mean = self._scaled(self.values).mean()
    low, high = bounds(self._pairs(), (1 - confidence) / 2)
    ends = float(low), float(mean), float(high)
    return tuple(map(_exp, ends)) if self.neutral else ends

  def p_values(self):
    """Return the one-sided p-values of (the claim is false, it is true).

    nan for fewer than three seeds or a value that is not finite.
    """
    pairs = self._pairs()
    if len(self.values) < _MIN_SEEDS or not np.isfinite(pairs).all():
      return math.nan, math.nan
    if self.alike is None:
      (neutral,) = self._scaled([self.neutral])
      return float(p_above(pairs, neutral)), float(p_below(pairs, neutral))
    return tuple(map(float, p_alike(pairs, *self._scaled(self.range()))))

  def p_value(self):
    """Return the p-value of the claim, decided in either direction."""
    return float(np.minimum(1, 2 * min(self.p_values())))

  def verdict(self, confidence, p=None):
    """Return HOLDS, FAILS or OPEN.

    Args:
      confidence: 1 minus the error rate.
      p: p-value that decides, such as a corrected one; None for the claim's.
    """
    p = self.p_value() if p is None else p
    if not p <= 1 - confidence:
      return OPEN
    agrees, differs = self.p_values()
    return HOLDS if agrees < differs else FAILS

  def seeds_needed(self, confidence, shared=1, power=0.8):
    """Return the seeds that would decide the claim, if its estimate is right.

    The fewest with which a t test of such an effect decides with a probability
    of `power`; None if that takes more than 1,000, or is unknown.

    Args:
      confidence: 1 minus the error rate.
      shared: number of claims among which the error rate is divided.
      power: of the test.
    """
    pairs = self._pairs()
    if pairs.shape[-1] < _MIN_SEEDS or not np.isfinite(pairs).all():
      return None
    error = (1 - confidence) / 2 / shared
    if self.alike is None:
      (neutral,) = self._scaled([self.neutral])
      sides = _effects(pairs, neutral)
    else:
      least, most = self._scaled(self.range())
      above, below = _effects(pairs, least), _effects(pairs, most)
      inside = min(above[0][0], below[1][0])
      outside = max(above[1][0], below[0][0])
      sides = (inside, 1), (outside, 2)
    needed = [_seeds(*side, error, power) for side in sides]
    return min(filter(None, needed), default=None)

  def range(self):
    """Return the ends of the range that counts as alike."""
    if self.neutral:
      return self.neutral / self.alike, self.neutral * self.alike
    return self.neutral - self.alike, self.neutral + self.alike

  def _scaled(self, values):
    values = np.array(values, float)
    return np.log(values) if self.neutral else values

  def _pairs(self):
    return self._scaled([[self.values]] if self.pairs is None else self.pairs)


def bounds(pairs, error):
  """Return an interval for min(above) - min(below).

  Args:
    pairs: [..., A, B, seeds] differences of A places and B places.
    error: probability that the truth is beyond one end.

  Returns:
    (low, high), [...]; infinite for one seed.
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


def p_above(pairs, than):
  """Return the p-value [...] of min(above) - min(below) <= than.

  Args:
    pairs: see `bounds`; of two seeds or more.
    than: a number.
  """
  p = special.stdtr(pairs.shape[-1] - 1, -_student(pairs, than))
  return np.minimum(1, pairs.shape[-2] * p.min(-1).max(-1))


def p_below(pairs, than):
  """Return the p-value of min(above) - min(below) > than, as `p_above`."""
  p = special.stdtr(pairs.shape[-1] - 1, _student(pairs, than))
  return np.minimum(1, pairs.shape[-3] * p.min(-2).max(-1))


def p_alike(pairs, least, most):
  """Return the p-values [...] of being outside of a range, and of being inside.

  To be inside, both of two one-sided tests must say so; to be outside, either,
  by Bonferroni.
  """
  not_inside = np.maximum(p_above(pairs, least), p_below(pairs, most))
  not_outside = np.minimum(p_below(pairs, least), p_above(pairs, most))
  return not_inside, np.minimum(1, 2 * not_outside)


def _effects(pairs, than):
  """Return how clearly min(above) - min(below) is above and below a number.

  Returns:
    Two pairs of (effect in standard deviations over the seeds, places among
    which the error rate is divided).
  """
  mean, deviation = _moments(pairs)
  deviation *= math.sqrt(pairs.shape[-1])
  with np.errstate(divide="ignore", invalid="ignore"):
    effect = np.nan_to_num((mean - than) / deviation)
  above, below = effect.max(-1).min(-1), (-effect).max(-2).min(-1)
  return (float(above), pairs.shape[-2]), (float(below), pairs.shape[-3])


def _seeds(effect, choices, error, power):
  """Return the seeds with which a one-sided t test has the power, or None."""
  if not effect > 0:
    return None
  seeds = np.arange(_MIN_SEEDS, 1001)
  limit = special.stdtrit(seeds - 1, 1 - error / choices)
  found = special.nctdtr(seeds - 1, effect * np.sqrt(seeds), limit)
  enough = seeds[1 - found >= power]
  return int(enough[0]) if len(enough) else None


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
  """The verdict on one of several claims.

  Attributes:
    p: p-value, see `Claim.p_value`.
    corrected: by Holm's method over the primary claims; None for others.
    verdict: HOLDS, FAILS or OPEN.
  """

  p: float
  corrected: float | None
  verdict: str


def decide(claims, confidence):
  """Return the Decision on each claim.

  The error rate, 1 - confidence, is that of all primary claims together, and of
  each other claim.
  """
  corrected = iter(holm([k.p_value() for k in claims if k.primary]))
  decisions = []
  for claim in claims:
    p = claim.p_value()
    shared = next(corrected) if claim.primary else None
    verdict = claim.verdict(confidence, shared if claim.primary else p)
    decisions.append(Decision(p, shared, verdict))
  return decisions


def holm(p_values):
  """Return the p-values of a family, corrected by Holm's step-down method.

  Deciding those up to alpha is wrong somewhere with a probability of at most
  alpha. nan, a claim that cannot be tested, counts and stays nan.
  """
  p = np.array(p_values, float)
  order = np.argsort(p)  # nan last
  factors = len(p) - np.arange(len(p))
  corrected = np.empty_like(p)
  corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
  return corrected.tolist()


def _exp(value):
  return math.exp(value) if value < 700 else math.inf


def chosen_elsewhere(curves):
  """Return each curve's value at the place where the others' mean is lowest.

  Unlike its own minimum, which is biased low. For a single curve its own.

  Args:
    curves: {place: value} of each seed.
  """
  values, chosen = table(curves), []
  for seed in range(len(curves)):
    others = np.delete(values, seed, axis=1) if len(curves) > 1 else values
    chosen.append(float(values[others.mean(axis=1).argmin(), seed]))
  return chosen


def table(curves):
  """Return the values at the places that all curves have, [places, seeds]."""
  places = sorted(set.intersection(*map(set, curves)))
  return np.array([[curve[place] for curve in curves] for place in places])


def frontier_ratio(one, other):
  """Return the ratio of two curves' distances at equal scores.

  A curve is the path through its points in order of strength, in straight lines
  of log distance over score. Where noise makes the score turn back, the path
  passes some scores several times and has no single distance there. Curves are
  therefore compared at the scores that each passes exactly once, which loses no
  more than the dip. A part of a curve passes these scores where the whole curve
  does: their ratio is exactly 1.

  Args:
    one: [(score, distance)] in order of strength.
    other: the same.

  Returns:
    Geometric mean of one's distance over other's, uniform over the compared
    scores; nan if there are none, or if a value is not finite.
  """
  if min(len(one), len(other)) < 2 or not _positive(one, other):
    return math.nan
  edges = np.unique(np.concatenate([one[:, 0], other[:, 0]]))
  middles = (edges[:-1] + edges[1:]) / 2
  # Both are straight between two edges: the value in the middle is the mean.
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
  """Return the log distances [M] of a path at scores between its points.

  Args:
    points: [N, 2] scores and distances, in order.
    scores: [M]; those passed never, or more than once, give nan.
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
