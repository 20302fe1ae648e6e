"""Curves and pictures of a sweep, in the form of the paper's Figures 4 and 5.

A `Curve` is all that a plot knows: another kind of guidance, or the numbers
that Ho & Salimans (arXiv:2207.12598) printed, are one more curve.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import io
import itertools
import math
import textwrap
from typing import Any
from typing import NamedTuple

from etils import epath
from matplotlib import figure
from matplotlib import ticker
import numpy as np
from PIL import Image

from cfgd.paper import printed as paper_lib

Cell = Mapping[str, Any]


_DPI = 160

# Okabe & Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

# Sampling fields whose values make a curve of their own at w = 0, and the value
# of the model left alone.
_STRENGTHS = {"score_scale": 1.0, "noise_scale": 1.0}

SAMPLES = "The same seeds and labels for every w."
NEIGHBOURS = (
  "Samples of the best cell, a class each; below each the nearest training "
  "image, and the nearest held-out image, by squared difference."
)

_BARS = "Bars: one standard deviation over the seeds, to either side."
_REAL = "real images"
_REAL_CAPTION = "Dotted: held-out real images."
# Of the highest to the lowest value, from which on an axis is logarithmic.
_LOG_RATIO = 5
_BESIDE = "Dashed, hollow: the paper's {}."


class Curve(NamedTuple):
  """One line of a plot: rows of (w, score, distance) in order of w.

  In place of w there may be another strength that the label names. Printed is
  what the paper says about the settings of the label, not ours. The spread is
  the standard deviation of the points over seeds, in the same columns; 0 where
  there is one seed.
  """

  label: str
  points: np.ndarray
  printed: bool = False
  spread: np.ndarray | None = None


def curve(
  label: str, cells: Sequence[Cell], distance: str, score: str
) -> Curve:
  """Turn cells that differ only in w into a curve."""
  return _curve_over(lambda c: c["w"], label, cells, distance, score)


def _curve_over(strength, label, cells, distance, score):
  cells = sorted(cells, key=strength)
  rows = [(strength(c), metric(c, score), metric(c, distance)) for c in cells]
  spreads = [c.get("spread", {}) for c in cells]
  rows += [(0, s.get(score, 0), s.get(distance, 0)) for s in spreads]
  points, spread = np.array(rows, float).reshape(2, -1, 3)
  return Curve(label, points, spread=spread)


def variant_curves(
  cells: Sequence[Cell], distance: str, score: str
) -> list[Curve]:
  """Make one curve for each way of guiding, over its own strength.

  Args:
    cells: of one p_uncond and T.
    distance: see `write`.
    score: see `write`.

  Returns:
    Curves over w, the configured guidance first, and one over each temperature
    that cells have at w = 0.
  """
  kinds = collections.defaultdict(list)
  for cell in cells:
    kinds[family(cell)].append(cell)
  neutral = [c for c in kinds[""] if c["w"] == 0]
  curves = []
  for kind, own in sorted(kinds.items()):
    if kind in _STRENGTHS:
      label, start = f"{kind} at w = 0", _STRENGTHS[kind]
      own = [*({**c, "fields": {kind: start}} for c in neutral), *own]
    else:
      guidance = own[0].get("guidance", "as configured") if own else ""
      label = kind or guidance
    curves.append(_curve_over(strength, label, own, distance, score))
  return [c for c in curves if len(c.points)]


def printed_curves(
  beside: paper_lib.Table | None,
  axis: str,
  fixed: Mapping[str, Any],
  distance: str,
  score: str,
) -> list[Curve]:
  """Make one curve of the paper's numbers for each value of an axis.

  Args:
    beside: the paper's table, or None for none.
    axis: p_uncond or T.
    fixed: values of the other axes; what the paper does not state agrees.
    distance: see `write`.
    score: see `write`.
  """
  lines = collections.defaultdict(list)
  for row in beside.rows if beside else ():
    at = row._asdict()
    agrees = all(at[k] in (None, v) for k, v in fixed.items())
    if agrees and at[axis] is not None and {distance, score} <= {*row.metrics}:
      lines[at[axis]].append(at)
  return [
    curve(_label({axis: value}), rows, distance, score)._replace(printed=True)
    for value, rows in sorted(lines.items())
  ]


def frontier_figure(
  curves: Sequence[Curve], distance: str, score: str, title: str
) -> figure.Figure | None:
  """Draw distance over score, or return None if no point is finite."""
  fig = figure.Figure((5.0, 4.2), layout="constrained")
  return _draw(fig, [(1, 2)], curves, distance, score, title)


def over_w_figure(
  curves: Sequence[Curve],
  distance: str,
  score: str,
  title: str,
  real: Mapping[str, float],
) -> figure.Figure | None:
  """Draw distance and score over w, or return None if no point is finite.

  Args:
    curves: the lines.
    distance: see `write`.
    score: see `write`.
    title: of the legend.
    real: metrics of real images, which become dotted lines; {} for none.
  """
  fig = figure.Figure((5.0, 4.2), layout="constrained")
  return _draw(fig, [(0, 2), (0, 1)], curves, distance, score, title, real)


def samples_figure(cells: Sequence[Cell]) -> figure.Figure:
  """Set the sample grids of cells side by side, each under its w."""
  images = [Image.open(io.BytesIO(grid_png(c))).convert("RGB") for c in cells]
  titles = [f"w={both(cell['w'])}" for cell in cells]
  return panels_figure(images, titles, min(4, len(cells)))


def neighbours_figure(cells: Sequence[Cell]) -> figure.Figure | None:
  """Draw a cell's samples over their nearest images; None if there are none."""
  paths = [epath.Path(c["neighbours_png"]) for c in cells if _has_neighbours(c)]
  if not paths:
    return None
  image = Image.open(io.BytesIO(paths[0].read_bytes())).convert("RGB")
  return panels_figure([image], ["samples, nearest training, held-out"], 1)


def _has_neighbours(cell):
  path = cell.get("neighbours_png")
  return path is not None and epath.Path(path).exists()


def panels_figure(
  images: Sequence[Any], titles: Sequence[str], columns: int
) -> figure.Figure:
  """Set images (PIL's, or uint8 arrays) of one size in a grid, with titles."""
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


def both(w: float) -> str:
  """Name w in the paper's convention and as the scale s = 1 + w."""
  return f"{w:g} (s={1 + w:g})"


def png(fig: figure.Figure) -> bytes:
  """Return a figure as PNG, the same bytes for the same figure."""
  out = io.BytesIO()
  fig.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
  return out.getvalue()


def _temperature(cell):
  """Names the temperature that is all that sets a cell at w = 0 apart."""
  names = list(cell.get("fields", {}))
  alone = len(names) == 1 and cell["w"] == 0 and names[0] in _STRENGTHS
  return names[0] if alone else None


def family(cell: Cell) -> str:
  """Names what cells share that differ in nothing but a strength."""
  return _temperature(cell) or cell.get("variant", "")


def strength(cell: Cell) -> float:
  """Return w, or the temperature that is all that sets a cell apart."""
  name = _temperature(cell)
  return cell["fields"][name] if name else cell["w"]


def metric(cell: Cell, name: str) -> float:
  """Return a metric of a cell, nan where it has none."""
  return cell.get("metrics", {}).get(name, math.nan)


def commonest(cells: Sequence[Cell], *axes: str) -> dict[str, Any]:
  """Finds the values most cells share; of equals low p_uncond, then high T."""
  cells = sorted(cells, key=lambda c: (c["p_uncond"], -c["T"]))
  counts = collections.Counter(tuple(c[a] for a in axes) for c in cells)
  return dict(zip(axes, counts.most_common(1)[0][0], strict=True))


def select(cells: Sequence[Cell], values: Mapping[str, Any]) -> list[Cell]:
  """Return the cells that have these values."""
  return [c for c in cells if all(c.get(k, "") == v for k, v in values.items())]


def _label(values):
  return ", ".join(f"{k} = {v:g}" for k, v in values.items())


def draw_all(cells, grids, distance, score, beside, real):
  """Draws what can be drawn: file name to caption and PNG bytes."""
  if not cells:
    return {}
  names = distance, score
  bars = f" {_BARS}" if any(c.get("spread") for c in cells) else ""
  dots = f" {_REAL_CAPTION}" if set(names) & set(real) else ""
  drawn = {}
  lines = variant_curves(
    select(cells, commonest(cells, "p_uncond", "T")), *names
  )
  lines = [line for line in lines if len(line.points) > 1]
  if len(lines) > 1:
    fixed = commonest(cells, "p_uncond", "T")
    drawn["frontier_variant"] = (
      f"{distance} over {score}, one curve per way of guiding, "
      f"{_label(fixed)}; the numbers are w, or the field that the label names."
      f"{bars}",
      frontier_figure(lines, *names, title=_label(fixed)),
    )
  cells = select(cells, {"variant": ""}) or cells
  for axis, other, number in (("p_uncond", "T", 4), ("T", "p_uncond", 5)):
    fixed = commonest(cells, other)
    chosen = select(cells, fixed)
    values = [{axis: v} for v in sorted({c[axis] for c in chosen})]
    lines = [curve(_label(v), select(chosen, v), *names) for v in values]
    theirs = printed_curves(beside, axis, fixed, *names)
    drawn[f"frontier_{axis}"] = (
      f"{distance} over {score}, one curve per {axis}, {_label(fixed)}; the "
      f"numbers are w. The form of the paper's Figure {number}."
      f"{_said_of(theirs, beside)}{bars}",
      frontier_figure([*lines, *theirs], *names, title=_label(fixed)),
    )
  main = commonest(cells, "p_uncond", "T")
  line = curve(_label(main), select(cells, main), *names)
  theirs = [
    k._replace(label=line.label)
    for k in printed_curves(beside, "T", main, *names)
  ]
  drawn["over_w"] = (
    f"{distance} and {score} over w, {line.label}."
    f"{_said_of(theirs, beside)}{bars}{dots}",
    over_w_figure([line, *theirs], *names, title="", real=real),
  )
  drawn["samples"] = SAMPLES, samples_figure(grids) if grids else None
  best = [c for c in select(cells, main) if c["best"]]
  drawn["neighbours"] = NEIGHBOURS, neighbours_figure(best)
  return {k: (text, png(fig)) for k, (text, fig) in drawn.items() if fig}


def _said_of(theirs, beside):
  return f" {_BESIDE.format(beside.title)}" if theirs else ""


def _name(line):
  return f"paper, {line.label}" if line.printed else line.label


def _style(line, labels):
  """Returns how a line looks: what the paper printed in our curve's colour."""
  k = labels.index(line.label)
  style = {"color": _COLOURS[k % 6], "marker": "osD^vP"[k % 6], "ms": 4}
  if line.printed:
    style |= {"linestyle": "--", "linewidth": 1, "markerfacecolor": "white"}
  return style


def _draw(fig, panels, curves, distance, score, title, real=()):
  """Draws all curves in each panel: two columns of their points."""
  names = "guidance strength w (s = 1 + w)", score, distance
  labels = list(dict.fromkeys(line.label for line in curves))
  for i, (x, y) in enumerate(panels):
    ax = fig.add_subplot(len(panels), 1, i + 1)
    lost, drawn, heights = [], [], []
    for line in curves:
      points = line.points
      good = np.isfinite(points[:, [x, y]]).all(axis=1)
      lost += [f"{line.label} w={w:g}" for w in points[~good, 0]]
      style = _style(line, labels)
      ax.plot(*points[good][:, [x, y]].T, label=_name(line), **style)
      if line.spread is not None and line.spread[good].any():
        across, along = line.spread[good][:, [x, y]].T
        style = {"ecolor": style["color"], "elinewidth": 0.8, "fmt": "none"}
        style |= {"xerr": across, "yerr": along}
        ax.errorbar(*points[good][:, [x, y]].T, **style)
      drawn.append(points[good, 0])
      heights += [*points[good, y]]
    if not heights:
      return None
    if names[y] in real and math.isfinite(real[names[y]]):
      style = {"color": "black", "linestyle": ":", "linewidth": 1}
      ax.axhline(real[names[y]], label=_REAL, **style)
      heights.append(real[names[y]])
    if min(heights) > 0 and max(heights) > _LOG_RATIO * min(heights):
      ax.set_yscale("log")
      ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    below = [names[x]] if (x, y) == panels[-1] else []
    if lost:
      below += textwrap.wrap(f"not drawn, not finite: {', '.join(lost)}", 56)
    ax.set(xlabel="\n".join(below), ylabel=names[y])
    ax.margins(0.1)
    ax.grid(color="#e8e8e8", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if i == 0:
      _legend(fig, title, curves)
    if x:
      _annotate(ax, drawn)
  return fig


def _legend(fig, title, curves):
  longest = max(len(_name(line)) for line in curves)
  columns = max(1, 350 // (5 * longest + 30))  # Both in points, at size 9.
  if any(line.printed for line in curves):
    columns = min(2, columns)
  style = {"fontsize": 9, "handlelength": 1.5, "columnspacing": 1.2}
  style |= {"ncols": columns, "frameon": False, "alignment": "left"}
  fig.legend(loc="outside upper left", title=title or None, **style)


def _annotate(ax, strengths):
  """Writes w beside the points of each line, wherever there is room."""
  ax.figure.draw_without_rendering()  # Only now is the layout known.
  scale = 72 / ax.figure.dpi
  paths = [ax.transData.transform(k.get_xydata()) * scale for k in ax.lines]
  steps = [np.linspace(*k, 30) for p in paths for k in itertools.pairwise(p)]
  taken = np.concatenate([*paths, *steps])
  turns = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
  turns = np.concatenate([turns, np.eye(2), -np.eye(2)])
  for line, path, ws in zip(ax.lines, paths, strengths, strict=True):
    # The ends of a curve first: where it is crowded, they say most.
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


def grid_png(cell: Cell) -> bytes:
  """Return the picture of a cell's samples."""
  return epath.Path(cell["grid_png"]).read_bytes()
