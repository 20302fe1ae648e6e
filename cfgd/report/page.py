"""What a sweep found, as results.csv, report.md and a self-contained HTML page.

Where a sweep names a table of Ho & Salimans (arXiv:2207.12598), its printed
numbers stand beside ours. Cells of several seeds become one row, with their
spread, and the paper's claims are tested on them. Real images that were held
out, scored as the samples are, have a row of their own.
"""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import html
import io
import itertools
import json
import math
import re
from typing import Any
from typing import NamedTuple

from etils import epath
import numpy as np

from cfgd.paper import claims as claims_lib
from cfgd.paper import printed as paper_lib
from cfgd.paper import verdicts
from cfgd.report import plots
from cfgd.runtime import files
from cfgd.sweep import seeds

_MAX_GRIDS = 8
_COLUMNS = (
  *("id", "seed", "p_uncond", "T", "variant", "w", "s"),
  *("sampler", "v", "num_samples"),
)
_STYLE = """
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem;
  font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p { max-width: 44rem; margin: .6rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto;
  font-size: .875rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .2rem 1.1em .2rem 0; text-align: right; }
.claims th, .claims td { text-align: left; vertical-align: top;
  white-space: normal; min-width: 6rem; }
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
_CLAIM_COLUMNS = (
  *("claim", "who says so", "statistic, and where it has to be"),
  *("each seed", "mean and interval", "p", "p (Holm)", "verdict"),
)
_PRIMARY = (
  "The paper's main statements. Holm's method corrects them for each other: "
  "with a probability of at least {confidence:.0%} no verdict among them is "
  "wrong."
)
_SECONDARY = (
  "Secondary claims, not corrected: each verdict is wrong with a probability "
  "of at most {error:.0%}, so a few of many may be."
)
_CLAIMS = (
  "Tests are Student's t over the seeds, in both directions. A claim holds if "
  "p is at most {error:g} and the data agrees with it, does not hold if p is "
  "at most {error:g} and the data contradicts it, and is not resolved "
  "otherwise. That two things are alike is decided by two one-sided tests. "
  "Where a statistic compares bests, p and interval allow for the choice of "
  "the best. Ratios have geometric means; intervals are of {confidence:.0%} "
  "confidence for each claim alone."
)
_NO_COPIES_CLAIM = (
  "Whether training images are copied is not tested: copying needs a model "
  "that has seen an image often, and this training saw each {epochs} "
  "(sweep.claims.copied_epochs={needed:g}). The estimated share of copies, "
  "mean over the main curve, is {share:.3f}."
)
_REAL = "real images"
_REAL_CAPTION = (
  "{name}: {count} held-out images, scored in the same way as the samples of a "
  "cell."
)
_ACCURACY = (
  "The feature network classifies {:.1%} of the held-out images correctly."
)
# What columns are, by the ends of their names.
_COLUMN_CAPTIONS = {
  "_heldout": "{name}: {distance} measured against held-out images in place of "
  "the training images.",
  "_matched": "{name}: {distance} after each class's histogram of pixel values "
  "has been matched to that of the training images. What it is below "
  "{distance} is due to brightness and contrast alone.",
  "copied": "{name}: estimated share of the samples that are copies of "
  "training images, from the nearest real images; about 0 where nothing is "
  "copied, 1 where everything is.",
}
_BESIDE_TABLE = (
  "The paper's columns are its {} at the same settings; in brackets, by how "
  "much ours is above that."
)


def table_rows(
  cells: Sequence[plots.Cell],
  planned: Sequence[plots.Cell],
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
  rows.sort(key=lambda c: (*_group(c), plots.strength(c)))
  for _, group in itertools.groupby(rows, _group):
    finite = [r for r in group if math.isfinite(plots.metric(r, distance))]
    if finite:
      min(finite, key=lambda r: plots.metric(r, distance))["best"] = True
  return rows


class _Table(NamedTuple):
  """The table of cells: its rows, its columns of metrics, and what they are."""

  rows: Sequence[plots.Cell]
  names: Sequence[str]
  distance: str
  real: Mapping[str, Any] | None
  captions: Sequence[str]


def _printed(cell, beside):
  row = beside and paper_lib.find(beside.rows, cell)
  return row.metrics if row else {}


def write(
  directory: epath.PathLike,
  cells: Sequence[plots.Cell],
  planned: Sequence[plots.Cell],
  settings: Mapping[str, Any],
  *,
  distance: str,
  score: str,
  title: str,
  notes: Sequence[str],
  paper: str = "",
  claims: Mapping[str, float] | None = None,
  epochs: float | None = None,
  real: Mapping[str, Any] | None = None,
) -> epath.Path:
  """Write results.csv, report.md with its figures/, and report.html.

  Cells of several seeds are one row and one point, with their spread, except in
  results.csv.

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
    claims: the numbers that decide on the paper's claims, see `claims.test`,
      and the "confidence" of verdicts and intervals; None tests none.
    epochs: how often training saw each image; None where that is unknown.
    real: scores of held-out images, see `metrics.evaluate.held_out`; None where
      there are none.

  Returns:
    The path of report.html.
  """
  beside = paper_lib.table(paper)
  rows = table_rows(
    seeds.average(cells),
    [c | {"id": seeds.point(c)} for c in planned],
    distance,
    beside,
  )
  done = [r for r in rows if "metrics" in r]
  names = list(dict.fromkeys(k for c in cells for k in c["metrics"]))
  names = names or [distance, score]
  captions = _table_captions(names, distance, beside, real)
  table = _Table(rows, names, distance, real, captions)
  head = title, [*notes, _progress(cells, planned)]
  tested = _claims(cells, done, distance, score, claims, epochs)
  grids = _grid_cells(done)
  found = real["metrics"] if real else {}
  pictures = plots.draw_all(done, grids, distance, score, beside, found)
  origin = _settings(settings, cells)
  page = _html(head, tested, table, pictures, grids, score, origin)
  out = {f"figures/{name}.png": png for name, (_, png) in pictures.items()}
  every = table_rows(cells, [], distance, beside)
  out |= {"results.csv": _csv(every, names, real), "report.html": page}
  out["report.md"] = _markdown(head, tested, table, pictures)
  for name, data in out.items():
    files.write_atomic(epath.Path(directory) / name, data)
  return epath.Path(directory) / "report.html"


def _group(cell):
  return cell["p_uncond"], cell["T"], plots.family(cell)


def _number(value):
  if isinstance(value, str | int | None):
    return "" if value is None else str(value)
  plain = value == 0 or 1e-3 <= abs(value) < 1e6 or not math.isfinite(value)
  return f"{value:.3f}" if plain else f"{value:.2e}"


def _progress(cells, planned):
  """Says how much of the sweep is there, what all cells share, what it took."""
  names = {c["id"] for c in [*cells, *planned]}
  kinds = {
    f"{sampler} sampler, v={_values(cells, 'v', sampler=sampler)}, "
    f"{_values(cells, 'num_samples', sampler=sampler)} samples per cell"
    for sampler in {c["sampler"] for c in cells}
  }
  numbers = {c.get("seed") for c in cells} - {None}
  if numbers:
    kinds.add(f"seeds {', '.join(map(str, sorted(numbers)))}")
  text = "; ".join([f"{len(cells)} of {len(names)} cells", *sorted(kinds)])
  return f"{text}. {_effort(cells)}".strip()


def _values(cells, field, **at):
  """Writes the values of a field that cells have."""
  values = sorted({c[field] for c in plots.select(cells, at)})
  return " or ".join(f"{value:g}" for value in values)


def _effort(cells):
  """Says on what the cells were made, and in how long."""
  machines = sorted({c["machine"] for c in cells if "machine" in c})
  if not machines:
    return ""
  training = sum(c["training_seconds"] for c in cells if "machine" in c)
  sampling = sum(c["seconds"] for c in cells)
  return (
    f"Training took {training / 60:.0f} minutes, sampling and scoring "
    f"{sampling / 60:.0f}, on {' and '.join(machines)}."
  )


def _table_captions(names, distance, beside, real):
  """Return sentences on what the rows and columns of the table are."""
  captions = [_BOLD.format(distance)]
  captions += [
    text.format(name=name, distance=distance)
    for name in names
    for end, text in _COLUMN_CAPTIONS.items()
    if name.endswith(end)
  ]
  if real:
    captions += [_REAL_CAPTION.format(name=_REAL, count=real["num_samples"])]
    accuracy = real["about"].get("feature_network_accuracy")
    captions += [] if accuracy is None else [_ACCURACY.format(accuracy)]
  captions += [_BESIDE_TABLE.format(beside.title)] if beside else []
  return captions


def _claims(cells, rows, distance, score, settings, epochs):
  """Return (tables of claims, what is said below them), or None.

  Each table is (what it has, its header, its rows as text).
  """
  if not settings or not rows:
    return None
  plain = plots.select(rows, {"variant": ""}) or rows
  main = plots.commonest(plain, "p_uncond", "T")
  limits = {k: v for k, v in settings.items() if k != "confidence"}
  tested = claims_lib.test(
    *(cells, distance, score),
    **{"main": tuple(main.values()), "epochs": epochs, **limits},
  )
  confidence = settings["confidence"]
  numbers = {"confidence": confidence, "error": round(1 - confidence, 6)}
  decided = verdicts.decide(tested, confidence)
  texts = [
    _claim(claim, decision, confidence)
    for claim, decision in zip(tested, decided, strict=True)
  ]
  tables = []
  for primary, caption in ((True, _PRIMARY), (False, _SECONDARY)):
    own = [
      text
      for text, claim in zip(texts, tested, strict=True)
      if claim.primary == primary
    ]
    columns = [k for k in _CLAIM_COLUMNS if primary or k != "p (Holm)"]
    if own:
      tables.append((caption.format(**numbers), columns, own))
  notes = [_CLAIMS.format(**numbers)] if tables else []
  main_rows = plots.select(plain, main)
  return tables, [*notes, *_copies_note(main_rows, epochs, settings)]


def _copies_note(rows, epochs, settings):
  """Return why nothing is claimed about copies, where that is so."""
  shares = [plots.metric(row, "copied") for row in rows]
  needed = settings["copied_epochs"]
  if not shares or not np.isfinite(shares).all():
    return []
  if claims_lib.can_copy(epochs, needed):
    return []
  seen = "an unknown number of times"
  if epochs is not None:
    seen = f"{epochs:.2g} times"
  share = np.mean(shares)
  return [_NO_COPIES_CLAIM.format(epochs=seen, needed=needed, share=share)]


def _claim(claim, decision, confidence):
  low, mean, high = claim.interval(confidence)
  wanted = f"above {claim.neutral:g}"
  if claim.alike is not None:
    wanted = "from {:.3g} to {:.3g}".format(*claim.range())
  p = [decision.p] + [decision.corrected] * claim.primary
  return [
    claim.text,
    claim.source,
    f"{claim.statistic}; {wanted}",
    ", ".join(f"{value:.3g}" for value in claim.values),
    f"{mean:.3g} [{low:.3g}, {high:.3g}]",
    *(f"{value:.2g}" for value in p),
    decision.verdict,
  ]


def _grid_cells(cells):
  """Picks cells of the main curve whose grids to show: spread, and the best."""
  if not cells:
    return []
  cells = plots.select(cells, {"variant": ""}) or cells
  main = plots.select(cells, plots.commonest(cells, "p_uncond", "T"))
  paths = [c["grid_png"] and epath.Path(c["grid_png"]) for c in main]
  main = [c for c, p in zip(main, paths, strict=True) if p and p.exists()]
  shown = len(main) if len(main) <= _MAX_GRIDS else _MAX_GRIDS - 1
  spread = np.linspace(0, len(main) - 1, shown).round()
  return [c for i, c in enumerate(main) if i in spread or c["best"]]


def _csv(cells, names, real):
  out = io.StringIO()
  table = csv.writer(out, lineterminator="\n")
  theirs = [f"paper_{k}" for k in _printed_names(cells)]
  columns = [*_COLUMNS, "seconds", *names, *theirs]
  table.writerow(columns)
  for cell in cells:
    printed = {f"paper_{k}": v for k, v in cell["printed"].items()}
    flat = {**cell, "s": 1 + cell["w"], **cell["metrics"], **printed}
    table.writerow([flat.get(k) for k in columns])
  if real:
    counted = {"id": _REAL, "num_samples": real["num_samples"]}
    flat = {**real["metrics"], **counted}
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
  text, ours = f"{row['printed'][name]:.2f}", plots.metric(row, name)
  if math.isfinite(ours):
    text += f" ({ours - row['printed'][name]:+.2f})"
  return text


def _value(row, name):
  """Writes a metric, with its spread over seeds."""
  text = _number(row["metrics"].get(name))
  spread = row.get("spread", {}).get(name)
  return text if spread is None else f"{text} ± {_number(spread)}"


def _texts(row, names, distance, strong, rows):
  """Writes a row of the table; `strong` is the template for a best value."""
  variant = [row.get("variant", "")] if _has_variants(rows) else []
  first = [f"{row['p_uncond']:g}", f"{row['T']}", *map(html.escape, variant)]
  first += [plots.both(row["w"])]
  theirs = [_deviation(row, k) for k in _printed_names(rows)]
  if "metrics" not in row:
    return [*first, "not run", *[""] * (len(names) - 1), *theirs, ""]
  values = {k: html.escape(_value(row, k)) for k in names}
  if row["best"]:
    values[distance] = strong.format(values[distance])
  return [*first, *values.values(), *theirs, f"{row['seconds']:.1f}"]


def _real_texts(table):
  """Writes the row of real images, under the columns of `_header`."""
  axes = len(_header(table.rows, [])) - len(_printed_names(table.rows)) - 1
  values = [_number(table.real["metrics"].get(name)) for name in table.names]
  after = [""] * (len(_printed_names(table.rows)) + 1)
  return [_REAL, *[""] * (axes - 1), *values, *after]


def _markdown(head, tested, table, pictures):
  def plain(text):
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))

  title, notes = head
  header = _header(table.rows, table.names)
  lines = [map(plain, header), ["---:"] * len(header)]
  lines += [_real_texts(table)] if table.real else []
  strong = table.names, table.distance, "**{}**", table.rows
  lines += [_texts(row, *strong) for row in table.rows]
  blocks = [f"# {plain(title)}", *map(plain, notes)]
  blocks += ["## Curves"] if pictures else []
  for name, (caption, _) in pictures.items():
    blocks += [f"![{name}](figures/{name}.png)", plain(caption)]
  blocks += ["## Claims"] if tested else []
  tables, below = tested or ((), ())
  for caption, columns, texts in tables:
    rows = [columns, ["---"] * len(columns), *(map(plain, k) for k in texts)]
    blocks += [plain(caption), _pipes(rows)]
  blocks += map(plain, below)
  blocks += ["## Cells", _pipes(lines), *map(plain, table.captions)]
  blocks += ["Settings and provenance are in [report.html](report.html)."]
  return "\n\n".join(blocks) + "\n"


def _pipes(rows):
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _tag(name, text):
  return f"<{name}>{html.escape(str(text))}</{name}>"


def _row(texts):
  return f"<tr>{''.join(f'<td>{k}</td>' for k in texts)}</tr>"


def _table(table):
  head = "".join(_tag("th", k) for k in _header(table.rows, table.names))
  out = ["<h2>Cells</h2>", "<table>", f"<thead><tr>{head}</tr></thead>"]
  if table.real:
    out += ["<tbody>", _row(_real_texts(table)), "</tbody>"]
  strong = table.names, table.distance, "<strong>{}</strong>", table.rows
  for _, group in itertools.groupby(table.rows, _group):
    out.append("<tbody>")
    out += [_row(_texts(row, *strong)) for row in group]
    out.append("</tbody>")
  return "\n".join([*out, "</table>", *(_tag("p", k) for k in table.captions)])


def _figure(caption, png):
  source = "data:image/png;base64," + base64.b64encode(png).decode()
  image = f'<img alt="{html.escape(caption)}" src="{source}">'
  return f"<figure>{image}{_tag('figcaption', caption)}</figure>"


def _claims_tables(tested):
  """Writes the claims, with the verdict in bold."""
  tables, below = tested
  out = ["<h2>Claims</h2>"]
  for caption, columns, rows in tables:
    head = "".join(_tag("th", k) for k in columns)
    out += [_tag("p", caption), '<table class="claims">']
    out += [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for *texts, verdict in rows:
      out.append(_row([*map(html.escape, texts), _tag("strong", verdict)]))
    out.append("</tbody></table>")
  return [*out, *(_tag("p", k) for k in below)]


def _html(head, tested, table, pictures, grids, score, settings):
  title, notes = head
  out = [_tag("h1", title), *(_tag("p", k) for k in notes)]
  curves = [_figure(*v) for k, v in pictures.items() if k != "samples"]
  if curves:
    out += ["<h2>Curves</h2>", '<div class="curves">', *curves, "</div>"]
  if grids:
    out += ["<h2>Samples</h2>", _tag("p", plots.SAMPLES)]
    out += ['<div class="samples">']
    for cell in grids:
      names = table.distance, score
      values = [f"{k} {_number(plots.metric(cell, k))}" for k in names]
      caption = ", ".join([f"w={plots.both(cell['w'])}", *values])
      out.append(_figure(caption, plots.grid_png(cell)))
    out.append("</div>")
  out += _claims_tables(tested) if tested else []
  out += [_table(table)]
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
