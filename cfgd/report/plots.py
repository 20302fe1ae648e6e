"""Curves over guidance strength, and panels of images, with matplotlib.

A `Curve` is all that a plot knows: another way of guiding, or the numbers of
another paper, are one more curve.
"""

import io
import itertools
import math
import textwrap
from typing import NamedTuple

from matplotlib import figure
from matplotlib import ticker
import numpy as np

REAL = "real images"
_DPI = 160
# Okabe & Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_FOREST = (
  "ratio, with its interval; to the right of the line, or within the band, is "
  "what the claim says"
)
# By the start of a metric's name: what it is, and which way is good.
METRICS = {
  "fid": ("Frechet Inception distance", "lower is better"),
  "fd_": ("Frechet distance", "lower is better"),
  "is_": ("Inception-style score", "higher is better"),
  "is": ("Inception score", "higher is better"),
}
_REAL_STAR = {"color": "black", "marker": "*", "linestyle": "none", "ms": 11}
# An axis is logarithmic if its values span a larger ratio.
_LOG_RATIO = 5


class Curve(NamedTuple):
  """A line in a plot.

  Attributes:
    label: of the legend.
    points: [N, 3] of strength (w, unless the label names another one), score
      and distance, in order of strength.
    spread: [N, 3] standard deviations of the points over seeds; None for none.
    source: whose numbers these are; "" for ours. Others are dashed and hollow,
      in the colour of our curve of the same label.
  """

  label: str
  points: np.ndarray
  spread: np.ndarray | None = None
  source: str = ""


class Effect(NamedTuple):
  """A row of a forest plot: a ratio that a claim is about.

  Attributes:
    text: the claim.
    low, middle, high: the estimate within its interval, possibly infinite.
    outer: a wider interval, (low, high); None for none.
    neutral: ratio that neither confirms nor contradicts the claim.
    alike: (least, most) ratios that count as alike, if that is claimed.
    verdict: in words.
    colour: of the verdict.
  """

  text: str
  low: float
  middle: float
  high: float
  outer: tuple[float, float] | None
  neutral: float
  alike: tuple[float, float] | None
  verdict: str
  colour: str


def frontier_figure(curves, distance, score, title, real=None):
  """Plot distance over score; None if no point is finite.

  The metrics of real images, {name: value}, become a star.
  """
  return _draw([(1, 2)], curves, distance, score, title, real)


def over_w_figure(curves, distance, score, real):
  """Plot distance and score over w; None if no point is finite.

  The metrics of real images, {name: value}, become dotted lines.
  """
  return _draw([(0, 2), (0, 1)], curves, distance, score, "", real)


def forest_figure(groups):
  """Draw estimates and intervals of ratios on one logarithmic axis.

  Args:
    groups: {title: [Effect]}; those without a finite estimate are named alone.
  """
  groups = {title: rows for title, rows in groups.items() if rows}
  lines = sum(len(rows) + 1 for rows in groups.values())
  fig = figure.Figure((9.0, 0.34 * lines + 0.6), layout="constrained")
  ax = fig.add_subplot()
  low, high = _forest_limits([k for rows in groups.values() for k in rows])
  ax.axvline(1, color="#444", linewidth=1)
  at, ticks = 0, []
  for title, rows in groups.items():
    ticks.append((at, title, "bold"))
    for row in rows:
      at += 1
      ticks.append((at, "\n".join(textwrap.wrap(row.text, 58)), "normal"))
      _draw_effect(ax, at, row, low, high)
    at += 1
  ax.set_xscale("log")
  ax.set(xlim=(low, high), ylim=(at - 0.4, -0.6), xlabel=_FOREST)
  ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  ax.xaxis.set_major_formatter("{x:g}")
  ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  ax.set_yticks([k for k, *_ in ticks], [text for _, text, _ in ticks])
  for label, (*_, weight) in zip(ax.get_yticklabels(), ticks, strict=True):
    label.set(fontsize=9, fontweight=weight)
  ax.tick_params(axis="y", length=0)
  ax.grid(axis="x", color="#e8e8e8", linewidth=0.6)
  ax.set_axisbelow(True)
  ax.spines[["top", "right", "left"]].set_visible(False)
  return fig


def _forest_limits(rows):
  """Return limits that show all estimates and what is finite of intervals."""
  values = np.array([[k.low, k.middle, k.high] for k in rows])
  values = values[np.isfinite(values).all(axis=1) & (values > 0).all(axis=1)]
  middles = values[:, 1] if len(values) else np.ones(1)
  least = max(values[:, 0].min(initial=1.0), middles.min() / 4)
  most = min(values[:, 2].max(initial=1.0), middles.max() * 4)
  return min(least, 0.5) / 1.15, max(most, 2.0) * 1.15


def _draw_effect(ax, at, row, low, high):
  """Draw a row: the range that is alike, the interval, the estimate, a word."""
  ax.annotate(
    row.verdict,
    (1.03, at),
    xycoords=ax.get_yaxis_transform(),
    color=row.colour,
    fontsize=9,
    fontweight="bold",
    va="center",
    annotation_clip=False,
  )
  if row.alike:
    style = {"color": "#0072B2", "alpha": 0.15, "linewidth": 0}
    ax.fill_betweenx([at - 0.4, at + 0.4], *row.alike, **style)
  elif row.neutral != 1:
    ax.plot([row.neutral] * 2, [at - 0.4, at + 0.4], color="#444", linewidth=1)
  if not math.isfinite(row.middle):
    return
  intervals = {3: (row.low, row.high), 1: row.outer}
  for width, interval in intervals.items():
    if interval:
      ends = np.clip(interval, low, high)
      ax.plot(ends, [at, at], color=row.colour, linewidth=width)
      for end, value, mark in zip(ends, interval, "<>", strict=True):
        if end != value:  # goes on beyond the edge
          ax.plot(end, at, mark, color=row.colour, ms=5, clip_on=False)
  ax.plot(row.middle, at, "o", color=row.colour, ms=6)


def strip_figure(rows, titles):
  """Set wide images (uint8 arrays of one size) under each other, enlarged."""
  height = 4.4 * rows[0].shape[0] / rows[0].shape[1] + 0.1
  fig = figure.Figure((5.0, len(rows) * height), layout="constrained")
  for ax, row, title in zip(
    fig.subplots(len(rows), 1, squeeze=False).flat, rows, titles, strict=True
  ):
    ax.imshow(row, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10)
    ax.spines[:].set_visible(False)
  return fig


def panels_figure(images, titles, columns):
  """Set images of one size (PIL's, or uint8 arrays) in a grid with titles."""
  images = [np.asarray(image) for image in images]
  rows = -(-len(images) // columns)
  width = max(2.6, images[0].shape[1] / _DPI)
  height = width * images[0].shape[0] / images[0].shape[1] + 0.35
  fig = figure.Figure((columns * width, rows * height), layout="constrained")
  for ax in fig.subplots(rows, columns, squeeze=False).flat:
    ax.set_axis_off()
  for ax, image, title in zip(fig.axes, images, titles, strict=False):
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=10)
  return fig


def explained(name):
  """Return a metric's name with what it is, for an axis."""
  known = [
    ", ".join(k) for start, k in METRICS.items() if name.startswith(start)
  ]
  return f"{name}: {known[0]}" if known else name


def both(w):
  """Name w in the paper's convention and as the scale s = 1 + w."""
  return f"{w:g} (s={1 + w:g})"


def png(fig):
  """Return a figure as PNG, the same bytes for the same figure."""
  out = io.BytesIO()
  fig.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
  return out.getvalue()


def _name(line):
  return ", ".join(filter(None, [line.source, line.label]))


def _draw(panels, curves, distance, score, title, real=None):
  """Draw all curves in each panel, given as two columns of their points."""
  fig = figure.Figure((5.0, 4.2), layout="constrained")
  names = "guidance strength w (s = 1 + w)", score, distance
  real = {names.index(k): v for k, v in (real or {}).items() if k in names}
  for i, (x, y) in enumerate(panels):
    ax = fig.add_subplot(len(panels), 1, i + 1)
    xlabel = explained(names[x]) if i == len(panels) - 1 else None
    drawn, heights = _draw_curves(ax, curves, x, y, xlabel)
    if not heights:
      return None
    height = real.get(y, math.nan)
    if math.isfinite(height) and not x:
      style = {"color": "black", "linestyle": ":", "linewidth": 1}
      ax.axhline(height, label=REAL, **style)
      heights.append(height)
    elif math.isfinite(height + real.get(x, math.nan)):
      ax.plot(real[x], height, label=REAL, **_REAL_STAR)
      heights.append(height)
    if min(heights) > 0 and max(heights) > _LOG_RATIO * min(heights):
      ax.set_yscale("log")
      ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_ylabel(_wrapped(names[y], len(panels)))
    ax.margins(0.1)
    ax.grid(color="#e8e8e8", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if i == 0:
      _legend(fig, title, curves)
    if x:
      _annotate(ax, drawn)
  return fig


def _wrapped(name, panels):
  """Return a metric's name as a vertical axis' label, shorter than the axis."""
  text = explained(name).replace(", ", ",\n")
  return text if panels == 1 else text.replace(": ", ":\n")


def _draw_curves(ax, curves, x, y, xlabel):
  """Draw the finite points; name the others below the axis.

  Returns:
    (strengths of the points of each curve, heights of all points).
  """
  labels = list(dict.fromkeys(line.label for line in curves))
  lost, drawn, heights = [], [], []
  for line in curves:
    good = np.isfinite(line.points[:, [x, y]]).all(axis=1)
    lost += [f"{line.label} w={w:g}" for w in line.points[~good, 0]]
    at = line.points[good][:, [x, y]].T
    k = labels.index(line.label)
    style = {"color": _COLOURS[k % 6], "marker": "osD^vP"[k % 6], "ms": 4}
    if line.source:
      style |= {"linestyle": "--", "linewidth": 1, "markerfacecolor": "white"}
    ax.plot(*at, label=_name(line), **style)
    if line.spread is not None and line.spread[good].any():
      across, along = line.spread[good][:, [x, y]].T
      style = {"ecolor": style["color"], "elinewidth": 0.8, "fmt": "none"}
      ax.errorbar(*at, xerr=across, yerr=along, **style)
    drawn.append(line.points[good, 0])
    heights += [*line.points[good, y]]
  below = [xlabel] if xlabel else []
  if lost:
    below += textwrap.wrap(f"not drawn, not finite: {', '.join(lost)}", 56)
  ax.set(xlabel="\n".join(below))
  return drawn, heights


def _legend(fig, title, curves):
  longest = max(len(_name(line)) for line in curves)
  columns = max(1, 350 // (5 * longest + 30))  # Both in points, at size 9.
  if any(line.source for line in curves):
    columns = min(2, columns)
  style = {"fontsize": 9, "handlelength": 1.5, "columnspacing": 1.2}
  style |= {"ncols": columns, "frameon": False, "alignment": "left"}
  fig.legend(loc="outside upper left", title=title or None, **style)


def _annotate(ax, strengths):
  """Write w beside the points of each line where there is room."""
  ax.figure.draw_without_rendering()  # Only now is the layout known.
  scale = 72 / ax.figure.dpi
  paths = [ax.transData.transform(k.get_xydata()) * scale for k in ax.lines]
  steps = [np.linspace(*k, 30) for p in paths for k in itertools.pairwise(p)]
  taken = np.concatenate([*paths, *steps])
  turns = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
  turns = np.concatenate([turns, np.eye(2), -np.eye(2)])
  for line, path, ws in zip(ax.lines, paths, strengths, strict=False):
    # The ends of a curve first: on a crowded plot they matter most.
    for i in sorted(range(len(ws)), key=lambda i: 0 < i < len(ws) - 1):
      half = np.array([2.1 * len(f"{ws[i]:g}") + 1, 4])
      for gap, turn in itertools.product((3, 6), turns):
        offset = turn * (half + gap)
        if (abs(taken - path[i] - offset) > half + 1).any(axis=1).all():
          break
      else:
        continue
      box = itertools.product((-1, 0, 1), repeat=2)
      taken = np.concatenate([taken, path[i] + offset + half * list(box)])
      style = {"fontsize": 8, "ha": "center", "va": "center"}
      where = {"xytext": offset, "textcoords": "offset points"}
      at = line.get_xydata()[i]
      ax.annotate(f"{ws[i]:g}", at, color=line.get_color(), **where, **style)
