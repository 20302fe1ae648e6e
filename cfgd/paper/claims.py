"""The paper's claims, tested on the cells of a sweep with several seeds.

`CLAIMS` lists them in the order of the report; the functions below compute
their statistics for each seed, and `verdicts` decides from these. Claims whose
cells a sweep lacks are left out.
"""

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
  "p_uncond": Kind(
    "Section 4.2, Figure 4",
    "p_uncond = {one:g} is worse than {other:g} over the frontier",
    "distance of {one:g} divided by that of {other:g} at equal scores, mean "
    "over the scores",
  ),
  "p_uncond_alike": Kind(
    "Section 4.2, Figure 4",
    "p_uncond = {other:g} and {one:g} are alike over the frontier",
    "distance of {one:g} divided by that of {other:g} at equal scores, mean "
    "over the scores",
  ),
  "T": Kind(
    "Section 4.3, Figure 5",
    "T = {middle} is better than T = {fewest}",
    "minimum distance of T = {fewest}, divided by that of T = {middle} (each w "
    "chosen on the other seeds)",
  ),
}
# Closer looks, and questions that the paper does not ask; not corrected for
# each other.
SECONDARY = {
  "T_gain": Kind(
    "Section 4.3, Figure 5",
    "From T = {middle} to {most} there is less to gain than up to {middle}",
    "ratio of the minima at T = {fewest} and {middle}, divided by that at "
    "{middle} and {most} (each w chosen on the other seeds)",
  ),
  "score_steps": Kind(
    "Tables 1 and 2",
    "The score rises with every step of w",
    "smallest ratio of scores at neighbouring w (chosen on the other seeds)",
  ),
  "precision": Kind(
    "introduction: fidelity for diversity",
    "Precision rises from w = 0 to the greatest w",
    "precision at the greatest w minus that at w = 0",
  ),
  "recall": Kind(
    "introduction: fidelity for diversity",
    "Recall falls from w = 0 to the greatest w",
    "recall at w = 0 minus that at the greatest w",
  ),
  "held_out": Kind(
    "ours, like the first claim",
    "Also by held-out images the best is at a small w, w <= {small_w:g}",
    "as for the first claim, with distances to held-out images",
  ),
  "classifier": Kind(
    "arXiv:2105.05233",
    "Guidance by a classifier improves the distance, too",
    "distance at w = 0, divided by the minimum of classifier guidance (w "
    "chosen on the other seeds)",
  ),
  "classifier_alike": Kind(
    "introduction",
    "It traces a frontier like that of classifier-free guidance",
    "its distance divided by that of classifier-free guidance at equal scores, "
    "mean over the scores",
  ),
  "score_scale": Kind(
    "introduction, of arXiv:2105.05233",
    "Scaling the score does not reach what guidance does",
    "minimum distance over score_scale at w = 0, divided by that of guidance "
    "at small w (each chosen on the other seeds)",
  ),
  "noise_scale": Kind(
    "introduction, of arXiv:2105.05233",
    "Reducing the noise does not reach what guidance does",
    "minimum distance over noise_scale at w = 0, divided by that of guidance "
    "at small w (each chosen on the other seeds)",
  ),
  "ablation": Kind(
    "ours: an ablation",
    "{name} = {value} is worse than the config's, at w = {w:g}",
    "its distance, divided by that of the main curve",
  ),
  "copied": Kind(
    "ours",
    "No training images are copied",
    "share of copies, estimated from nearest images, mean over the main curve",
  ),
}
CLAIMS = PRIMARY | SECONDARY


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
    *_about_held_out(results, distance, score, main, limits.small_w),
    *_about_p_uncond(seeds, limits.alike),
    *_about_steps(seeds),
    *_about_classifier(seeds, limits.alike),
    *_about_temperature(seeds, limits.small_w),
    *_about_ablations(seeds),
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

  def steps(self):
    """Return the values of T at the main p_uncond."""
    cells = [cell for cell in self.found if cell.p_uncond == self.p_uncond]
    return {cell.T for cell in cells if not cell.fields}

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
  for name, sign in (("precision", 1), ("recall", -1)):
    start, end = _ends([seed.values(name) for seed in seeds])
    yield from _claim(name, sign * (end - start), neutral=0.0)


def _every_step(scores):
  steps = []
  for curve in scores:
    ws = sorted(w for w in curve if w >= 0)
    pairs = itertools.pairwise(ws)
    steps.append({k: float(_ratio(curve[k[1]], curve[k[0]])) for k in pairs})
  # That each step is above 1 needs no correction, that some step is not does.
  pairs = verdicts.table(steps)[:, None]
  values = verdicts.chosen_elsewhere(steps)
  yield from _claim("score_steps", values, pairs=pairs)


def _about_held_out(results, distance, score, main, small_w):
  """Yield the first claim for images that no model has seen."""
  name = f"{distance}_heldout"
  results = [result for result in results if name in result.metrics]
  if results:
    seeds = _by_seed(results, name, score, main)
    distances = [seed.distances() for seed in seeds]
    yield from _best_at_small_w("held_out", distances, small_w)


def _about_p_uncond(seeds, alike):
  for name, one, other, limit in (
    ("p_uncond", 0.5, 0.1, None),
    ("p_uncond", 0.5, 0.2, None),
    ("p_uncond_alike", 0.2, 0.1, alike),
  ):
    both = _common(
      seed.metrics(p_uncond=p) for seed in seeds for p in (one, other)
    )
    if len(both) > 1:  # one point is no curve
      ratios = [
        verdicts.frontier_ratio(
          *(seed.frontier(only=both, p_uncond=p) for p in (one, other))
        )
        for seed in seeds
      ]
      yield from _claim(name, ratios, alike=limit, one=one, other=other)


def _about_steps(seeds):
  steps = _common(seed.steps() for seed in seeds)
  if len(steps) < 3:
    return
  common = _common(seed.distances(T=T) for seed in seeds for T in steps)
  if not common:
    return
  at = dict(fewest=steps[0], middle=steps[len(steps) // 2], most=steps[-1])
  curves = [
    [{w: seed.distances(T=T)[w] for w in common} for seed in seeds]
    for T in at.values()
  ]
  yield from _of_minima("T", *curves[:2], **at)
  # (few / middle) / (middle / most): the minimum of products few x most over
  # the minimum of squares.
  few, middle, most = np.array([verdicts.chosen_elsewhere(k) for k in curves])
  values = _ratio(few * most, middle**2)
  few, middle, most = map(verdicts.table, curves)
  products = (few[:, None] * most).reshape(-1, 1, len(seeds))
  pairs = _ratio(products, middle**2)
  yield from _claim("T_gain", values, pairs=pairs, **at)


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
  for name in ("score_scale", "noise_scale"):
    colder = [
      {
        value: found[0]
        for value in seed.fields(name)
        if 0 in (found := seed.distances(**{name: value}))
      }
      for seed in seeds
    ]
    yield from _of_minima(name, colder, guided)


def _about_ablations(seeds):
  for name in ("v", "threshold"):
    for value in _common(seed.fields(name) for seed in seeds):
      at = {name: value}
      curves = [(seed.distances(**at), seed.distances()) for seed in seeds]
      for w in _common(itertools.chain(*curves)):
        ratios = [float(_ratio(other[w], main[w])) for other, main in curves]
        yield from _claim("ablation", ratios, name=name, value=value, w=w)


def _about_copying(seeds, copied):
  values = [list(seed.values("copied").values()) for seed in seeds]
  if all(values):
    means = [np.mean(v) for v in values]
    yield from _claim("copied", means, neutral=0.0, alike=copied)
