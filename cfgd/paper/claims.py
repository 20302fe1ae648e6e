"""The paper's claims, tested on the cells of a sweep with several seeds.

`CLAIMS` has all of them, in the order of the report; the functions below
compute their statistics, and `verdicts` decides by them. A claim whose cells a
sweep lacks is left out.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from cfgd.paper import verdicts


class Kind(NamedTuple):
  """A claim before it has values.

  Attributes:
    primary: whether it is one of the paper's main statements, which share one
      error rate. The others ask more closely, or ask what the paper does not,
      and are not corrected for each other.
    source: who claims it.
    text: what is claimed, a template.
    statistic: what is computed of each seed, a template.
  """

  primary: bool
  source: str
  text: str
  statistic: str


CLAIMS = {
  "best_w": Kind(
    primary=True,
    source="Tables 1 and 2",
    text="The best distance is at a small w, 0 < w <= {small_w:g}",
    statistic="lowest distance of w = 0 and larger w, over the lowest of small "
    "w (both w chosen on the other seeds)",
  ),
  "distance": Kind(
    primary=True,
    source="Tables 1 and 2",
    text="The greatest w is worse in distance than w = 0",
    statistic="distance at the greatest w over that at w = 0",
  ),
  "score": Kind(
    primary=True,
    source="Tables 1 and 2",
    text="The score is higher at the greatest w than at w = 0",
    statistic="score at the greatest w over that at w = 0",
  ),
  "p_uncond": Kind(
    primary=True,
    source="Section 4.2, Figure 4",
    text="p_uncond = {one:g} is worse than {other:g} over the frontier",
    statistic="distance of {one:g} over that of {other:g}, mean over equal "
    "scores",
  ),
  "p_uncond_alike": Kind(
    primary=True,
    source="Section 4.2, Figure 4",
    text="p_uncond = {other:g} and {one:g} are alike over the frontier",
    statistic="distance of {one:g} over that of {other:g}, mean over equal "
    "scores",
  ),
  "T": Kind(
    primary=True,
    source="Section 4.3, Figure 5",
    text="T = {middle} is better than T = {fewest}",
    statistic="lowest distance of T = {fewest} over that of T = {middle} (both "
    "w chosen on the other seeds)",
  ),
  "T_gain": Kind(
    primary=False,
    source="Section 4.3, Figure 5",
    text="From T = {middle} to {most} there is less to gain than up to "
    "{middle}",
    statistic="the ratio of T = {fewest} to {middle} over that of {middle} to "
    "{most} (each w chosen on the other seeds)",
  ),
  "score_steps": Kind(
    primary=False,
    source="Tables 1 and 2",
    text="The score rises with every step of w",
    statistic="smallest ratio of the scores at neighbouring w (which, the "
    "other seeds say)",
  ),
  "precision": Kind(
    primary=False,
    source="fidelity for diversity, introduction",
    text="Precision rises from w = 0 to the greatest w",
    statistic="precision at the greatest w less that at w = 0",
  ),
  "recall": Kind(
    primary=False,
    source="fidelity for diversity, introduction",
    text="Recall falls from w = 0 to the greatest w",
    statistic="recall at w = 0 less that at the greatest w",
  ),
  "held_out": Kind(
    primary=False,
    source="ours, beside the first",
    text="Also by held-out images the best is at a small w, w <= {small_w:g}",
    statistic="as the first, to held-out images",
  ),
  "classifier": Kind(
    primary=False,
    source="arXiv:2105.05233",
    text="Guidance by a classifier improves the distance, too",
    statistic="distance at w = 0 over the lowest of classifier guidance (w "
    "chosen on the other seeds)",
  ),
  "classifier_alike": Kind(
    primary=False,
    source="introduction",
    text="It traces a frontier like that of classifier-free guidance",
    statistic="its distance over that of classifier-free guidance, mean over "
    "equal scores",
  ),
  "score_scale": Kind(
    primary=False,
    source="introduction, of arXiv:2105.05233",
    text="Scaling the score does not reach what guidance does",
    statistic="lowest distance over score_scale at w = 0, over guidance's at a "
    "small w (both chosen on the other seeds)",
  ),
  "noise_scale": Kind(
    primary=False,
    source="introduction, of arXiv:2105.05233",
    text="Reducing the noise does not reach what guidance does",
    statistic="lowest distance over noise_scale at w = 0, over guidance's at a "
    "small w (both chosen on the other seeds)",
  ),
  "ablation": Kind(
    primary=False,
    source="ours: an ablation",
    text="{name} = {value} is worse than the config's, at w = {w:g}",
    statistic="its distance over that of the main curve",
  ),
  "copied": Kind(
    primary=False,
    source="ours",
    text="No training images are copied",
    statistic="share of copies, estimated by nearest images, mean over the "
    "main curve",
  ),
}


def test(
  cells: Sequence[Mapping[str, Any]],
  distance: str,
  score: str,
  *,
  main: tuple[float, int],
  alike: float,
  small_w: float,
  copied: float,
  copied_epochs: float,
  epochs: float | None,
) -> list[verdicts.Claim]:
  """Return the claims that the cells of a sweep can test, primary ones first.

  Args:
    cells: finished cells of all seeds.
    distance: metric that is better when lower.
    score: metric that is better when higher.
    main: (p_uncond, T) of the main curve.
    alike: largest ratio of two distances that are called alike.
    small_w: up to which w guidance is small.
    copied: up to which share of copied samples nothing is said to be copied.
    copied_epochs: how often training must have seen each image before the
      absence of copies says something.
    epochs: how often it has; None where that is unknown.
  """
  seeds = _by_seed(cells, distance, score, main)
  found = [
    *_about_w(seeds, small_w),
    *_about_held_out(cells, distance, score, main, small_w),
    *_about_p_uncond(seeds, alike),
    *_about_steps(seeds),
    *_about_classifier(seeds, alike),
    *_about_temperature(seeds, small_w),
    *_about_ablations(seeds),
    *(_about_copying(seeds, copied) if can_copy(epochs, copied_epochs) else ()),
  ]
  order = list(CLAIMS)
  found.sort(key=lambda claim: order.index(claim[0]))
  return [claim for _, claim in found]


def can_copy(epochs: float | None, needed: float) -> bool:
  """Say whether a model has seen its images often enough to copy them."""
  return epochs is not None and epochs >= needed


def _by_seed(cells, distance, score, main):
  """Return a _Seed of each, with those cells alone that all seeds have.

  So a seed that is not finished, or a cell that failed, does not make one
  seed's greatest w, or its frontier, another one than the others'.
  """
  by_seed = {}
  for cell in cells:
    by_seed.setdefault(cell.get("seed"), {})[_place(cell)] = cell
  common = set.intersection(*map(set, by_seed.values()))
  return [
    _Seed([by_seed[seed][place] for place in common], distance, score, main)
    for seed in sorted(by_seed, key=str)
  ]


def _place(cell):
  fields = repr(sorted(_plain(cell).items()))
  return cell["p_uncond"], cell["T"], cell["w"], fields


class _Seed:
  """The cells of one seed, as curves over w."""

  def __init__(self, cells, distance, score, main):
    self._cells, self._distance, self._score = cells, distance, score
    self.p_uncond, self.T = main

  def metrics(self, p_uncond=None, T=None, **fields):
    """Return {w: metrics} of one model, T and other fields of sampling."""
    if p_uncond is None:
      p_uncond = self.p_uncond
    wanted = p_uncond, T or self.T, fields
    return {
      c["w"]: c["metrics"]
      for c in sorted(self._cells, key=lambda c: c["w"])
      if (c["p_uncond"], c["T"], _plain(c)) == wanted
    }

  def values(self, name, **at):
    """Return {w: value} of a metric, where it is there."""
    found = self.metrics(**at).items()
    return {w: m[name] for w, m in found if name in m}

  def distances(self, **at):
    return self.values(self._distance, **at)

  def scores(self, **at):
    return self.values(self._score, **at)

  def frontier(self, only=None, also=(), **at):
    """Return [(score, distance)] in order of w; of some w only.

    Args:
      only: values of w to keep, None for all.
      also: more metrics to begin with.
      **at: see `metrics`.
    """
    chosen = [m for w, m in self.metrics(**at).items() if not only or w in only]
    return np.array(
      [[m[self._score], m[self._distance]] for m in [*also, *chosen]]
    ).reshape(-1, 2)

  def steps(self):
    return sorted(
      {
        c["T"]
        for c in self._cells
        if not _plain(c) and c["p_uncond"] == self.p_uncond
      }
    )

  def fields(self, name):
    """Return the values of a field that cells of the main curve differ in."""
    return sorted(
      {
        _plain(c)[name]
        for c in self._cells
        if list(_plain(c)) == [name]
        and (c["p_uncond"], c["T"]) == (self.p_uncond, self.T)
      },
      key=str,
    )


def _plain(cell):
  return dict(cell.get("fields", {}))


def _claim(name, values, /, neutral=1.0, alike=None, pairs=None, **fields):
  """Yield (name, Claim); nothing without values: the sweep lacks the cells."""
  kind = CLAIMS[name]
  if len(values):
    yield (
      name,
      verdicts.Claim(
        kind.text.format(**fields),
        kind.source,
        kind.statistic.format(**fields),
        tuple(map(float, values)),
        neutral,
        alike,
        kind.primary,
        pairs,
      ),
    )


def _of_bests(name, above, below, /, **fields):
  """Yield the claim that the lowest of `above` is above that of `below`.

  Args:
    name: of CLAIMS.
    above: {place: distance} of each seed.
    below: the same, at other places or of other models.
    **fields: of the templates.
  """
  high, low = verdicts.table(above), verdicts.table(below)
  if len(high) and len(low):
    values = [
      _ratio(*lowest)
      for lowest in zip(
        verdicts.chosen_elsewhere(above),
        verdicts.chosen_elsewhere(below),
        strict=True,
      )
    ]
    pairs = _ratio(high[:, None], low)
    yield from _claim(name, values, pairs=pairs, **fields)


def _ratio(above, below):
  """Return above / below, nan unless both are positive and finite."""
  above, below = np.broadcast_arrays(above, below)
  good = (above > 0) & (below > 0) & np.isfinite(above + below)
  return np.divide(above, below, where=good, out=np.full(good.shape, math.nan))


# The claims, each from the curves of all seeds.


def _small(curve, small_w):
  return {w: value for w, value in curve.items() if 0 < w <= small_w}


def _best_at_small_w(name, curves, small_w):
  if all(0 in curve for curve in curves):
    small = [_small(curve, small_w) for curve in curves]
    others = [
      {w: value for w, value in curve.items() if not 0 < w <= small_w}
      for curve in curves
    ]
    yield from _of_bests(name, others, small, small_w=small_w)


def _ends(curves):
  """Return (values at w = 0, at the greatest w) over seeds, or nothing."""
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
  guided = [{w: s for w, s in curve.items() if w >= 0} for curve in scores]
  steps = [
    {ws: float(_ratio(curve[ws[1]], curve[ws[0]])) for ws in _pairwise(curve)}
    for curve in guided
  ]
  # That each step is above 1 needs no correction, that some is not does.
  pairs = verdicts.table(steps)[:, None]
  yield from _claim(
    "score_steps", verdicts.chosen_elsewhere(steps), pairs=pairs
  )


def _pairwise(curve):
  return list(itertools.pairwise(sorted(curve)))


def _about_held_out(cells, distance, score, main, small_w):
  """The first claim again, by images that no model has seen."""
  name = f"{distance}_heldout"
  cells = [c for c in cells if name in c["metrics"]]
  if cells:
    curves = _by_seed(cells, name, score, main)
    distances = [curve.distances() for curve in curves]
    yield from _best_at_small_w("held_out", distances, small_w)


def _about_p_uncond(seeds, alike):
  for name, one, other, limit in (
    ("p_uncond", 0.5, 0.1, None),
    ("p_uncond", 0.5, 0.2, None),
    ("p_uncond_alike", 0.2, 0.1, alike),
  ):
    both = set.intersection(
      *(set(seed.metrics(p_uncond=p)) for seed in seeds for p in (one, other))
    )
    if len(both) > 1:  # one point is no curve
      values = [
        verdicts.frontier_ratio(
          seed.frontier(only=both, p_uncond=one),
          seed.frontier(only=both, p_uncond=other),
        )
        for seed in seeds
      ]
      yield from _claim(name, values, alike=limit, one=one, other=other)


def _about_steps(seeds):
  steps = sorted(set.intersection(*(set(seed.steps()) for seed in seeds)))
  if len(steps) < 3:
    return
  common = set.intersection(
    *(set(seed.distances(T=T)) for seed in seeds for T in steps)
  )
  if not common:
    return
  at = dict(fewest=steps[0], middle=steps[len(steps) // 2], most=steps[-1])
  few, middle, most = (
    [{w: seed.distances(T=T)[w] for w in common} for seed in seeds]
    for T in at.values()
  )
  yield from _of_bests("T", few, middle, **at)
  # (few / middle) / (middle / most): the lowest of products few x most over
  # the lowest of squares.
  best = [
    np.array(verdicts.chosen_elsewhere(curves))
    for curves in (few, middle, most)
  ]
  values = _ratio(best[0] * best[2], best[1] ** 2)
  few, middle, most = map(verdicts.table, (few, middle, most))
  products = (few[:, None] * most).reshape(-1, 1, len(seeds))
  pairs = _ratio(products, middle**2)
  yield from _claim("T_gain", values, pairs=pairs, **at)


def _about_classifier(seeds, alike):
  if not all("classifier" in seed.fields("guidance") for seed in seeds):
    return
  unguided = [seed.metrics().get(0) for seed in seeds]
  if not all(unguided):
    return
  yield from _of_bests(
    "classifier",
    [{0: seed.distances()[0]} for seed in seeds],
    [seed.distances(guidance="classifier") for seed in seeds],
  )
  ratios = [
    verdicts.frontier_ratio(
      seed.frontier(also=[start], guidance="classifier"), seed.frontier()
    )
    for seed, start in zip(seeds, unguided, strict=True)
  ]
  yield from _claim("classifier_alike", ratios, alike=alike)


def _about_temperature(seeds, small_w):
  guided = [_small(seed.distances(), small_w) for seed in seeds]
  for name in ("score_scale", "noise_scale"):
    colder = [
      {
        value: found[0]
        for value in seed.fields(name)
        if 0 in (found := seed.distances(**{name: value}))
      }
      for seed in seeds
    ]
    yield from _of_bests(name, colder, guided)


def _about_ablations(seeds):
  for name in ("v", "threshold"):
    values = set.intersection(*(set(seed.fields(name)) for seed in seeds))
    for value in sorted(values, key=str):
      curves = [
        (seed.distances(**{name: value}), seed.distances()) for seed in seeds
      ]
      common = set.intersection(*(set(a) & set(b) for a, b in curves))
      for w in sorted(common):
        ratios = [float(_ratio(other[w], main[w])) for other, main in curves]
        yield from _claim("ablation", ratios, name=name, value=value, w=w)


def _about_copying(seeds, copied):
  values = [list(seed.values("copied").values()) for seed in seeds]
  if all(values):
    means = [np.mean(v) for v in values]
    yield from _claim("copied", means, neutral=0.0, alike=copied)
