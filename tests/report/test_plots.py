"""Plots of curves that no sweep has made."""

import math

import numpy as np
import pytest

from cfgd.report import plots


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


def effect(**changes):
  row = plots.Effect("a", 1.1, 1.5, 2.0, None, 1.0, None, "holds", "#007A5A")
  return row._replace(**changes)


def test_a_forest_has_a_row_for_each_claim():
  groups = {
    "Main claims": [
      effect(outer=(0.0, math.inf)),
      effect(text="b", alike=(0.8, 1.25), verdict="not resolved"),
    ],
    "Secondary": [effect(text="c", low=math.nan, middle=math.nan)],
    "None": [],
  }
  (ax,) = plots.forest_figure(groups).axes
  labels = [label.get_text() for label in ax.get_yticklabels()]
  assert labels == ["Main claims", "a", "b", "Secondary", "c"]
  words = [text.get_text() for text in ax.texts]
  assert words == ["holds", "not resolved", "holds"]
  marks = [line.get_marker() for line in ax.lines]
  assert [marks.count(k) for k in "o<>"] == [2, 1, 1]  # c has no estimate
  low, high = ax.get_xlim()
  assert low < 1.1 < 2.0 < high
  assert len(ax.collections) == 1  # the band of b


def test_real_images_are_a_star_beside_the_frontier():
  line = plots.Curve("a", np.array([[0, 8, 1.5], [1, 9, 2]]))
  names = {"distance": "fd", "score": "is", "title": ""}
  (ax,) = plots.frontier_figure([line], **names, real={"fd": 1, "is": 9}).axes
  assert ax.lines[1].get_marker() == "*"
  assert ax.lines[1].get_xydata().tolist() == [[9, 1]]
  (ax,) = plots.frontier_figure([line], **names, real={"fd": 1}).axes
  assert len(ax.lines) == 1


def test_real_images_are_lines_over_w():
  line = plots.Curve("a", np.array([[0, 8, 1.5], [1, 9, 2]]))
  figure = plots.over_w_figure([line], "fd", "is", {"fd": 0.5, "is": 9.9})
  for ax, value in zip(figure.axes, (0.5, 9.9), strict=True):
    dotted = ax.lines[1]
    assert list(dotted.get_ydata()) == [value] * 2
    low, high = ax.get_ylim()
    assert low < value < high
  figure = plots.over_w_figure([line], "fd", "is", {"fd": math.nan})
  assert all(len(ax.lines) == 1 for ax in figure.axes)


def test_a_published_curve_has_our_colour_and_is_hollow_and_dashed():
  points = np.array([[0, 8, 2], [1, 9, 1]])
  lines = [plots.Curve("a", points), plots.Curve("b", points)]
  lines.append(plots.Curve("b", points + 1, source="paper"))
  (ax,) = plots.frontier_figure(lines, "fid", "is", "").axes
  ours, theirs = ax.lines[1:]
  assert ours.get_color() == theirs.get_color() != ax.lines[0].get_color()
  assert (ours.get_linestyle(), theirs.get_linestyle()) == ("-", "--")
  assert theirs.get_markerfacecolor() == "white"
  assert theirs.get_label() == "paper, b"


def test_the_spread_is_drawn():
  points, spread = np.array([[0, 8, 2], [1, 9, 1]]), np.full((2, 3), 0.1)
  for own, bars in ((spread, 2), (0 * spread, 0)):  # across and along
    line = plots.Curve("a", points, own)
    (axes,) = plots.frontier_figure([line], "fd", "is", "").axes
    assert len(axes.collections) == bars
