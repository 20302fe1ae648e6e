"""The report of a sweep: results.csv, report.md and a self-contained HTML page.

Cells of several seeds are one row and one point, with their spread, except in
results.csv. Real held-out images, scored as the samples are, have a row too.
"""

import html
import itertools
import json
import math

from etils import epath

from cfgd import identity
from cfgd.report import blocks
from cfgd.report import explorer
from cfgd.report import pictures
from cfgd.report import plots
from cfgd.report import summary as summary_lib
from cfgd.runtime import files

_STYLE = """
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem;
  font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p { max-width: 48rem; margin: .6rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto;
  font-size: .875rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .2rem 1.1em .2rem 0; text-align: right; }
.prose th, .prose td { text-align: left; vertical-align: top;
  white-space: normal; min-width: 6rem; }
.prose td:last-child { font-weight: bold; }
tbody { border-top: 1px solid #bbb; }
.curves, .lead { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.wide { display: grid; }
figure { margin: 0; max-width: 40rem; }
.lead figure, .wide figure { max-width: 60rem; }
figcaption { font-size: .875rem; margin-top: .4rem; }
img { display: block; width: 100%; height: auto; }
.explorer img { image-rendering: pixelated; max-width: 44rem; }
.explorer input { width: min(22rem, 60%); vertical-align: middle; }
.explorer select { max-width: 100%; font: inherit; }
summary { cursor: pointer; }
.section > summary { font-size: 1.2rem; font-weight: bold; margin: 1.5rem 0; }
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
_PROVENANCE = "Settings and provenance"
# Pictures that stand on top.
_LEAD = ("frontier_p_uncond", "strip")
_AXES = ("id", "seed", "p_uncond", "T", "variant", "w", "s")
# Fields of a Result that are columns of results.csv.
_FIELDS = ("sampler", "v", "num_samples", "seconds")
_BOLD = "Bold: the lowest {} of each (p_uncond, T, variant)."
# Explanations of columns, by the end of their name.
_COLUMN_CAPTIONS = {
  "_heldout": "{name}: {distance} measured against held-out images instead of "
  "the training images.",
  "_matched": "{name}: {distance} after each class's histogram of pixel values "
  "has been matched to that of the training images. The difference to "
  "{distance} is due to brightness and contrast alone.",
  "copied": "{name}: estimated share of samples that are copies of training "
  "images, from the nearest real images; about 0 if there are none, 1 if all "
  "are copies.",
}
_REAL_CAPTION = (
  "{name}: {count} held-out images, scored in the same way as the samples of a "
  "cell."
)
_ACCURACY = (
  "The feature network classifies {:.1%} of the held-out images correctly."
)
_BESIDE = (
  "The {}'s columns are its {} at the same settings; in brackets, by how much "
  "ours is above that."
)


def write(summary, directory):
  """Write results.csv, report.md with its figures/, and report.html."""
  sections = _sections(summary)
  drawn = [
    block
    for section in sections
    for block in section.blocks
    if isinstance(block, blocks.Picture)
  ]
  out = {f"figures/{picture.name}.png": picture.png for picture in drawn}
  out["results.csv"] = results_table(summary).csv()
  out["report.html"] = document(summary.config.sweep.title, sections)
  out["report.md"] = _markdown(summary, sections)
  for name, data in out.items():
    files.write_atomic(epath.Path(directory) / name, data)


def _sections(summary):
  """Return the page: what was found, what decides it, and all numbers."""
  drawn = {picture.name: picture for picture in pictures.draw(summary)}
  lead = [drawn.pop(name) for name in _LEAD if name in drawn]
  tally = [blocks.Strong(summary.tally)] if summary.tally else []
  slider = explorer.block(pictures.explored(summary))
  seen = [blocks.Raw(blocks.tag("p", pictures.SAMPLES)), slider]
  seen = seen if slider else []
  sections = [
    blocks.Section("", [*_headline(summary), *tally, *lead], "lead"),
    *summary.lead,
    blocks.Section("Samples", seen),
    blocks.Section("Curves", list(drawn.values())),
    blocks.Section("About", [*summary.config.sweep.notes, _progress(summary)]),
    *summary.sections,
    _cells(summary),
    _settings(summary),
  ]
  return [section for section in sections if section.blocks]


def _headline(summary):
  """Return a sentence about the main curve: what guidance does to it."""
  if not summary.results:
    return []
  curve = summary_lib.select(summary.plain, **summary.main)
  curve = [r for r in curve if math.isfinite(r.metric(summary.distance))]
  if len(curve) < 2:
    return []
  first, last = (
    min(curve, key=lambda r: r.cell.w),
    max(curve, key=lambda r: r.cell.w),
  )
  best = min(curve, key=lambda r: r.metric(summary.distance))
  others = " and ".join(
    f"{r.metric(summary.distance):.3g} at w = {r.cell.w:g}"
    for r in (first, last)
    if r is not best
  )
  scores = [f"{r.metric(summary.score):.3g}" for r in (first, last)]
  return [
    blocks.Strong(
      f"The {_called(summary.distance)} is lowest at w = {best.cell.w:g}: "
      f"{best.metric(summary.distance):.3g}, beside {others}. The "
      f"{_called(summary.score)} goes from {scores[0]} at w = "
      f"{first.cell.w:g} to {scores[1]} at w = {last.cell.w:g}."
    )
  ]


def _called(name):
  """Return what a metric is called in a sentence."""
  for start, (text, _) in plots.METRICS.items():
    if name.startswith(start):
      return text
  return name


def _markdown(summary, sections):
  parts = [
    f"# {blocks.escape(summary.config.sweep.title)}",
    *(section.markdown() for section in sections),
    f"## {_PROVENANCE}",
    f"{_PROVENANCE} are in [report.html](report.html).",
  ]
  return "\n\n".join(filter(None, parts)) + "\n"


def document(title, sections):
  """Return an HTML page of `blocks.Section`s."""
  parts = [blocks.tag("h1", title), *(section.html() for section in sections)]
  return _PAGE.format(html.escape(title), _STYLE, "\n".join(parts))


def _progress(summary):
  """Return how many cells are done, what they share, and what they took."""
  results = summary.results
  parts = [f"{len(results)} of {len(summary.cells)} cells"]
  for sampler in _distinct(r.sampler for r in results):
    own = [r for r in results if r.sampler == sampler]
    v = " or ".join(f"{v:g}" for v in _distinct(r.v for r in own))
    size = " or ".join(f"{n}" for n in _distinct(r.num_samples for r in own))
    about = [f"{sampler} sampler", *([f"v={v}"] if v else [])]
    parts.append(", ".join([*about, f"{size} samples per cell"]))
  seeds = _distinct(r.cell.seed for r in results)
  parts += [f"seeds {', '.join(map(str, seeds))}"] if seeds else []
  text = "; ".join(parts) + "."
  machines = " and ".join(_distinct(r.machine for r in results))
  if machines:
    training = sum(r.training_seconds or 0 for r in results) / 60
    sampling = sum(r.seconds for r in results) / 60
    text += f" Training took {training:.0f} minutes, sampling and scoring "
    text += f"{sampling:.0f}, on {machines}."
  return text


def _distinct(values):
  return sorted(set(values) - {None})


def results_table(summary):
  """Return the Table of results.csv: a row for each cell and seed."""
  rows, theirs = [], {}
  for result in sorted(
    summary.results, key=lambda r: summary_lib.order(r.cell)
  ):
    cell = result.cell
    published = {
      f"{source}_{name}": value
      for source, name, value in _published(summary, cell, result)
    }
    row = cell._asdict() | {"id": cell.id, "variant": cell.variant}
    row |= {"s": 1 + cell.w} | {name: getattr(result, name) for name in _FIELDS}
    rows.append(row | result.metrics | published)
    theirs |= published
  if summary.real:
    about = {"id": plots.REAL, "num_samples": summary.real["num_samples"]}
    rows.append(summary.real["metrics"] | about)
  columns = [*_AXES, *_FIELDS, *summary.metric_names, *theirs]
  return blocks.Table(columns, [rows])


def _published(summary, cell, result):
  """Return [(source, metric, published value)]."""
  beside = summary.beside
  found = beside.find(cell, result) if beside else {}
  return [(beside.source, *item) for item in found.items()]


def _cells(summary):
  """Return the section with the table of cells and its explanations."""
  parts = [_cell_table(summary), *_captions(summary)]
  return blocks.Section("Cells", parts, folded=True)


def _cell_table(summary):
  done = {result.cell: result for result in summary.averages}
  cells = {cell._replace(seed=None) for cell in summary.cells}
  groups = [
    [_row(summary, cell, done.get(cell)) for cell in members]
    for _, members in itertools.groupby(
      sorted(cells, key=summary_lib.order), summary_lib.group
    )
  ]
  variant = ["variant"] if any(cell.variant for cell in cells) else []
  axes, names = ["p_uncond", "T", *variant, "w"], summary.metric_names
  known = {*axes, "variant", *names, "seconds"}
  theirs = [k for rows in groups for row in rows for k in row if k not in known]
  columns = [*axes, *names, *dict.fromkeys(theirs), "seconds"]
  if summary.real:
    groups.insert(0, [summary.real["metrics"] | {"p_uncond": plots.REAL}])
  return blocks.Table(columns, groups)


def _row(summary, cell, result):
  """Return a row of the table of cells, {column: text}."""
  row = {"p_uncond": f"{cell.p_uncond:g}", "T": cell.T}
  row |= {"variant": cell.variant, "w": plots.both(cell.w)}
  for source, name, value in _published(summary, cell, result):
    ours = result.metric(name) if result else math.nan
    more = f" ({ours - value:+.2f})" if math.isfinite(ours) else ""
    row[f"{source}'s {name}"] = f"{value:.2f}{more}"
  if not result:
    return row | {summary.metric_names[0]: "not run"}
  row |= {name: _value(summary, result, name) for name in summary.metric_names}
  return row | {"seconds": f"{result.seconds:.1f}"}


def _value(summary, result, name):
  """Return a metric as text, with its spread over seeds, bold if the best."""
  value, spread = result.metrics.get(name), result.spread.get(name)
  if spread is None:
    text = blocks.number(value)
  else:
    # A mean that only rounding keeps from 0 is not worth its digits.
    value = 0.0 if abs(value) < 1e-6 * spread else value
    text = f"{blocks.number(value)} ± {blocks.number(spread)}"
  best = name == summary.distance and result.cell in summary.best
  return blocks.Strong(text) if best else text


def _captions(summary):
  """Return explanations of the rows and columns of the table of cells."""
  distance = summary.distance
  captions = [_BOLD.format(distance)]
  captions += [
    text.format(name=name, distance=distance)
    for name in summary.metric_names
    for end, text in _COLUMN_CAPTIONS.items()
    if name.endswith(end)
  ]
  if summary.real:
    count = summary.real["num_samples"]
    captions.append(_REAL_CAPTION.format(name=plots.REAL, count=count))
    accuracy = summary.real["about"].get("feature_network_accuracy")
    captions += [] if accuracy is None else [_ACCURACY.format(accuracy)]
  if summary.beside:
    source, title = summary.beside.source, summary.beside.title
    captions.append(_BESIDE.format(source, title))
  return captions


def _settings(summary):
  """Return the settings, and the provenance that cells share or differ in."""
  origins = {
    r.cell.id: {k: json.dumps(v, default=str) for k, v in r.provenance.items()}
    for r in summary.results
  }
  shared = set.intersection(*(set(o.items()) for o in origins.values() or [{}]))
  lines = [f"{k}: {v}" for k, v in sorted(shared)]
  for name, origin in origins.items():
    own = [f"{k}: {v}" for k, v in origin.items() if (k, v) not in shared]
    lines += [f"\n{name}  {', '.join(own)}"] if own else []
  settings = identity.to_dict(summary.config)
  settings = json.dumps(settings, indent=2, default=str)
  return blocks.Section(
    _PROVENANCE,
    [
      blocks.Details("Settings", settings),
      blocks.Details("Provenance", "\n".join(lines)),
    ],
  )
