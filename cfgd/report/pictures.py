"""The pictures of a report: the curves of a sweep, and its samples."""

import collections
import dataclasses
import io

import numpy as np
from PIL import Image

from cfgd.report import blocks
from cfgd.report import plots
from cfgd.report import summary as summary_lib

_MAX_GRIDS = 8
# Fields of `sampling` that say by which steps it goes.
_OF_SAMPLERS = {
  *("sampler", "grid", "logsnr_low", "logsnr_high", "rho"),
  *("churn", "churn_low", "churn_high", "v", "v_from"),
}

SAMPLES = "Samples from the same noise and labels at every w."
_NEIGHBOURS = (
  "Samples of the best cell, one per class; below each, the nearest training "
  "image and the nearest held-out image by squared difference."
)
_BARS = "Bars: one standard deviation over the seeds in either direction."
_REAL = "Dotted: held-out real images."
_BESIDE = "Dashed, hollow: the {}'s {}."


def draw(summary):
  """Return a `blocks.Picture` of all that the results of a sweep allow."""
  if not summary.averages:
    return []
  bars = any(result.spread for result in summary.averages)
  drawn = {
    "frontier_variant": _variants(summary),
    "frontier_p_uncond": _frontier(summary, "p_uncond", "T"),
    "frontier_T": _frontier(summary, "T", "p_uncond"),
    "frontier_sampler": _samplers(summary),
    "over_w": _over_w(summary),
    "samples": (_samples(summary), SAMPLES),
    "neighbours": (_neighbours(summary), _NEIGHBOURS),
  }
  found = []
  for name, (figure, *sentences) in drawn.items():
    sentences.insert(1, summary.remarks.get(name))
    if bars and name not in ("samples", "neighbours"):
      sentences.append(_BARS)
    if figure:
      caption = " ".join(filter(None, sentences))
      found.append(blocks.Picture(name, caption, plots.png(figure)))
  return found


def _variants(summary):
  """Plot each way of guiding at the commonest p_uncond and T."""
  fixed = summary_lib.commonest(summary.averages, "p_uncond", "T")
  names, label = (summary.distance, summary.score), _label(fixed)
  curves = variant_curves(summary, fixed)
  figure = len(curves) > 1 and plots.frontier_figure(curves, *names, label)
  return (
    figure,
    f"{summary.distance} over {summary.score} at {label}, one curve per way of "
    "guiding; the numbers are w, or the field that the legend names.",
  )


def _frontier(summary, axis, other):
  """Plot a curve for each value of an axis at the commonest of the other."""
  fixed = summary_lib.commonest(summary.plain, other)
  names, label = (summary.distance, summary.score), _label(fixed)
  chosen = summary_lib.select(summary.plain, **fixed)
  curves = []
  for value in sorted({getattr(result.cell, axis) for result in chosen}):
    at = {axis: value}
    own = summary_lib.select(chosen, **at)
    curves.append(curve(_label(at), own, *names))
  beside, caption = _beside(summary, axis, fixed)
  curves += beside
  # Of a single curve the picture over p_uncond is enough.
  drawn = len(curves) > 1 or axis == "p_uncond"
  return (
    plots.frontier_figure(curves, *names, label) if drawn else None,
    f"{summary.distance} over {summary.score} at {label}, one curve per "
    f"{axis}; the numbers are w.",
    caption,
  )


def _samplers(summary):
  """Plot each sampler and T at the commonest p_uncond, if there are several."""
  fixed = summary_lib.commonest(summary.averages, "p_uncond")
  names, label = (summary.distance, summary.score), _label(fixed)
  curves = sampler_curves(summary, fixed)
  several = len({line.label.split(",")[0] for line in curves}) > 1
  return (
    plots.frontier_figure(curves, *names, label) if several else None,
    f"{summary.distance} over {summary.score} at {label}, one curve per "
    "sampler and T; the numbers are w.",
  )


def sampler_curves(summary, fixed):
  """Return one curve for each sampler, T and grid.

  Args:
    summary: of the sweep.
    fixed: {"p_uncond"} of the cells.
  """
  kinds = collections.defaultdict(list)
  for result in summary_lib.select(summary.averages, **fixed):
    fields = dict(result.cell.fields)
    if fields.keys() <= _OF_SAMPLERS:
      others = [f"{k} {v}" for k, v in fields.items() if k != "sampler"]
      label = f"{result.sampler}, T = {result.cell.T}"
      kinds[", ".join([label, *others])].append(result)
  names = summary.distance, summary.score
  return [curve(label, own, *names) for label, own in kinds.items()]


def _over_w(summary):
  """Plot distance and score of the main curve over w."""
  names, label = (summary.distance, summary.score), _label(summary.main)
  own = summary_lib.select(summary.plain, **summary.main)
  beside, caption = _beside(summary, "T", summary.main)
  beside = [line._replace(label=label) for line in beside]
  real = summary.real["metrics"] if summary.real else {}
  return (
    plots.over_w_figure([curve(label, own, *names), *beside], *names, real),
    f"{summary.distance} and {summary.score} over w at {label}.",
    caption,
    _REAL if {*names} & {*real} else "",
  )


def _beside(summary, axis, fixed):
  """Return published curves, and the sentence that explains them."""
  published = summary.beside
  names = summary.distance, summary.score
  curves = published.curves(axis, fixed, *names) if published else []
  caption = _BESIDE.format(published.source, published.title) if curves else ""
  return curves, caption


def _label(values):
  return ", ".join(f"{k} = {v:g}" for k, v in values.items())


def curve(label, results, distance, score):
  """Return the `plots.Curve` of results that differ in their strength."""
  results = sorted(results, key=lambda r: summary_lib.strength(r.cell))
  names = score, distance
  points = [
    [summary_lib.strength(r.cell), *map(r.metric, names)] for r in results
  ]
  spread = [[0, *(r.spread.get(name, 0) for name in names)] for r in results]
  return plots.Curve(label, *np.array([points, spread], float))


def variant_curves(summary, fixed):
  """Return one curve for each way of guiding that has several cells.

  The configured guidance comes first. The curve of a temperature, at w = 0,
  includes the plain cell.

  Args:
    summary: of the sweep.
    fixed: {"p_uncond", "T"} of the cells.
  """
  kinds = collections.defaultdict(list)
  for result in summary_lib.select(summary.averages, **fixed):
    kinds[summary_lib.family(result.cell)].append(result)
  curves = []
  for kind, own in sorted(kinds.items()):
    label = kind or own[0].guidance
    if kind in summary_lib.TEMPERATURES:
      label = f"{kind} at w = 0"
      fields = ((kind, summary_lib.TEMPERATURES[kind]),)
      own += [
        dataclasses.replace(r, cell=r.cell._replace(fields=fields))
        for r in kinds.get("", ())
        if r.cell.w == 0
      ]
    curves.append(curve(label, own, summary.distance, summary.score))
  return [line for line in curves if len(line.points) > 1]


def with_grids(summary):
  """Return results of the main curve whose samples to show.

  At most eight, spread evenly over w, and the best one.
  """
  if not summary.averages:
    return []
  results = summary_lib.select(summary.plain, **summary.main)
  results = [r for r in results if r.picture("grid.png")]
  shown = len(results) if len(results) <= _MAX_GRIDS else _MAX_GRIDS - 1
  spread = np.linspace(0, len(results) - 1, shown).round()
  return [
    r for i, r in enumerate(results) if i in spread or r.cell in summary.best
  ]


def _samples(summary):
  results = with_grids(summary)
  titles = [f"w={plots.both(result.cell.w)}" for result in results]
  images = [_image(result.picture("grid.png")) for result in results]
  columns = min(4, len(results))
  return plots.panels_figure(images, titles, columns) if images else None


def _neighbours(summary):
  """Show the samples of the best cell over their nearest real images."""
  results = summary_lib.select(summary.plain, **summary.main)
  best = [
    r.picture("neighbours.png") for r in results if r.cell in summary.best
  ]
  images = [_image(path) for path in best if path]
  titles = ["samples, nearest training, held-out"]
  return plots.panels_figure(images[:1], titles, 1) if images else None


def _image(path):
  return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
