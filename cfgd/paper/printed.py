"""The printed numbers of Ho & Salimans (arXiv:2207.12598): Tables 1 and 2.

50,000 samples per row, FID against the training set; the rows w = 0 are without
guidance. The paper swept w in {0, 0.1, ..., 4} and prints 14 of these values.
It does not state p_uncond of its 128x128 models, and states T of Table 1 only
by the remark that 256 is its balanced choice.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cfgd.report import plots
from cfgd.runtime import errors

# w, then FID and Inception score at p_uncond = 0.1, 0.2 and 0.5.
_TABLE_1 = (
  (0.0, (1.8, 1.8, 2.21), (53.71, 52.9, 47.61)),
  (0.1, (1.55, 1.62, 1.91), (66.11, 64.58, 56.1)),
  (0.2, (2.04, 2.1, 2.08), (78.91, 76.99, 65.6)),
  (0.3, (3.03, 2.93, 2.65), (92.8, 88.64, 74.92)),
  (0.4, (4.3, 4.0, 3.44), (106.2, 101.11, 84.27)),
  (0.5, (5.74, 5.19, 4.34), (119.3, 112.15, 92.95)),
  (0.6, (7.19, 6.48, 5.27), (131.1, 122.13, 102.0)),
  (0.7, (8.62, 7.73, 6.23), (141.8, 131.6, 109.8)),
  (0.8, (10.08, 8.9, 7.25), (151.6, 140.82, 116.9)),
  (0.9, (11.41, 10.09, 8.21), (161.0, 150.26, 124.6)),
  (1.0, (12.6, 11.21, 9.13), (170.1, 158.29, 131.1)),
  (2.0, (21.03, 18.79, 16.16), (225.5, 212.98, 183.0)),
  (3.0, (24.83, 22.36, 19.75), (250.4, 237.65, 208.9)),
  (4.0, (26.22, 23.84, 21.48), (260.2, 248.97, 225.1)),
)
# w, then FID and Inception score at T = 128, 256 and 1024.
_TABLE_2 = (
  (0.0, (8.11, 7.27, 7.22), (81.46, 82.45, 81.54)),
  (0.1, (5.31, 4.53, 4.5), (105.01, 106.12, 104.67)),
  (0.2, (3.7, 3.03, 3.0), (130.79, 132.54, 130.09)),
  (0.3, (3.04, 2.43, 2.43), (156.09, 158.47, 156.0)),
  (0.4, (3.02, 2.49, 2.48), (183.01, 183.41, 180.88)),
  (0.5, (3.43, 2.98, 2.96), (206.94, 207.98, 204.31)),
  (0.6, (4.09, 3.76, 3.73), (227.72, 228.83, 226.76)),
  (0.7, (4.96, 4.67, 4.69), (247.92, 249.25, 247.89)),
  (0.8, (5.93, 5.74, 5.71), (265.54, 267.99, 265.52)),
  (0.9, (6.89, 6.8, 6.81), (280.19, 283.41, 281.14)),
  (1.0, (7.88, 7.86, 7.8), (295.29, 297.98, 294.56)),
  (2.0, (15.9, 15.93, 15.75), (378.56, 377.37, 373.18)),
  (3.0, (19.77, 19.77, 19.56), (409.16, 407.44, 405.68)),
  (4.0, (21.55, 21.53, 21.45), (422.29, 421.03, 419.06)),
)


class Row(NamedTuple):
  """One printed result of classifier-free guidance.

  Attributes:
    p_uncond: label-drop probability; None where the paper does not state it.
    T: network evaluations per branch.
    w: guidance strength.
    v: interpolation of the reverse variance.
    metrics: "fid" and "is", named as evaluation names them.
  """

  p_uncond: float | None
  T: int
  w: float
  v: float
  metrics: Mapping[str, float]


class Table(NamedTuple):
  """A table of the paper; a report shows it beside a sweep's own numbers."""

  title: str
  rows: tuple[Row, ...]
  source: str = "paper"

  def find(self, cell, result=None):
    """Return the metrics printed for the settings of a cell.

    {} if there are none, as for other ways of guiding. A p_uncond that the
    paper does not state matches any; a result's sampler and v must match too.
    """
    if cell.variant or (result and result.sampler != "ancestral"):
      return {}
    for row in self.rows:
      if (
        row.p_uncond in (None, cell.p_uncond)
        and (row.T, row.w) == (cell.T, cell.w)
        and (not result or row.v == result.v)
      ):
        return row.metrics
    return {}

  def curves(self, axis, fixed, distance, score):
    """Return one `plots.Curve` for each value of an axis.

    Args:
      axis: "p_uncond" or "T".
      fixed: values of other axes; what the paper does not state matches.
      distance: metric that is better when lower.
      score: metric that is better when higher.
    """
    lines = {}
    for row in self.rows:
      agrees = all(getattr(row, k) in (None, v) for k, v in fixed.items())
      value = getattr(row, axis)
      if agrees and value is not None and {distance, score} <= {*row.metrics}:
        point = row.w, row.metrics[score], row.metrics[distance]
        lines.setdefault(f"{axis} = {value:g}", []).append(point)
    return [
      plots.Curve(label, np.array(sorted(points)), source=self.source)
      for label, points in lines.items()
    ]


def _rows(printed, columns):
  """Return the rows of lines of w, FIDs and scores, one of each per column."""
  return tuple(
    Row(w=w, metrics={"fid": fid, "is": score}, **column)
    for w, fids, scores in printed
    for column, fid, score in zip(columns, fids, scores, strict=True)
  )


TABLES = {
  "table1_imagenet64": Table(
    "Table 1 (ImageNet 64x64)",
    _rows(
      _TABLE_1, [{"p_uncond": p, "T": 256, "v": 0.3} for p in (0.1, 0.2, 0.5)]
    ),
  ),
  "table2_imagenet128": Table(
    "Table 2 (ImageNet 128x128)",
    _rows(
      _TABLE_2, [{"p_uncond": None, "T": T, "v": 0.2} for T in (128, 256, 1024)]
    ),
  ),
}


def table(name):
  """Return a table by its name, None for "".

  Raises:
    errors.UserError: there is no such table.
  """
  if name and name not in TABLES:
    raise errors.UserError(
      f"sweep.paper={name!r}: must be '' or one of {tuple(TABLES)}"
    )
  return TABLES[name] if name else None
