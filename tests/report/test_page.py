"""The report of a sweep: what stands in its files."""

import base64
import csv
import dataclasses
from html import parser
import io
import json
import math
import pathlib
import re

import numpy as np
from PIL import Image
import pytest

from cfgd.report import page
from cfgd.report import pictures
from cfgd.report import summary as summary_lib
from cfgd.sweep import grid
from configs import base
from tests.sweep import made

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


def make_cell(folder, p_uncond, T, w, distance, score, **options):
  """Return a Result with a picture of its samples."""
  pixels = np.random.default_rng(0).integers(0, 255, (24, 120), np.uint8)
  path = folder / f"{p_uncond}_{T}_{w}" / "grid.png"
  path.parent.mkdir(exist_ok=True)
  Image.fromarray(pixels).save(path)
  metrics = {"fd_embedded": distance, "is_embedded": score}
  about = {"config": "abc", "weights": "<ema>", "step": 500 + T}
  options = {"folder": path.parent, "provenance": about} | options
  return made.make_result(p_uncond, T, w, metrics, **options)


def make_cells(folder):
  rows = [(0.1, 32, *row) for row in MAIN] + OTHER
  return [make_cell(folder, *row) for row in rows]


@pytest.fixture
def cells(tmp_path):
  return make_cells(tmp_path)


@pytest.fixture
def planned(cells):
  return [*(result.cell for result in cells[::-1]), grid.Cell(0.5, 32, 0.3)]


def make_summary(cells, planned, real=None, **sweep):
  config = base.get_config()
  names = {"distance": "fd_embedded", "score": "is_embedded"}
  text = {"title": "A sweep", "notes": ("Not a benchmark.",)}
  config.sweep.update(names | text | sweep)
  return summary_lib.Summary(config, planned, cells, real)


def run(folder, cells, planned, **options):
  page.write(make_summary(cells, planned, **options), folder / "out")
  return folder / "out"


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
    if tag not in ("meta", "img", "input"):
      self.open.append(tag)
    assert "href" not in dict(attrs)
    self.sources += [v for k, v in attrs if k == "src"]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_csv_round_trips_every_value(tmp_path, cells, planned):
  cells[0].metrics["fd_embedded"] = 1 / 3
  cells[1].metrics.clear()
  cells[1].metrics.update({"fd_embedded": math.inf, "recall": np.float32(0.1)})
  text = (run(tmp_path, cells, planned) / "results.csv").read_text()
  rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
  assert len(rows) == len(cells)
  for result in cells:
    row = rows[result.cell.id]
    for key in ("p_uncond", "T", "w"):
      assert float(row[key]) == getattr(result.cell, key)
    for key in ("v", "num_samples", "seconds"):
      assert float(row[key]) == getattr(result, key)
    assert float(row["s"]) == 1 + result.cell.w
    assert row["sampler"] == "ancestral"
    for key in ("fd_embedded", "is_embedded", "recall"):
      if key in result.metrics:
        assert np.float32(row[key]) == np.float32(result.metrics[key])
      else:
        assert row[key] == ""
  assert float(rows[cells[0].cell.id]["fd_embedded"]) == 1 / 3


def rows_of(text):
  """Return the fields of the rows of cells in Markdown."""
  lines = [k for k in text.splitlines() if k.startswith("| 0")]
  return [[field.strip() for field in k.split("|")[1:-1]] for k in lines]


def test_rows_are_ordered_and_the_best_of_each_group_marked(
  tmp_path, cells, planned
):
  cells[0].metrics["fd_embedded"] = -math.inf
  cells[1].metrics["fd_embedded"] = math.nan
  summary = make_summary(cells, planned)
  assert {cell.id for cell in summary.best} == {
    *("p0.1_T8_w0.3", "p0.1_T32_w0.3", "p0.2_T32_w0.3"),
  }
  page.write(summary, tmp_path)
  rows = rows_of((tmp_path / "report.md").read_text())
  order = [(*map(float, k[:2]), float(k[2].split()[0])) for k in rows]
  assert order == sorted(order)
  assert len(order) == 9
  assert sum("**" in field for row in rows for field in row) == 3


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
  names = ["frontier_p_uncond", "strip", "frontier_T", "over_w"]
  assert links == [f"figures/{name}.png" for name in names]
  for link in links:
    Image.open(folder / link).verify()


def test_html_is_whole_and_needs_nothing_else(tmp_path, cells, planned):
  text = (run(tmp_path, cells, planned) / "report.html").read_text()
  assert not re.search(r"https?://|url\(|@import", text)
  page = Page(text)
  # Three curves, the strip, and the first samples of the slider.
  assert len(page.sources) == 5
  (points,) = (way["points"] for way in ways_of(text))
  assert [point["w"] for point in points] == [w for w, *_ in MAIN]
  for source in [*page.sources, *(point["source"] for point in points)]:
    head, data = source.split(",")
    assert head == "data:image/png;base64"
    Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()
  assert text.count("<strong>0.920</strong>") == 1
  assert text.count("<strong>") == 3 + 1  # and the headline
  assert points[2]["text"] == (
    "w=0.3 (s=1.3), fd_embedded 0.920, is_embedded 8.910"
  )
  for part in (
    "The Frechet distance is lowest at w = 0.3: 0.92, beside 2.12 at w = 0 and "
    "18.5 at w = 4.",
    '"is_embedded"',
    'weights: "<ema>"',
  ):
    assert part in page.text


def ways_of(text):
  """Return what the slider of a page may show."""
  data = re.search(r'<script type="application/json" id="ways">(.*)<', text)
  return json.loads(data[1].removesuffix("</script>"))


def test_the_slider_has_each_way_of_sampling(tmp_path, cells):
  guided = [
    make_cell(
      *(tmp_path, 0.1, 32, w, 3.0, 9.0 + w),
      fields={"guidance": "classifier"},
      guidance="classifier </script>",
    )
    for w in (1.0, 0.5)
  ]
  cold = make_cell(tmp_path, 0.1, 32, 0.0, 3, 9, fields={"noise_scale": 0.6})
  results = [*cells, *guided, cold]
  folder = run(tmp_path, results, [result.cell for result in results])
  first, second = ways_of((folder / "report.html").read_text())
  assert first["label"] == "cfg, ancestral, T = 32, p_uncond = 0.1"
  assert second["label"].startswith("classifier </script>, ancestral, T = 32")
  assert [point["w"] for point in second["points"]] == [0.5, 1.0]


def test_hostile_text_is_escaped(tmp_path, cells, planned):
  changes = {"title": HOSTILE, "notes": (HOSTILE + "\n# more",)}
  folder = run(tmp_path, cells, planned, **changes)
  page = Page((folder / "report.html").read_text())
  assert page.tags.count("script") == 2  # the slider's
  assert page.text.count(HOSTILE) == 3
  text = (folder / "report.md").read_text()
  assert "\n# more" not in text
  assert r'# a \<script src="x"\> \| &' in text


def test_values_that_are_not_finite_are_shown(tmp_path, cells, planned):
  cells[0].metrics["fd_embedded"] = math.nan
  cells[5].metrics["fd_embedded"] = math.inf
  folder = run(tmp_path, cells, planned)
  page = (folder / "report.html").read_text()
  assert "<td>nan</td>" in page
  assert "<td>inf</td>" in page
  text = (folder / "report.md").read_text()
  assert "| nan | 8.070 |" in text
  assert "| inf | 9.900 |" in text


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
  assert text.count("Star: held-out real images.") == 2
  without = run(tmp_path, cells, planned)
  for name in ("report.md", "report.html", "results.csv"):
    assert "real images" not in (without / name).read_text()


def test_pictures_stand_before_the_table(tmp_path, cells, planned):
  folder = run(tmp_path, cells, planned)
  text = (folder / "report.md").read_text()
  marks = ("](figures/", "## Curves", "## Cells", "| 0.1 | 32 |")
  assert [text.count(k) > 0 for k in marks] == [True] * 4
  assert sorted(marks, key=text.index) == list(marks)
  text = (folder / "report.html").read_text()
  marks = ("<figure>", "<summary>Cells", "<td>0.1</td>")
  assert sorted(marks, key=text.index) == list(marks)


def make_seeds(cells, copied=0.01):
  """Return the cells with three seeds, and a little noise."""
  rng = np.random.default_rng(0)
  return [
    dataclasses.replace(
      result,
      cell=result.cell._replace(seed=seed),
      metrics={
        name: value * math.exp(0.01 * rng.normal())
        for name, value in result.metrics.items()
      }
      | {"copied": copied},
      machine="2 cpu devices",
      training_seconds=60.0,
    )
    for result in cells
    for seed in (0, 1, 2)
  ]


def test_seeds_are_a_row_of_the_page_and_rows_of_the_csv(
  tmp_path, cells, planned
):
  seeds = make_seeds(cells)
  planned = [result.cell for result in seeds]
  folder = run(tmp_path, seeds[:-1], planned)
  text = (folder / "report.md").read_text()
  rows = rows_of(text)
  assert len(rows) == len(cells)
  assert all("".join(row).count(" ± ") == 3 for row in rows)
  assert "23 of 24 cells" in text
  assert "seeds 0, 1, 2" in text
  assert "Training took 23 minutes" in text
  assert text.count("Bars: one standard deviation over the seeds") == 3
  with (folder / "results.csv").open() as file:
    found = [row["seed"] for row in csv.DictReader(file)]
  assert found.count("1") == len(cells)
  assert len(found) == 23


def test_columns_are_explained(tmp_path, cells, planned):
  for result in cells:
    result.metrics.update({"fd_embedded_matched": 0.5, "copied": 0.0})
  text = (run(tmp_path, cells, planned) / "report.md").read_text()
  for start in ("fd_embedded_matched: fd_embedded after each", "copied: est"):
    assert text.count(start) == 1
  assert "fd_embedded_heldout" not in text


def test_no_finished_cell_is_a_report_too(tmp_path, planned):
  folder = run(tmp_path, [], planned)
  page = Page((folder / "report.html").read_text())
  assert page.text.count("not run") == len(planned)
  assert page.sources == []
  text = (folder / "report.md").read_text()
  assert "0 of 9 cells" in text
  assert text.count("not run") == len(planned)
  assert len((folder / "results.csv").read_text().splitlines()) == 1


def test_a_grid_that_is_missing_stops_nothing(tmp_path, cells, planned):
  cells[0] = dataclasses.replace(cells[0], folder=None)
  (cells[1].folder / "grid.png").unlink()
  text = (run(tmp_path, cells, planned) / "report.html").read_text()
  (way,) = ways_of(text)
  assert [point["w"] for point in way["points"]] == [w for w, *_ in MAIN[2:]]
  Page(text)


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


def test_curves_join_points_in_order_of_w(cells):
  line = pictures.curve("a", cells[5::-1], "fd_embedded", "is_embedded")
  assert line.points.tolist() == [[w, s, d] for w, d, s in MAIN]


def test_curves_have_the_spread_over_seeds(cells, planned):
  summary = make_summary(make_seeds(cells[: len(MAIN)]), planned)
  names = summary.distance, summary.score
  line = pictures.curve("a", summary.averages, *names)
  expected = [
    [0, row.spread["is_embedded"], row.spread["fd_embedded"]]
    for row in summary.averages
  ]
  np.testing.assert_array_equal(line.spread, expected)


def test_each_way_of_guiding_has_its_curve_and_its_best(cells):
  """Temperatures are curves over their own values, with the plain cell."""

  def make(w, fields, distance):
    metrics = {"fd_embedded": distance, "is_embedded": 8.0 + distance}
    return made.make_result(0.1, 32, w, metrics, fields=fields)

  results = [
    *cells[: len(MAIN)],
    make(0.5, {"guidance": "classifier"}, 3.0),
    make(1.0, {"guidance": "classifier"}, 2.0),
    make(0.0, {"score_scale": 1.2}, 1.5),
    make(0.0, {"score_scale": 1.1}, 1.0),
  ]
  summary = make_summary(results, [result.cell for result in results])
  curves = pictures.variant_curves(summary, {"p_uncond": 0.1, "T": 32})
  assert [curve.label for curve in curves] == [
    *("cfg", "classifier", "score_scale at w = 0"),
  ]
  np.testing.assert_array_equal(curves[1].points[:, [0, 2]], [[0.5, 3], [1, 2]])
  np.testing.assert_array_equal(
    curves[2].points[:, [0, 2]], [[1, 2.12], [1.1, 1], [1.2, 1.5]]
  )
  assert {cell.id for cell in summary.best} == {
    "p0.1_T32_w0.3",
    "p0.1_T32_w1_guidance-classifier",
    "p0.1_T32_w0_score_scale-1.1",
  }
  last = [result.cell.id for result in summary.averages[-2:]]
  assert last == ["p0.1_T32_w0_score_scale-1.1", "p0.1_T32_w0_score_scale-1.2"]


@pytest.mark.parametrize("own_v", [{}, {"v_from": "config"}])
def test_samplers_share_a_picture(cells, tmp_path, own_v):
  few = [
    make_cell(
      *(tmp_path, 0.1, 12, w, 1.0 + w, 8.0 + w),
      fields={"grid": "logsnr", "sampler": "sde_dpmpp_2m"} | own_v,
      sampler="sde_dpmpp_2m",
      v=None,
    )
    for w in (0.0, 1.0)
  ]
  guided = make_cell(
    *(tmp_path, 0.1, 12, 2.0, 9.0, 9.0), fields={"guidance": "classifier"}
  )
  results = [*cells, *few, guided]
  summary = make_summary(results, [result.cell for result in results])
  curves = pictures.sampler_curves(summary, {"p_uncond": 0.1})
  points = {line.label: line.points[:, 0].tolist() for line in curves}
  assert points == {
    "ancestral, T = 32": [w for w, *_ in MAIN],
    "ancestral, T = 8": [0.3],
    ", ".join(
      ["sde_dpmpp_2m, T = 12, grid logsnr"]
      + [f"{name} {value}" for name, value in own_v.items()]
    ): [0.0, 1.0],
  }
  folder = run(tmp_path, results, [result.cell for result in results])
  assert (folder / "figures/frontier_sampler.png").exists()
  text = (folder / "report.md").read_text()
  assert "sde_dpmpp_2m sampler, 1000 samples per cell" in text
