"""The paper's claims, tested on the cells of a sweep with several seeds.

`CLAIMS` lists them in the order of the report; the functions below compute
their statistics for each seed, and `verdicts` decides from these. Claims whose
cells a sweep lacks are left out.
"""

import collections
import itertools
import math
from typing import NamedTuple

import numpy as np

from cfgd.paper import verdicts


class Kind(NamedTuple):
  """A claim before it has values.

  Attributes:
    source: who claims it.
    text: the claim, a template.
    statistic: what is computed for each seed, a template.
  """

  source: str
  text: str
  statistic: str


# The paper's main claims, which share one error rate.
PRIMARY = {
  "best_w": Kind(
    "Tables 1 and 2",
    "The best distance is at a small w, 0 < w <= {small_w:g}",
    "minimum distance over w = 0 and large w, divided by that over small w "
    "(each w chosen on the other seeds)",
  ),
  "distance": Kind(
    "Tables 1 and 2",
    "The greatest w is worse in distance than w = 0",
    "distance at the greatest w, divided by that at w = 0",
  ),
  "score": Kind(
    "Tables 1 and 2",
    "The score is higher at the greatest w than at w = 0",
    "score at the greatest w, divided by that at w = 0",
  ),
  "recall": Kind(
    "introduction: fidelity for diversity",
    "Recall falls from w = 0 to the greatest w",
    "recall at w = 0, divided by that at the greatest w",
  ),
  "p_uncond": Kind(
    "Section 4.2, Figure 4",
    "p_uncond = {one:g} is worse than {other:g} over the frontier",
    "distance of {one:g} divided by that of {other:g} at equal scores, mean "
    "over the scores",
  ),
  "T": Kind(
    "Section 4.3, Figure 5",
    "More steps of Algorithm 2 are better: T = {steps}",
    "smallest ratio of the distances at neighbouring T, each a mean over w "
    "(T chosen on the other seeds)",
  ),
  "classifier_alike": Kind(
    "introduction",
    "Classifier guidance traces a frontier like that of classifier-free",
    "its distance divided by that of classifier-free guidance at equal scores, "
    "mean over the scores",
  ),
  "temperature": Kind(
    "introduction, of arXiv:2105.05233",
    "Low temperatures do not reach what guidance does",
    "minimum distance over {fields} at w = 0, divided by that of guidance at "
    "small w (each chosen on the other seeds)",
  ),
}
# Closer looks, and questions that the paper does not ask; not corrected for
# each other.
SECONDARY = {
  "precision": Kind(
    "introduction: fidelity for diversity",
    "Precision is highest at a w > 0",
    "greatest precision over w > 0, divided by that at w = 0 (w chosen on the "
    "other seeds)",
  ),
  "score_steps": Kind(
    "Tables 1 and 2",
    "The score rises with every step of w",
    "smallest ratio of scores at neighbouring w (chosen on the other seeds)",
  ),
  "held_out": Kind(
    "ours, like the first claim",
    "Also by held-out images the best is at a small w, w <= {small_w:g}",
    "as for the first claim, with distances to held-out images",
  ),
  "matched": Kind(
    "ours, like the first claim",
    "Also with real contrast the best is at a small w, w <= {small_w:g}",
    "as for the first claim, with distances after each class's histogram has "
    "been matched",
  ),
  "p_uncond_alike": Kind(
    "Section 4.2, Figure 4",
    "p_uncond = {one:g} and {other:g} are alike over the frontier",
    "distance of {one:g} divided by that of {other:g} at equal scores, mean "
    "over the scores",
  ),
  "p_uncond_nearer": Kind(
    "Section 4.2, Figure 4",
    "p_uncond = {other:g} is nearer to {middle:g} than to {one:g}",
    "factor between the distances of {one:g} and {other:g} at equal scores, "
    "divided by that of {middle:g} and {other:g}",
  ),
  "T_gain": Kind(
    "Section 4.3, Figure 5",
    "From T = {middle} to {most} there is less to gain than up to {middle}",
    "ratio of the distances at T = {fewest} and {middle}, divided by that at "
    "{middle} and {most}, each a mean over w",
  ),
  "few_steps": Kind(
    "ours, see docs/sampling.md",
    "{few} steps of {sampler} reach {most} of Algorithm 2",
    "distance of the latter divided by that of the former, mean over w",
  ),
  "classifier": Kind(
    "arXiv:2105.05233",
    "Guidance by a classifier improves the distance, too",
    "distance at w = 0, divided by the minimum of classifier guidance (w "
    "chosen on the other seeds)",
  ),
  "copied": Kind(
    "ours",
    "No training images are copied",
    "share of copies, estimated from nearest images, mean over the main curve",
  ),
}
CLAIMS = PRIMARY | SECONDARY
_TEMPERATURES = ("score_scale", "noise_scale")


class Limits(NamedTuple):
  """The fields of `config.sweep.claims`; configs/base.py explains them."""

  confidence: float
  alike: float
  small_w: float
  copied: float
  copied_epochs: float


def test(results, distance, score, *, main, limits, epochs):
  """Return the claims that a sweep can test, primary ones first.

  Args:
    results: list of `sweep.results.Result`, of all seeds.
    distance: metric that is better when lower.
    score: metric that is better when higher.
    main: (p_uncond, T) of the main curve.
    limits: Limits.
    epochs: how often training saw each image; None if unknown.

  Returns:
    List of `verdicts.Claim`.
  """
  seeds = _by_seed(results, distance, score, main)
  found = [
    *_about_w(seeds, limits.small_w),
    *_about_controls(results, distance, score, main, limits.small_w),
    *_about_p_uncond(seeds, limits.alike),
    *_about_steps(seeds, results, limits.alike),
    *_about_classifier(seeds, limits.alike),
    *_about_temperature(seeds, limits.small_w),
    *(_about_copying(seeds, limits.copied) if can_copy(epochs, limits) else ()),
  ]
  order = list(CLAIMS)
  found.sort(key=lambda claim: order.index(claim[0]))
  return [claim for _, claim in found]


def can_copy(epochs, limits):
  """Return whether a model has seen its images often enough to copy them."""
  return epochs is not None and epochs >= limits.copied_epochs


def _by_seed(results, distance, score, main):
  """Return a _Seed for each seed, with the cells that all seeds have.

  An unfinished seed or a failed cell must not change one seed's greatest w or
  its frontier.
  """
  by_seed = {}
  for result in results:
    found = by_seed.setdefault(result.cell.seed, {})
    found[result.cell._replace(seed=None)] = result.metrics
  common = set.intersection(*map(set, by_seed.values()))
  return [
    _Seed({k: by_seed[seed][k] for k in common}, distance, score, *main)
    for seed in sorted(by_seed, key=str)
  ]


class _Seed(NamedTuple):
  """The metrics of one seed, {cell: {name: value}}, as curves over w."""

  found: dict
  distance: str
  score: str
  p_uncond: float
  T: int

  def metrics(self, p_uncond=None, T=None, **fields):
    """Return {w: metrics}, by default of the main curve, in order of w."""
    p_uncond = self.p_uncond if p_uncond is None else p_uncond
    found = {
      cell.w: metrics
      for cell, metrics in self.found.items()
      if cell[:2] == (p_uncond, T or self.T) and dict(cell.fields) == fields
    }
    return dict(sorted(found.items()))

  def values(self, name, **at):
    """Return {w: value} of a metric, without cells that lack it."""
    found = self.metrics(**at).items()
    return {w: m[name] for w, m in found if name in m}

  def distances(self, **at):
    return self.values(self.distance, **at)

  def scores(self, **at):
    return self.values(self.score, **at)

  def frontier(self, only=None, also=(), **at):
    """Return [(score, distance)] in order of w.

    Args:
      only: values of w to keep, None for all.
      also: metrics to begin with.
      **at: see `metrics`.
    """
    chosen = [m for w, m in self.metrics(**at).items() if not only or w in only]
    points = [[m[self.score], m[self.distance]] for m in [*also, *chosen]]
    return np.array(points).reshape(-1, 2)

  def steps(self, **fields):
    """Return the values of T at the main p_uncond."""
    return {
      cell.T
      for cell in self.found
      if cell.p_uncond == self.p_uncond and dict(cell.fields) == fields
    }

  def fields(self, name):
    """Return the values of a field that alone differs from the main curve."""
    cells = [k for k in self.found if k[:2] == (self.p_uncond, self.T)]
    own = [cell.fields[0] for cell in cells if len(cell.fields) == 1]
    return {value for field, value in own if field == name}


def _claim(name, values, /, neutral=1.0, alike=None, pairs=None, **fields):
  """Yield (name, Claim), or nothing without values."""
  if len(values):
    source, text, statistic = (k.format(**fields) for k in CLAIMS[name])
    values, primary = tuple(map(float, values)), name in PRIMARY
    numbers = values, neutral, alike, primary, pairs
    yield name, verdicts.Claim(text, source, statistic, *numbers)


def _of_minima(name, above, below, /, **fields):
  """Yield the claim that the minimum of `above` is above that of `below`.

  Args:
    name: of CLAIMS.
    above: {place: distance} of each seed.
    below: the same, at other places or of other models.
    **fields: of the templates.
  """
  high, low = verdicts.table(above), verdicts.table(below)
  if len(high) and len(low):
    minima = [verdicts.chosen_elsewhere(curves) for curves in (above, below)]
    pairs = _ratio(high[:, None], low)
    yield from _claim(name, _ratio(*minima), pairs=pairs, **fields)


def _ratio(above, below):
  """Return above / below, nan unless both are positive and finite."""
  above, below = np.broadcast_arrays(above, below)
  good = (above > 0) & (below > 0) & np.isfinite(above + below)
  return np.divide(above, below, where=good, out=np.full(good.shape, math.nan))


def _common(sets):
  """Return the elements that all sets have, in order."""
  return sorted(set.intersection(*map(set, sets)))


# The claims, each from the curves of all seeds.


def _split(curve, small_w):
  """Return the parts of a curve at small w, and at w = 0 and large w."""
  small = {w: value for w, value in curve.items() if 0 < w <= small_w}
  return small, {w: value for w, value in curve.items() if w not in small}


def _best_at_small_w(name, curves, small_w):
  if all(0 in curve for curve in curves):
    small, others = zip(*(_split(k, small_w) for k in curves), strict=True)
    yield from _of_minima(name, others, small, small_w=small_w)


def _ends(curves):
  """Return [values at w = 0, at the greatest w] over seeds, or nothing."""
  if not all(0 in curve and max(curve) > 0 for curve in curves):
    return np.empty((2, 0))
  return np.array([(curve[0], curve[max(curve)]) for curve in curves]).T


def _about_w(seeds, small_w):
  distances = [seed.distances() for seed in seeds]
  scores = [seed.scores() for seed in seeds]
  yield from _best_at_small_w("best_w", distances, small_w)
  start, end = _ends(distances)
  yield from _claim("distance", _ratio(end, start))
  start, end = _ends(scores)
  yield from _claim("score", _ratio(end, start))
  if len(start):
    yield from _every_step(scores)
  start, end = _ends([seed.values("recall") for seed in seeds])
  yield from _claim("recall", _ratio(start, end))
  # Of inverses: what is greatest is least.
  inverse = [
    {
      w: float(_ratio(1, value))
      for w, value in seed.values("precision").items()
    }
    for seed in seeds
  ]
  if all(0 in curve for curve in inverse):
    start = [{0: curve[0]} for curve in inverse]
    others = [{w: v for w, v in k.items() if w > 0} for k in inverse]
    yield from _of_minima("precision", start, others)


def _every_step(scores):
  steps = []
  for curve in scores:
    ws = sorted(w for w in curve if w >= 0)
    pairs = itertools.pairwise(ws)
    steps.append({k: float(_ratio(curve[k[1]], curve[k[0]])) for k in pairs})
  yield from _each("score_steps", steps)


def _each(name, ratios, /, **fields):
  """Yield the claim that the ratio at each place is above 1.

  That each is needs no correction, that some is not does.
  """
  pairs = verdicts.table(ratios)[:, None]
  values = verdicts.chosen_elsewhere(ratios)
  yield from _claim(name, values, pairs=pairs, **fields)


def _about_controls(results, distance, score, main, small_w):
  """Yield the first claim for other distances of the same cells."""
  for name, suffix in (("held_out", "heldout"), ("matched", "matched")):
    metric = f"{distance}_{suffix}"
    own = [result for result in results if metric in result.metrics]
    if own:
      seeds = _by_seed(own, metric, score, main)
      distances = [seed.distances() for seed in seeds]
      yield from _best_at_small_w(name, distances, small_w)


def _about_p_uncond(seeds, alike):
  worse = _frontier_ratios(seeds, 0.5, 0.1)
  near = _frontier_ratios(seeds, 0.2, 0.1)
  yield from _claim("p_uncond", worse, one=0.5, other=0.1)
  at = {"one": 0.2, "other": 0.1}
  yield from _claim("p_uncond_alike", near, alike=alike, **at)
  if len(worse) and len(near):
    far, close = np.exp(np.abs(np.log([worse, near])))
    at = {"one": 0.5, "middle": 0.2, "other": 0.1}
    yield from _claim("p_uncond_nearer", far / close, **at)


def _frontier_ratios(seeds, one, other):
  """Return the ratio of two models' distances of each seed, or nothing."""
  both = _common(
    seed.metrics(p_uncond=p) for seed in seeds for p in (one, other)
  )
  if len(both) < 2:  # one point is no curve
    return []
  return [
    verdicts.frontier_ratio(
      *(seed.frontier(only=both, p_uncond=p) for p in (one, other))
    )
    for seed in seeds
  ]


def _about_steps(seeds, results, alike):
  """Yield the claims about Algorithm 2's T, and about fewer steps."""
  fields = _of_algorithm_2(results)
  steps = _common(seed.steps(**fields) for seed in seeds)
  if len(steps) < 3:
    return
  curves = {T: [seed.distances(T=T, **fields) for seed in seeds] for T in steps}
  neighbours = itertools.pairwise(steps)
  ratios = {k: _mean_ratio(curves[k[0]], curves[k[1]]) for k in neighbours}
  if not all(map(len, ratios.values())):
    return
  at = dict(fewest=steps[0], middle=steps[1], most=steps[-1])
  each = [
    dict(zip(ratios, k, strict=True))
    for k in zip(*ratios.values(), strict=True)
  ]
  yield from _each("T", each, steps=", ".join(map(str, steps)))
  rest = _mean_ratio(curves[steps[1]], curves[steps[-1]])
  yield from _claim("T_gain", _ratio(ratios[steps[0], steps[1]], rest), **at)
  if fields:
    main = [seed.distances() for seed in seeds]
    ratios = _mean_ratio(curves[steps[-1]], main)
    at = {"few": seeds[0].T, "most": steps[-1], "sampler": _sampler(results)}
    yield from _claim("few_steps", ratios, neutral=1 / alike, **at)


def _of_algorithm_2(results):
  """Return the fields of the cells by Algorithm 2 that have the most T."""
  steps = collections.defaultdict(set)
  for result in results:
    fields = dict(result.cell.fields)
    if result.sampler == "ancestral" and fields.keys() <= {"sampler", "grid"}:
      steps[result.cell.fields].add(result.cell.T)
  return dict(max(steps, key=lambda k: len(steps[k]), default=()))


def _sampler(results):
  """Return the sampler of the cells without fields."""
  return next((r.sampler for r in results if not r.cell.fields), "")


def _mean_ratio(above, below):
  """Return each seed's ratio of two curves, mean over the w that all have."""
  common = _common(itertools.chain(above, below))
  if not common:
    return []
  ratios = [
    [float(_ratio(one[w], other[w])) for w in common]
    for one, other in zip(above, below, strict=True)
  ]
  return np.exp(np.log(ratios).mean(axis=1))


def _about_classifier(seeds, alike):
  unguided = [seed.metrics().get(0) for seed in seeds]
  guided = [seed.distances(guidance="classifier") for seed in seeds]
  if not all(unguided) or not all(guided):
    return
  start = [{0: seed.distances()[0]} for seed in seeds]
  yield from _of_minima("classifier", start, guided)
  ratios = [
    verdicts.frontier_ratio(
      seed.frontier(also=[metrics], guidance="classifier"), seed.frontier()
    )
    for seed, metrics in zip(seeds, unguided, strict=True)
  ]
  yield from _claim("classifier_alike", ratios, alike=alike)


def _about_temperature(seeds, small_w):
  guided = [_split(seed.distances(), small_w)[0] for seed in seeds]
  names = [k for k in _TEMPERATURES if any(s.fields(k) for s in seeds)]
  colder = [
    {
      (name, value): found[0]
      for name in names
      for value in seed.fields(name)
      if 0 in (found := seed.distances(**{name: value}))
    }
    for seed in seeds
  ]
  if names:
    yield from _of_minima(
      "temperature", colder, guided, fields=" and ".join(names)
    )


def _about_copying(seeds, copied):
  values = [list(seed.values("copied").values()) for seed in seeds]
  if all(values):
    means = [np.mean(v) for v in values]
    yield from _claim("copied", means, neutral=0.0, alike=copied)
