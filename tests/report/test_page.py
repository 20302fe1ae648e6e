import base64
import csv
from html import parser
import io
import math
import pathlib
import re

import numpy as np
from PIL import Image
import pytest
from scipy import stats

from cfgd.paper import printed
from cfgd.report import page
from cfgd.report import plots

# A prototype's numbers on the embedded data: w, distance, score.
MAIN = [
  (0, 2.12, 8.07),
  (0.1, 1.41, 8.43),
  (0.3, 0.92, 8.91),
  (0.5, 1.41, 9.32),
  (1, 4.7, 9.75),
  (4, 18.5, 9.9),
]
OTHER = [(0.2, 32, 0.3, 1.0, 8.8), (0.1, 8, 0.3, 3.0, 8.5)]
HOSTILE = 'a <script src="x"> | & "title"'


def make_cell(folder, p_uncond, steps, w, distance, score):
  name = f"p{p_uncond:g}_T{steps}_w{w:g}"
  pixels = np.random.default_rng(0).integers(0, 255, (24, 120), np.uint8)
  Image.fromarray(pixels).save(folder / f"{name}.png")
  return {
    "id": name,
    "p_uncond": p_uncond,
    "T": steps,
    "w": w,
    "sampler": "ancestral",
    "v": 0.3,
    "num_samples": 1000,
    "metrics": {"fd_embedded": distance, "is_embedded": score},
    "grid_png": str(folder / f"{name}.png"),
    "provenance": {"config": "abc", "weights": "<ema>", "step": 500 + steps},
    "seconds": 21.3,
  }


@pytest.fixture
def cells(tmp_path):
  rows = [(0.1, 32, *row) for row in MAIN] + OTHER
  return [make_cell(tmp_path, *row) for row in rows]


@pytest.fixture
def planned(cells):
  extra = {"id": "p0.5_T32_w0.3", "p_uncond": 0.5, "T": 32, "w": 0.3}
  return [*cells[::-1], extra]


def run(folder, cells, planned, **changes):
  settings = {"sampling": {"w": 0.3, "name": "<b>"}, "seed": 0}
  names = {"distance": "fd_embedded", "score": "is_embedded"}
  text = {"title": "A sweep", "notes": ["Not a benchmark."]}
  options = {**names, **text, **changes}
  path = page.write(folder / "out", cells, planned, settings, **options)
  assert path.name == "report.html"
  return path.parent


class Page(parser.HTMLParser):
  """Collects what a page refers to and checks that its tags balance."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.sources, self.text = [], [], [], ""
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ("meta", "img"):
      self.open.append(tag)
    assert "href" not in dict(attrs)
    self.sources += [v for k, v in attrs if k == "src"]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_csv_round_trips_every_value(tmp_path, cells, planned):
  cells[0]["metrics"]["fd_embedded"] = 1 / 3
  cells[1]["metrics"] = {"fd_embedded": math.inf, "recall": np.float32(0.1)}
  text = (run(tmp_path, cells, planned) / "results.csv").read_text()
  rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
  assert len(rows) == len(cells)
  for cell in cells:
    row = rows[cell["id"]]
    for key in ("p_uncond", "T", "w", "v", "num_samples", "seconds"):
      assert float(row[key]) == cell[key]
    assert float(row["s"]) == 1 + cell["w"]
    assert row["sampler"] == "ancestral"
    for key in ("fd_embedded", "is_embedded", "recall"):
      if key in cell["metrics"]:
        assert np.float32(row[key]) == np.float32(cell["metrics"][key])
      else:
        assert row[key] == ""
  assert float(rows[cells[0]["id"]]["fd_embedded"]) == 1 / 3


def test_rows_are_ordered_and_the_best_of_each_group_marked(cells, planned):
  cells[0]["metrics"]["fd_embedded"] = -math.inf
  cells[1]["metrics"]["fd_embedded"] = math.nan
  rows = page.table_rows(cells, planned, "fd_embedded")
  order = [(r["p_uncond"], r["T"], r["w"]) for r in rows]
  assert order == sorted(order)
  assert len(order) == 9
  best = {r["id"] for r in rows if r["best"]}
  assert best == {"p0.1_T8_w0.3", "p0.1_T32_w0.3", "p0.2_T32_w0.3"}
  assert "best" not in cells[0]


def test_markdown_has_every_planned_cell_and_its_figures(
  tmp_path, cells, planned
):
  folder = run(tmp_path, cells, planned)
  text = (folder / "report.md").read_text()
  lines = [k for k in text.splitlines() if k.startswith("| 0")]
  assert len(lines) == len(planned)
  assert len({k.count("|") for k in lines}) == 1
  assert "| 0.1 | 32 | 0.3 (s=1.3) | **0.920** | 8.910 | 21.3 |" in lines
  assert "| 0.5 | 32 | 0.3 (s=1.3) | not run |  |  |" in lines
  assert text.count("not run") == 1
  assert "8 of 9 cells" in text
  assert "Not a benchmark." in text
  links = re.findall(r"\]\((figures/.*?)\)", text)
  names = ["frontier_p_uncond", "frontier_T", "over_w", "samples"]
  assert links == [f"figures/{name}.png" for name in names]
  for link in links:
    Image.open(folder / link).verify()


def test_html_is_whole_and_needs_nothing_else(tmp_path, cells, planned):
  text = (run(tmp_path, cells, planned) / "report.html").read_text()
  assert not re.search(r"https?://|<script|url\(|@import", text)
  page = Page(text)
  assert len(page.sources) == 3 + len(MAIN)
  for source in page.sources:
    head, data = source.split(",")
    assert head == "data:image/png;base64"
    Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()
  assert text.count("<strong>0.920</strong>") == 1
  assert text.count("<strong>") == 3
  for part in (
    "w=0.3 (s=1.3), fd_embedded 0.920",
    '"<b>"',
    'weights: "<ema>"',
  ):
    assert part in page.text


def test_hostile_text_is_escaped(tmp_path, cells, planned):
  changes = {"title": HOSTILE, "notes": [HOSTILE + "\n# more"]}
  folder = run(tmp_path, cells, planned, **changes)
  page = Page((folder / "report.html").read_text())
  assert "script" not in page.tags
  assert page.text.count(HOSTILE) == 3
  text = (folder / "report.md").read_text()
  assert "\n# more" not in text
  assert r'# a \<script src="x"\> \| &' in text


def test_values_that_are_not_finite_are_shown(tmp_path, cells, planned):
  cells[0]["metrics"]["fd_embedded"] = math.nan
  cells[5]["metrics"]["fd_embedded"] = math.inf
  folder = run(tmp_path, cells, planned)
  page = (folder / "report.html").read_text()
  assert "<td>nan</td>" in page
  assert "<td>inf</td>" in page
  text = (folder / "report.md").read_text()
  assert "| nan | 8.070 |" in text
  assert "| inf | 9.900 |" in text


def test_points_that_are_not_finite_are_named_below_the_plot():
  points = np.array([[0, 8, 2], [1, 9, np.nan]])
  names = {"distance": "fd", "score": "is", "title": ""}
  figure = plots.frontier_figure([plots.Curve("a", points)], **names)
  assert "not finite: a w=1" in figure.axes[0].get_xlabel()
  lost = plots.Curve("a", points[1:])
  assert plots.frontier_figure([lost], **names) is None
  assert plots.frontier_figure([], **names) is None


@pytest.mark.parametrize(("highest", "scale"), [(4.9, "linear"), (5.1, "log")])
def test_a_wide_spread_makes_the_axis_logarithmic(highest, scale):
  line = plots.Curve("a", np.array([[0, 8, 1], [1, 9, highest]]))
  figure = plots.frontier_figure([line], "fd", "is", "")
  assert figure.axes[0].get_yscale() == scale


REAL = {
  "metrics": {"fd_embedded": 0.25, "is_embedded": 9.5, "recall": 0.875},
  "num_samples": 1000,
  "about": {"feature_network_accuracy": 0.9642},
}


def test_real_images_are_a_row_of_their_own(tmp_path, cells, planned):
  folder = run(tmp_path, cells, planned, real=REAL)
  text = (folder / "report.md").read_text()
  rows = [k for k in text.splitlines() if k.startswith("| ")]
  at = rows.index("| real images |  |  | 0.250 | 9.500 |  |")
  assert rows[at - 1].startswith("| ---:")
  assert len({k.count("|") for k in rows}) == 1
  page = Page((folder / "report.html").read_text())
  for part in (
    "1000 held-out images, scored in the same way",
    "classifies 96.4% of the held-out images correctly",
  ):
    assert part in text
    assert part in page.text
  assert page.tags.count("tbody") == 1 + 4  # real images, and each (p, T)
  table = io.StringIO((folder / "results.csv").read_text())
  *ours, real = csv.DictReader(table)
  assert len(ours) == len(cells)
  assert real.pop("id") == "real images"
  assert {k: v for k, v in real.items() if v} == {
    **{"num_samples": "1000", "fd_embedded": "0.25", "is_embedded": "9.5"},
  }
  assert "Dotted: held-out real images." in text
  without = run(tmp_path, cells, planned)
  for name in ("report.md", "report.html", "results.csv"):
    assert "real images" not in (without / name).read_text()


def test_real_images_are_lines_over_w():
  line = plots.Curve("a", np.array([[0, 8, 1.5], [1, 9, 2]]))
  figure = plots.over_w_figure([line], "fd", "is", "", {"fd": 0.5, "is": 9.9})
  for ax, value in zip(figure.axes, (0.5, 9.9), strict=True):
    dotted = ax.lines[1]
    assert list(dotted.get_ydata()) == [value] * 2
    low, high = ax.get_ylim()
    assert low < value < high
  figure = plots.over_w_figure([line], "fd", "is", "", {"fd": math.nan})
  assert all(len(ax.lines) == 1 for ax in figure.axes)


def test_pictures_stand_before_the_tables(tmp_path, cells, planned):
  cells = [c | {"seed": 0} for c in cells]
  folder = run(tmp_path, cells, planned, claims=CLAIMS, epochs=None)
  text = (folder / "report.md").read_text()
  marks = ("## Curves", "](figures/", "## Claims", "## Cells", "| 0.1 | 32 |")
  assert [text.count(k) > 0 for k in marks] == [True] * 5
  assert sorted(marks, key=text.index) == list(marks)
  page = (folder / "report.html").read_text()
  marks = ("<figure>", "<h2>Claims", "<h2>Cells", "<td>0.1</td>")
  assert sorted(marks, key=page.index) == list(marks)


CLAIMS = {
  **{"confidence": 0.95, "alike": 1.15, "small_w": 1.0, "copied": 0.1},
  "copied_epochs": 10.0,
}


def make_seeds(cells, copied=0.01):
  """Return the cells with three seeds, and a little noise."""
  rng = np.random.default_rng(0)
  return [
    cell
    | {"seed": seed, "id": f"{cell['id']}_seed{seed}", "point": cell["id"]}
    | {
      "metrics": {
        name: value * math.exp(0.01 * rng.normal())
        for name, value in cell["metrics"].items()
      }
      | {"copied": copied}
    }
    for cell in cells
    for seed in (0, 1, 2)
  ]


def claims_tables(text):
  """Return the two tables of claims, {claim: {column: text}}."""
  text = text.replace("\\", "").split("## Claims")[1].split("## ")[0]
  tables = []
  for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
    header, _, *rows = (k.strip("| ").split(" | ") for k in lines.splitlines())
    tables.append({k[0]: dict(zip(header, k, strict=True)) for k in rows})
  return tables


def test_claims_are_shown_with_their_p_values(tmp_path, cells, planned):
  cells = make_seeds(cells)
  folder = run(tmp_path, cells, planned, claims=CLAIMS, epochs=12.0)
  text = (folder / "report.md").read_text()
  primary, secondary = claims_tables(text)
  assert len(primary) == 3
  assert {"p", "p (Holm)", "verdict"} < set(next(iter(primary.values())))
  assert "p (Holm)" not in next(iter(secondary.values()))
  ours = {c["seed"]: {} for c in cells}
  for cell in cells:
    if (cell["p_uncond"], cell["T"]) == (0.1, 32):
      ours[cell["seed"]][cell["w"]] = cell["metrics"]["fd_embedded"]
  logs = [math.log(curve[4] / curve[0]) for curve in ours.values()]
  row = primary["The greatest w is worse in distance than w = 0"]
  p = stats.ttest_1samp(logs, 0).pvalue
  assert row["p"] == f"{p:.2g}"
  assert float(row["p (Holm)"]) in (float(f"{k * p:.2g}") for k in (1, 2, 3))
  assert row["verdict"] == "holds"
  assert secondary["No training images are copied"]["verdict"] == "holds"
  page = Page((folder / "report.html").read_text())
  for part in ("p (Holm)", "not corrected", "Holm's method", row["p"]):
    assert part in page.text


@pytest.mark.parametrize(
  ("epochs", "said"), [(0.64, "0.64 times"), (None, "unknown number")]
)
def test_copying_is_not_tested_where_training_was_short(
  tmp_path, cells, planned, epochs, said
):
  options = {"claims": CLAIMS, "epochs": epochs}
  folder = run(tmp_path, make_seeds(cells), planned, **options)
  text = (folder / "report.md").read_text()
  assert not any(
    "No training images are copied" in table for table in claims_tables(text)
  )
  assert said in text
  assert "is 0.010." in text


def test_columns_are_explained(tmp_path, cells, planned):
  for cell in cells:
    cell["metrics"] |= {"fd_embedded_matched": 0.5, "copied": 0.0}
  text = (run(tmp_path, cells, planned) / "report.md").read_text()
  for start in ("fd_embedded_matched: fd_embedded after each", "copied: est"):
    assert text.count(start) == 1
  assert "fd_embedded_heldout" not in text


def test_curves_join_points_in_order_of_w(cells):
  line = plots.curve("a", cells[5::-1], "fd_embedded", "is_embedded")
  assert line.points.tolist() == [[w, s, d] for w, d, s in MAIN]


def test_no_finished_cell_is_a_report_too(tmp_path, planned):
  plan = [{k: c[k] for k in ("id", "p_uncond", "T", "w")} for c in planned]
  folder = run(tmp_path, [], plan)
  page = Page((folder / "report.html").read_text())
  assert page.text.count("not run") == len(plan)
  assert page.sources == []
  text = (folder / "report.md").read_text()
  assert "0 of 9 cells" in text
  assert text.count("not run") == len(plan)
  assert len((folder / "results.csv").read_text().splitlines()) == 1


def test_a_grid_that_is_missing_stops_nothing(tmp_path, cells, planned):
  cells[0]["grid_png"] = None
  cells[1]["grid_png"] = str(tmp_path / "gone.png")
  page = Page((run(tmp_path, cells, planned) / "report.html").read_text())
  assert len(page.sources) == 3 + len(MAIN) - 2


def test_rewriting_gives_the_same_bytes_and_leaves_no_other_file(
  tmp_path, cells, planned
):
  contents = []
  for _ in range(2):
    folder = run(tmp_path, cells, planned)
    paths = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
    contents.append({str(p): p.read_bytes() for p in paths})
  assert contents[0] == contents[1]
  assert len(contents[0]) == 3 + 4


@pytest.fixture
def beside(tmp_path):
  """A sweep of Table 1 with two finished cells, one planned, one variant."""
  rows = [(0.1, 256, 0.0, 1.9, 50.0), (0.1, 256, 0.1, 1.5, 70.0)]
  cells = [make_cell(tmp_path, *row) for row in rows]
  cells.append(make_cell(tmp_path, 0.1, 256, 1.0, 9.0, 150.0))
  cells[-1] |= {"id": "other", "variant": "classifier"}
  for cell in cells:
    cell["metrics"] = dict(
      zip(("fid", "is"), cell["metrics"].values(), strict=True)
    )
  plan = {"id": "p0.5_T256_w4", "p_uncond": 0.5, "T": 256, "w": 4.0}
  names = {"distance": "fid", "score": "is", "paper": "table1_imagenet64"}
  return run(tmp_path, cells, [*cells, plan], **names)


def test_the_papers_numbers_stand_beside_ours(beside):
  text = (beside / "report.md").read_text()
  assert "| fid | is | paper's fid | paper's is | seconds |" in text
  lines = [k.split(" | ") for k in text.splitlines() if k.startswith("| 0")]
  values = {(k[0], k[2], k[3].split(" ")[0]): k[4:] for k in lines}
  assert values["| 0.1", "", "0"] == [
    *("1.900", "50.000", "1.80 (+0.10)", "53.71 (-3.71)", "21.3 |"),
  ]
  assert values["| 0.1", "", "0.1"][2:4] == ["1.55 (-0.05)", "66.11 (+3.89)"]
  assert values["| 0.1", "classifier", "1"][2:4] == ["", ""]
  assert values["| 0.5", "", "4"] == ["not run", "", "21.48", "225.10", " |"]
  assert "Table 1 \\(ImageNet" not in text
  assert "its Table 1 (ImageNet 64x64) at the same settings" in text
  page = Page((beside / "report.html").read_text())
  assert "1.80 (+0.10)" in page.text
  assert "Dashed, hollow: the paper's Table 1" in page.text


def test_the_papers_numbers_are_columns_of_the_csv(beside):
  text = (beside / "results.csv").read_text()
  rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
  assert rows["p0.1_T256_w0.1"]["paper_fid"] == "1.55"
  assert rows["p0.1_T256_w0.1"]["paper_is"] == "66.11"
  assert rows["other"]["paper_fid"] == ""


def test_the_papers_curves_are_those_of_its_figures():
  first, second = printed.TABLES.values()
  lines = plots.printed_curves(first, "p_uncond", {"T": 256}, "fid", "is")
  assert [k.label for k in lines] == [
    f"p_uncond = {p}" for p in (0.1, 0.2, 0.5)
  ]
  assert all(k.printed and len(k.points) == 14 for k in lines)
  assert lines[2].points[-1].tolist() == [4.0, 225.1, 21.48]
  lines = plots.printed_curves(second, "T", {"p_uncond": 0.1}, "fid", "is")
  assert [k.label for k in lines] == ["T = 128", "T = 256", "T = 1024"]
  for table, axis, fixed, distance in (
    (second, "p_uncond", {"T": 256}, "fid"),
    (first, "p_uncond", {"T": 128}, "fid"),
    (first, "T", {"p_uncond": 0.1}, "fd_embedded"),
    (None, "T", {"p_uncond": 0.1}, "fid"),
  ):
    assert not plots.printed_curves(table, axis, fixed, distance, "is")


def test_the_papers_curve_has_our_colour_and_is_hollow_and_dashed():
  points = np.array([[0, 8, 2], [1, 9, 1]])
  lines = [plots.Curve("a", points), plots.Curve("b", points)]
  lines.append(plots.Curve("b", points + 1, printed=True))
  (ax,) = plots.frontier_figure(lines, "fid", "is", "").axes
  ours, theirs = ax.lines[1:]
  assert ours.get_color() == theirs.get_color() != ax.lines[0].get_color()
  assert (ours.get_linestyle(), theirs.get_linestyle()) == ("-", "--")
  assert theirs.get_markerfacecolor() == "white"
  assert theirs.get_label() == "paper, b"


def test_each_way_of_guiding_has_its_curve_and_its_best(cells):
  """Temperatures are curves over their own values, from the plain cell on."""
  main = [cell | {"guidance": "cfg"} for cell in cells[: len(MAIN)]]

  def make(name, w, fields, variant, distance):
    metrics = {"fd_embedded": distance, "is_embedded": 8.0 + distance}
    own = {"id": name, "w": w, "fields": fields, "variant": variant}
    return main[0] | own | {"metrics": metrics}

  by = {"guidance": "classifier"}
  others = [
    make("c0", 0.5, by, "classifier", 3.0),
    make("c1", 1.0, by, "classifier", 2.0),
    make("s0", 0, {"score_scale": 1.2}, "score_scale 1.2", 1.5),
    make("s1", 0, {"score_scale": 1.1}, "score_scale 1.1", 1.0),
  ]
  names = ("fd_embedded", "is_embedded")
  curves = plots.variant_curves([*main, *others], *names)
  assert [curve.label for curve in curves] == [
    *("cfg", "classifier", "score_scale at w = 0"),
  ]
  np.testing.assert_array_equal(curves[1].points[:, [0, 2]], [[0.5, 3], [1, 2]])
  np.testing.assert_array_equal(
    curves[2].points[:, [0, 2]], [[1, 2.12], [1.1, 1], [1.2, 1.5]]
  )
  rows = page.table_rows([*others, *main], [], "fd_embedded")
  best = [row["id"] for row in rows if row["best"]]
  assert best == ["p0.1_T32_w0.3", "c1", "s1"]
  assert [row["id"] for row in rows[-2:]] == ["s1", "s0"]
