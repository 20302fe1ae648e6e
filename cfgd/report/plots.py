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


def frontier_figure(curves, distance, score, title):
  """Plot distance over score; None if no point is finite."""
  return _draw([(1, 2)], curves, distance, score, title)


def over_w_figure(curves, distance, score, real):
  """Plot distance and score over w; None if no point is finite.

  The metrics of real images, {name: value}, become dotted lines.
  """
  return _draw([(0, 2), (0, 1)], curves, distance, score, "", real)


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
  for i, (x, y) in enumerate(panels):
    ax = fig.add_subplot(len(panels), 1, i + 1)
    xlabel = names[x] if i == len(panels) - 1 else None
    drawn, heights = _draw_curves(ax, curves, x, y, xlabel)
    if not heights:
      return None
    height = (real or {}).get(names[y], math.nan)
    if math.isfinite(height):
      style = {"color": "black", "linestyle": ":", "linewidth": 1}
      ax.axhline(height, label=REAL, **style)
      heights.append(height)
    if min(heights) > 0 and max(heights) > _LOG_RATIO * min(heights):
      ax.set_yscale("log")
      ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set(ylabel=names[y])
    ax.margins(0.1)
    ax.grid(color="#e8e8e8", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if i == 0:
      _legend(fig, title, curves)
    if x:
      _annotate(ax, drawn)
  return fig


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
  for line, path, ws in zip(ax.lines, paths, strengths, strict=True):
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
