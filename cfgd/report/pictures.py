"""The pictures of a report: the curves of a sweep, and its samples."""

import collections
import dataclasses
import io

import numpy as np
from PIL import Image

from cfgd.report import blocks
from cfgd.report import explorer
from cfgd.report import plots
from cfgd.report import summary as summary_lib

# Values of w whose samples stand on top, where there are such cells.
_STRIP = (0.0, 1.0, 4.0)
# Of all pictures of the explorer together, in bytes; the main curve's are shown
# whatever they take.
_MAX_EXPLORED = 6_000_000
# Fields of `sampling` that say by which steps it goes.
_OF_SAMPLERS = {
  *("sampler", "grid", "logsnr_low", "logsnr_high", "rho"),
  *("churn", "churn_low", "churn_high", "v", "v_from"),
}

SAMPLES = "Samples from the same noise and labels at every w."
_STRIP_CAPTION = "The same noise and labels at each w, one image per class."
_NEIGHBOURS = (
  "Samples of the best cell, one per class; below each, the nearest training "
  "image and the nearest held-out image by squared difference."
)
_BARS = "Bars: one standard deviation over the seeds in either direction."
_REAL = "Dotted: held-out real images."
_STAR = "Star: held-out real images."
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
    "strip": (_strip(summary), _STRIP_CAPTION),
    "neighbours": (_neighbours(summary), _NEIGHBOURS),
  }
  found = []
  for name, (figure, *sentences) in drawn.items():
    sentences.insert(1, summary.remarks.get(name))
    if bars and name not in ("strip", "neighbours"):
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
  real = summary.real["metrics"] if summary.real else {}
  # Of a single curve the picture over p_uncond is enough.
  drawn = len(curves) > 1 or axis == "p_uncond"
  return (
    plots.frontier_figure(curves, *names, label, real) if drawn else None,
    f"{summary.distance} over {summary.score} at {label}, one curve per "
    f"{axis}; the numbers are w.",
    caption,
    _STAR if {*names} <= {*real} else "",
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
  own = _main(summary)
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


def explored(summary):
  """Return {label: [(w, text, PNG)]} for `explorer.block`, main curve first."""
  ways = collections.defaultdict(list)
  for result in [*_main(summary), *summary.averages]:
    grid, kind = result.picture("grid.png"), summary_lib.family(result.cell)
    if grid and kind not in summary_lib.TEMPERATURES:
      way = ways[_way(result)]
      if not any(result.cell.w == w for w, *_ in way):
        text = explorer.describe(result, summary.distance, summary.score)
        way.append((result.cell.w, text, grid.read_bytes()))
  shown, size = {}, 0
  for label, points in ways.items():
    size += sum(len(png) for *_, png in points)
    if not shown or (size < _MAX_EXPLORED and len(points) > 1):
      shown[label] = sorted(points, key=lambda point: point[0])
  return shown


def _way(result):
  """Return by what a cell was sampled, all but its w."""
  cell = result.cell
  fields = dict(cell.fields)
  others = [
    f"{name} {value}"
    for name, value in fields.items()
    if name not in ("sampler", "guidance")
  ]
  names = [result.guidance, result.sampler, f"T = {cell.T}"]
  return ", ".join([*names, f"p_uncond = {cell.p_uncond:g}", *others])


def _main(summary):
  if not summary.averages:
    return []
  return summary_lib.select(summary.plain, **summary.main)


def _strip(summary):
  """Show one image per class at no, moderate and strong guidance."""
  found = {r.cell.w: r.picture("grid.png") for r in _main(summary)}
  found = {w: found[w] for w in _STRIP if found.get(w)}
  if len(found) < 2:
    return None
  side = summary.config.data.image_size
  # The first row of the grid, without the gap to the next.
  rows = [np.asarray(_image(path))[:side] for path in found.values()]
  return plots.strip_figure(rows, [f"w = {w:g}" for w in found])


def _neighbours(summary):
  """Show the samples of the best cell over their nearest real images."""
  best = [
    r.picture("neighbours.png")
    for r in _main(summary)
    if r.cell in summary.best
  ]
  images = [_image(path) for path in best if path]
  titles = ["samples, nearest training, held-out"]
  return plots.panels_figure(images[:1], titles, 1) if images else None


def _image(path):
  return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
