"""The paper's claims, tested on the cells of a sweep with several seeds.

What a statistic says of a claim is decided in `verdicts`. A claim whose cells a
sweep does not have is left out.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any

import numpy as np

from cfgd.sweep import verdicts


def test(
  cells: Sequence[Mapping[str, Any]],
  distance: str,
  score: str,
  *,
  main: tuple[float, int],
  alike: float,
  small_w: float,
  copied: float,
) -> list[verdicts.Claim]:
  """Return the claims that the cells of a sweep can test.

  Args:
    cells: finished cells of all seeds.
    distance: metric that is better when lower.
    score: metric that is better when higher.
    main: (p_uncond, T) of the main curve.
    alike: largest ratio of two distances that are called alike.
    small_w: up to which w guidance is small.
    copied: up to which share of copied samples nothing is said to be copied.
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
    *_about_copying(seeds, copied),
  ]
  return [claim for claim in found if claim]


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

  def p_unconds(self):
    return sorted({c["p_uncond"] for c in self._cells if not _plain(c)})

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


def _claim(text, source, statistic, values, neutral=1.0, alike=None):
  """Return a Claim, or None without values: the sweep lacks the cells."""
  if not values:
    return None
  return verdicts.Claim(text, source, statistic, tuple(values), neutral, alike)


def _ratio(above, below):
  """Return above / below, nan unless both are positive and finite."""
  good = above > 0 and below > 0 and math.isfinite(above + below)
  return above / below if good else math.nan


# The claims, each from the curves of all seeds.


def _small(curve, small_w):
  return {w: value for w, value in curve.items() if 0 < w <= small_w}


def _best_at_small_w(curves, small_w):
  """Return the best of w = 0 and large w, over small w's best, per seed."""
  if not all(_small(curve, small_w) and 0 in curve for curve in curves):
    return []
  best = verdicts.chosen_elsewhere([_small(curve, small_w) for curve in curves])
  return [
    _ratio(min(v for w, v in curve.items() if not 0 < w <= small_w), low)
    for curve, low in zip(curves, best, strict=True)
  ]


def _ends(curves):
  """Return (value at w = 0, at the greatest w) per curve, or nothing."""
  if not all(0 in curve and max(curve) > 0 for curve in curves):
    return []
  return [(curve[0], curve[max(curve)]) for curve in curves]


def _about_w(seeds, small_w):
  distances = [seed.distances() for seed in seeds]
  scores = [seed.scores() for seed in seeds]
  guided = [[s for w, s in curve.items() if w >= 0] for curve in scores]
  yield _claim(
    f"The best distance is at a small w, 0 < w <= {small_w:g}",
    "Tables 1 and 2",
    "lowest distance of w = 0 and of larger w, over that of small w (which w, "
    "the other seeds say)",
    _best_at_small_w(distances, small_w),
  )
  yield _claim(
    "The greatest w is worse in distance than w = 0",
    "Tables 1 and 2",
    "distance at the greatest w over that at w = 0",
    [_ratio(end, start) for start, end in _ends(distances)],
  )
  yield _claim(
    "The score is higher at the greatest w than at w = 0",
    "Tables 1 and 2",
    "score at the greatest w over that at w = 0",
    [_ratio(end, start) for start, end in _ends(scores)],
  )
  yield _claim(
    "The score rises with every step of w",
    "Tables 1 and 2",
    "smallest ratio of the scores at neighbouring w",
    [
      min(_ratio(b, a) for a, b in itertools.pairwise(curve))
      for curve in guided
    ]
    if _ends(scores)
    else [],
  )
  for name, sign, text in (
    ("precision", 1, "Precision rises from w = 0 to the greatest w"),
    ("recall", -1, "Recall falls from w = 0 to the greatest w"),
  ):
    yield _claim(
      text,
      "fidelity for diversity, introduction",
      f"{name} at the greatest w less that at w = 0"
      if sign > 0
      else f"{name} at w = 0 less that at the greatest w",
      [
        sign * (end - start)
        for start, end in _ends([seed.values(name) for seed in seeds])
      ],
      neutral=0.0,
    )


def _about_held_out(cells, distance, score, main, small_w):
  """The first claim again, by images that no model has seen."""
  name = f"{distance}_heldout"
  cells = [c for c in cells if name in c["metrics"]]
  curves = _by_seed(cells, name, score, main) if cells else []
  yield _claim(
    f"Also by held-out images the best is at a small w, w <= {small_w:g}",
    "ours, beside the first",
    "as the first, to held-out images",
    _best_at_small_w([curve.distances() for curve in curves], small_w),
  )


def _about_p_uncond(seeds, alike):
  there = set.intersection(*(set(seed.p_unconds()) for seed in seeds))
  for one, other, same in ((0.5, 0.1, 0), (0.5, 0.2, 0), (0.2, 0.1, 1)):
    if {one, other} <= there:
      yield _claim(
        f"p_uncond = {other:g} and {one:g} are alike over the frontier"
        if same
        else f"p_uncond = {one:g} is worse than {other:g} over the frontier",
        "Section 4.2, Figure 4",
        f"distance of {one:g} over that of {other:g}, mean over equal scores",
        [_p_uncond_ratio(seed, one, other) for seed in seeds],
        alike=alike if same else None,
      )


def _p_uncond_ratio(seed, one, other):
  """Return the ratio of two models' frontiers over the w that both have."""
  both = set(seed.metrics(p_uncond=one)) & set(seed.metrics(p_uncond=other))
  return verdicts.frontier_ratio(
    seed.frontier(only=both, p_uncond=one),
    seed.frontier(only=both, p_uncond=other),
  )


def _about_steps(seeds):
  steps = sorted(set.intersection(*(set(seed.steps()) for seed in seeds)))
  if len(steps) < 3:
    return
  best = {T: _best_at(seeds, T, steps) for T in steps}
  if not all(best.values()):
    return
  fewest, middle, most = steps[0], steps[len(steps) // 2], steps[-1]
  gains, more = (
    [_ratio(a, b) for a, b in zip(best[p], best[q], strict=True)]
    for p, q in ((fewest, middle), (middle, most))
  )
  yield _claim(
    f"T = {middle} is better than T = {fewest}",
    "Section 4.3, Figure 5",
    f"best distance of T = {fewest} over that of T = {middle}",
    gains,
  )
  yield _claim(
    f"From T = {middle} to {most} there is less to gain than up to {middle}",
    "Section 4.3, Figure 5",
    f"the ratio of T = {fewest} to {middle} over that of {middle} to {most}",
    [_ratio(a, b) for a, b in zip(gains, more, strict=True)],
  )


def _best_at(seeds, T, all_steps):
  """Return the best distance of a T per seed, over the w that every T has."""
  common = set.intersection(
    *(set(seed.distances(T=other)) for seed in seeds for other in all_steps)
  )
  curves = [seed.distances(T=T) for seed in seeds]
  curves = [{w: curve[w] for w in common} for curve in curves]
  return verdicts.chosen_elsewhere(curves) if common else None


def _about_classifier(seeds, alike):
  if not all("classifier" in seed.fields("guidance") for seed in seeds):
    return
  curves = [seed.distances(guidance="classifier") for seed in seeds]
  unguided = [seed.metrics().get(0) for seed in seeds]
  if not all(unguided):
    return
  plain = [seed.distances()[0] for seed in seeds]
  yield _claim(
    "Guidance by a classifier improves the distance, too",
    "arXiv:2105.05233",
    "distance at w = 0 over the best of classifier guidance (which w, the "
    "other seeds say)",
    [
      _ratio(start, low)
      for start, low in zip(
        plain, verdicts.chosen_elsewhere(curves), strict=True
      )
    ],
  )
  yield _claim(
    "It traces a frontier like that of classifier-free guidance",
    "introduction",
    "its distance over that of classifier-free guidance, mean over equal "
    "scores",
    [
      verdicts.frontier_ratio(
        seed.frontier(also=[start], guidance="classifier"), seed.frontier()
      )
      for seed, start in zip(seeds, unguided, strict=True)
    ],
    alike=alike,
  )


def _about_temperature(seeds, small_w):
  curves = [_small(seed.distances(), small_w) for seed in seeds]
  if not all(curves):
    return
  guided = verdicts.chosen_elsewhere(curves)
  for name, text in (
    ("score_scale", "Scaling the score"),
    ("noise_scale", "Reducing the noise"),
  ):
    lows = [
      [seed.distances(**{name: v}).get(0) for v in seed.fields(name)]
      for seed in seeds
    ]
    if all(low and None not in low for low in lows):
      yield _claim(
        f"{text} does not reach what guidance does",
        "introduction, of arXiv:2105.05233",
        f"lowest distance over {name} at w = 0 (of each seed its own), over "
        "guidance's at a small w",
        [
          _ratio(min(low), best) for low, best in zip(lows, guided, strict=True)
        ],
      )


def _about_ablations(seeds):
  for name in ("v", "threshold"):
    values = set.intersection(*(set(seed.fields(name)) for seed in seeds))
    for value in sorted(values, key=str):
      curves = [
        (seed.distances(**{name: value}), seed.distances()) for seed in seeds
      ]
      common = set.intersection(*(set(a) & set(b) for a, b in curves))
      for w in sorted(common):
        yield _claim(
          f"{name} = {value} is worse than the config's, at w = {w:g}",
          "ours: an ablation",
          "its distance over that of the main curve",
          [_ratio(other[w], main[w]) for other, main in curves],
        )


def _about_copying(seeds, copied):
  values = [list(seed.values("copied").values()) for seed in seeds]
  if all(values):
    yield _claim(
      "No training images are copied",
      "ours",
      "share of copies, estimated by nearest images, mean over the main curve",
      [float(np.mean(v)) for v in values],
      neutral=0.0,
      alike=copied,
    )
