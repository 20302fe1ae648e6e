"""What a sweep found, as results.csv, report.md and a self-contained HTML page.

The plots have the form of Figures 4 and 5 of Ho & Salimans
(arXiv:2207.12598), and where a sweep names a table of theirs, its printed
numbers stand beside ours. A `Curve` is all that a plot knows: another kind of
guidance, or the printed numbers, are one more curve.
"""

import base64
import collections
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import html
import io
import itertools
import json
import math
import re
import textwrap
from typing import Any
from typing import NamedTuple

from etils import epath
from matplotlib import figure
from matplotlib import ticker
import numpy as np
from PIL import Image

from cfgd import files
from cfgd.sweep import paper as paper_lib

Cell = Mapping[str, Any]

_DPI = 160
_MAX_GRIDS = 8
# Okabe & Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_COLUMNS = (
  *("id", "p_uncond", "T", "variant", "w", "s"),
  *("sampler", "v", "num_samples"),
)
# Sampling fields whose values make a curve of their own at w = 0, and the value
# of the model left alone.
_STRENGTHS = {"score_scale": 1.0, "noise_scale": 1.0}
_STYLE = """
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem;
  font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p { max-width: 44rem; margin: .6rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto;
  font-size: .875rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .2rem 1.1em .2rem 0; text-align: right; }
tbody { border-top: 1px solid #bbb; }
.curves, .samples { display: grid; gap: 1.5rem; grid-template-columns:
  repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.samples { grid-template-columns:
  repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; max-width: 40rem; }
figcaption { font-size: .875rem; margin-top: .4rem; }
img { display: block; width: 100%; height: auto; }
.samples img { image-rendering: pixelated; }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{}</style></head>
<body>
{}
</body></html>
"""
_BOLD = "Bold: the lowest {} of each (p_uncond, T, variant)."
_SAMPLES = "The same seeds and labels for every w."
_BESIDE = "Dashed, hollow: the paper's {}."
_BESIDE_TABLE = (
  "The paper's columns are its {} at the same settings; in brackets, by how "
  "much ours is above that."
)


class Curve(NamedTuple):
  """One line of a plot: rows of (w, score, distance) in order of w.

  In place of w there may be another strength that the label names. Printed is
  what the paper says about the settings of the label, not ours.
  """

  label: str
  points: np.ndarray
  printed: bool = False


def table_rows(
  cells: Sequence[Cell],
  planned: Sequence[Cell],
  distance: str,
  beside: paper_lib.Table | None = None,
) -> list[dict[str, Any]]:
  """Merge finished and planned cells by p_uncond, T, variant, and w.

  Args:
    cells: finished cells; each replaces the planned one of the same id.
    planned: what the sweep means to run.
    distance: the metric whose lowest finite value is the best.
    beside: the paper's table to compare with.

  Returns:
    The rows. Only finished ones have "metrics"; "best" says which one is the
    best of its (p_uncond, T, variant), "printed" what the paper has for it.
  """
  merged = {c["id"]: c for c in [*planned, *cells]}.values()
  rows = [{**c, "best": False, "printed": _printed(c, beside)} for c in merged]
  rows.sort(key=lambda c: (*_group(c), _strength(c)))
  for _, group in itertools.groupby(rows, _group):
    finite = [r for r in group if math.isfinite(_metric(r, distance))]
    if finite:
      min(finite, key=lambda r: _metric(r, distance))["best"] = True
  return rows


def _printed(cell, beside):
  row = beside and paper_lib.find(beside.rows, cell)
  return row.metrics if row else {}


def curve(
  label: str, cells: Sequence[Cell], distance: str, score: str
) -> Curve:
  """Turn cells that differ only in w into a curve."""
  return _curve_over(lambda c: c["w"], label, cells, distance, score)


def _curve_over(strength, label, cells, distance, score):
  rows = [(strength(c), _metric(c, score), _metric(c, distance)) for c in cells]
  return Curve(label, np.array(sorted(rows), float).reshape(-1, 3))


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
  families = collections.defaultdict(list)
  for cell in cells:
    families[_family(cell)].append(cell)
  neutral = [c for c in families[""] if c["w"] == 0]
  curves = []
  for family, own in sorted(families.items()):
    if family in _STRENGTHS:
      label, start = f"{family} at w = 0", _STRENGTHS[family]
      own = [*({**c, "fields": {family: start}} for c in neutral), *own]
    else:
      guidance = own[0].get("guidance", "as configured") if own else ""
      label = family or guidance
    curves.append(_curve_over(_strength, label, own, distance, score))
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
  curves: Sequence[Curve], distance: str, score: str, title: str
) -> figure.Figure | None:
  """Draw distance and score over w, or return None if no point is finite."""
  fig = figure.Figure((5.0, 4.2), layout="constrained")
  return _draw(fig, [(0, 2), (0, 1)], curves, distance, score, title)


def samples_figure(cells: Sequence[Cell]) -> figure.Figure:
  """Set the sample grids of cells side by side, each under its w."""
  images = [Image.open(io.BytesIO(_grid(c))).convert("RGB") for c in cells]
  titles = [f"w={both(cell['w'])}" for cell in cells]
  return panels_figure(images, titles, min(4, len(cells)))


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


def write(
  directory: epath.PathLike,
  cells: Sequence[Cell],
  planned: Sequence[Cell],
  settings: Mapping[str, Any],
  *,
  distance: str,
  score: str,
  title: str,
  notes: Sequence[str],
  paper: str = "",
) -> epath.Path:
  """Write results.csv, report.md with its figures/, and report.html.

  Args:
    directory: where to write them.
    cells: finished cells, with metrics, grid_png (path or None), provenance.
    planned: id, p_uncond, T and w of every cell that is to run.
    settings: the configuration, shown in full.
    distance: name of the metric that is better when lower.
    score: name of the metric that is better when higher.
    title: the headline.
    notes: paragraphs under it: what this is and is not.
    paper: name of the paper's table to compare with; "" for none.

  Returns:
    The path of report.html.
  """
  beside = paper_lib.table(paper)
  rows = table_rows(cells, planned, distance, beside)
  done = [r for r in rows if "metrics" in r]
  names = list(dict.fromkeys(k for c in cells for k in c["metrics"]))
  table = rows, names or [distance, score], distance
  compared = [_BESIDE_TABLE.format(beside.title)] if beside else []
  head = title, [*notes, _progress(rows), *compared]
  grids = _grid_cells(done)
  plots = _plots(done, grids, distance, score, beside)
  page = _html(head, table, plots, grids, score, _settings(settings, done))
  out = {f"figures/{name}.png": png for name, (_, png) in plots.items()}
  out |= {"results.csv": _csv(done, names), "report.html": page}
  out["report.md"] = _markdown(head, table, plots)
  for name, data in out.items():
    files.write_atomic(epath.Path(directory) / name, data)
  return epath.Path(directory) / "report.html"


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


def _family(cell):
  """Names what cells share that differ in nothing but a strength."""
  return _temperature(cell) or cell.get("variant", "")


def _strength(cell):
  name = _temperature(cell)
  return cell["fields"][name] if name else cell["w"]


def _group(cell):
  return cell["p_uncond"], cell["T"], _family(cell)


def _metric(cell, name):
  return cell.get("metrics", {}).get(name, math.nan)


def _number(value):
  if isinstance(value, str | int | None):
    return "" if value is None else str(value)
  plain = value == 0 or 1e-3 <= abs(value) < 1e6 or not math.isfinite(value)
  return f"{value:.3f}" if plain else f"{value:.2e}"


def _progress(rows):
  """Says how much of the sweep is there and what every cell shares."""
  done = [r for r in rows if "metrics" in r]
  kinds = {
    f"{r['sampler']} sampler, v={r['v']}, {r['num_samples']} samples per cell"
    for r in done
  }
  return "; ".join([f"{len(done)} of {len(rows)} cells", *sorted(kinds)]) + "."


def _commonest(cells, *axes):
  """Finds the values most cells share; of equals low p_uncond, then high T."""
  cells = sorted(cells, key=lambda c: (c["p_uncond"], -c["T"]))
  counts = collections.Counter(tuple(c[a] for a in axes) for c in cells)
  return dict(zip(axes, counts.most_common(1)[0][0], strict=True))


def _select(cells, values):
  return [c for c in cells if all(c.get(k, "") == v for k, v in values.items())]


def _label(values):
  return ", ".join(f"{k} = {v:g}" for k, v in values.items())


def _plots(cells, grids, distance, score, beside):
  """Draws what can be drawn: file name to caption and PNG bytes."""
  if not cells:
    return {}
  names = distance, score
  drawn = {}
  lines = variant_curves(
    _select(cells, _commonest(cells, "p_uncond", "T")), *names
  )
  if len(lines) > 1:
    fixed = _commonest(cells, "p_uncond", "T")
    drawn["frontier_variant"] = (
      f"{distance} over {score}, one curve per way of guiding, "
      f"{_label(fixed)}; the numbers are w, or the field that the label names.",
      frontier_figure(lines, *names, title=_label(fixed)),
    )
  cells = _select(cells, {"variant": ""}) or cells
  for axis, other, number in (("p_uncond", "T", 4), ("T", "p_uncond", 5)):
    fixed = _commonest(cells, other)
    chosen = _select(cells, fixed)
    values = [{axis: v} for v in sorted({c[axis] for c in chosen})]
    lines = [curve(_label(v), _select(chosen, v), *names) for v in values]
    theirs = printed_curves(beside, axis, fixed, *names)
    drawn[f"frontier_{axis}"] = (
      f"{distance} over {score}, one curve per {axis}, {_label(fixed)}; the "
      f"numbers are w. The form of the paper's Figure {number}."
      f"{_said_of(theirs, beside)}",
      frontier_figure([*lines, *theirs], *names, title=_label(fixed)),
    )
  main = _commonest(cells, "p_uncond", "T")
  line = curve(_label(main), _select(cells, main), *names)
  theirs = [
    k._replace(label=line.label)
    for k in printed_curves(beside, "T", main, *names)
  ]
  drawn["over_w"] = (
    f"{distance} and {score} over w, {line.label}.{_said_of(theirs, beside)}",
    over_w_figure([line, *theirs], *names, title=""),
  )
  drawn["samples"] = _SAMPLES, samples_figure(grids) if grids else None
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


def _draw(fig, panels, curves, distance, score, title):
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
      drawn.append(points[good, 0])
      heights += [*points[good, y]]
    if not heights:
      return None
    if min(heights) > 0 and max(heights) > 20 * min(heights):
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


def _grid(cell):
  return epath.Path(cell["grid_png"]).read_bytes()


def _grid_cells(cells):
  """Picks cells of the main curve whose grids to show: spread, and the best."""
  if not cells:
    return []
  cells = _select(cells, {"variant": ""}) or cells
  main = _select(cells, _commonest(cells, "p_uncond", "T"))
  paths = [c["grid_png"] and epath.Path(c["grid_png"]) for c in main]
  main = [c for c, p in zip(main, paths, strict=True) if p and p.exists()]
  shown = len(main) if len(main) <= _MAX_GRIDS else _MAX_GRIDS - 1
  spread = np.linspace(0, len(main) - 1, shown).round()
  return [c for i, c in enumerate(main) if i in spread or c["best"]]


def _csv(cells, names):
  out = io.StringIO()
  table = csv.writer(out, lineterminator="\n")
  theirs = [f"paper_{k}" for k in _printed_names(cells)]
  columns = [*_COLUMNS, "seconds", *names, *theirs]
  table.writerow(columns)
  for cell in cells:
    printed = {f"paper_{k}": v for k, v in cell["printed"].items()}
    flat = {**cell, "s": 1 + cell["w"], **cell["metrics"], **printed}
    table.writerow([flat.get(k) for k in columns])
  return out.getvalue()


def _has_variants(rows):
  return any(row.get("variant") for row in rows)


def _printed_names(rows):
  return list(dict.fromkeys(k for row in rows for k in row["printed"]))


def _header(rows, names):
  variant = ["variant"] if _has_variants(rows) else []
  theirs = [f"paper's {k}" for k in _printed_names(rows)]
  return ["p_uncond", "T", *variant, "w", *names, *theirs, "seconds"]


def _deviation(row, name):
  """Writes a printed number, and how much ours is above it."""
  if name not in row["printed"]:
    return ""
  text, ours = f"{row['printed'][name]:.2f}", _metric(row, name)
  if math.isfinite(ours):
    text += f" ({ours - row['printed'][name]:+.2f})"
  return text


def _texts(row, names, distance, strong, rows):
  """Writes a row of the table; `strong` is the template for a best value."""
  variant = [row.get("variant", "")] if _has_variants(rows) else []
  first = [f"{row['p_uncond']:g}", f"{row['T']}", *map(html.escape, variant)]
  first += [both(row["w"])]
  theirs = [_deviation(row, k) for k in _printed_names(rows)]
  if "metrics" not in row:
    return [*first, "not run", *[""] * (len(names) - 1), *theirs, ""]
  values = {k: html.escape(_number(row["metrics"].get(k))) for k in names}
  if row["best"]:
    values[distance] = strong.format(values[distance])
  return [*first, *values.values(), *theirs, f"{row['seconds']:.1f}"]


def _markdown(head, table, pictures):
  def plain(text):
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))

  (title, notes), (rows, names, distance) = head, table
  header = _header(rows, names)
  lines = [map(plain, header), ["---:"] * len(header)]
  lines += [_texts(row, names, distance, "**{}**", rows) for row in rows]
  blocks = [f"# {plain(title)}", *map(plain, notes)]
  blocks += ["\n".join(f"| {' | '.join(k)} |" for k in lines)]
  blocks += [plain(_BOLD.format(distance))]
  for name, (caption, _) in pictures.items():
    blocks += [f"![{name}](figures/{name}.png)", plain(caption)]
  blocks += ["Settings and provenance are in [report.html](report.html)."]
  return "\n\n".join(blocks) + "\n"


def _tag(name, text):
  return f"<{name}>{html.escape(str(text))}</{name}>"


def _table(rows, names, distance):
  head = "".join(_tag("th", k) for k in _header(rows, names))
  out = ["<table>", f"<thead><tr>{head}</tr></thead>"]
  for _, group in itertools.groupby(rows, _group):
    out.append("<tbody>")
    for row in group:
      texts = _texts(row, names, distance, "<strong>{}</strong>", rows)
      out.append(f"<tr>{''.join(f'<td>{k}</td>' for k in texts)}</tr>")
    out.append("</tbody>")
  return "\n".join([*out, "</table>", _tag("p", _BOLD.format(distance))])


def _figure(caption, png):
  source = "data:image/png;base64," + base64.b64encode(png).decode()
  image = f'<img alt="{html.escape(caption)}" src="{source}">'
  return f"<figure>{image}{_tag('figcaption', caption)}</figure>"


def _html(head, table, plots, grids, score, settings):
  title, notes = head
  out = [_tag("h1", title), *(_tag("p", k) for k in notes), _table(*table)]
  curves = [_figure(*v) for k, v in plots.items() if k != "samples"]
  if curves:
    out += ["<h2>Curves</h2>", '<div class="curves">', *curves, "</div>"]
  if grids:
    out += ["<h2>Samples</h2>", _tag("p", _SAMPLES), '<div class="samples">']
    for cell in grids:
      values = [f"{k} {_number(_metric(cell, k))}" for k in (table[2], score)]
      caption = ", ".join([f"w={both(cell['w'])}", *values])
      out.append(_figure(caption, _grid(cell)))
    out.append("</div>")
  body = "\n".join([*out, settings])
  return _PAGE.format(html.escape(title), _STYLE, body)


def _settings(settings, cells):
  """Shows the settings, then what all cells share and what sets them apart."""
  origins = {
    c["id"]: {k: json.dumps(v, default=str) for k, v in c["provenance"].items()}
    for c in cells
  }
  shared = set.intersection(*(set(o.items()) for o in origins.values() or [{}]))
  lines = [f"{k}: {v}" for k, v in sorted(shared)]
  for name, origin in origins.items():
    own = [f"{k}: {v}" for k, v in origin.items() if (k, v) not in shared]
    lines += [f"\n{name}  {', '.join(own)}"] if own else []
  texts = {
    "Settings": json.dumps(settings, indent=2, default=str),
    "Provenance": "\n".join(lines),
  }
  out = ["<h2>Settings and provenance</h2>"]
  for name, text in texts.items():
    out += ["<details>", _tag("summary", name), _tag("pre", text), "</details>"]
  return "\n".join(out)
