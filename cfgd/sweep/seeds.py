"""Cells that differ in nothing but their seed, as one."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np


def point(cell: Mapping[str, Any]) -> str:
  """Return what names a cell whatever its seed."""
  return cell.get("point", cell["id"])


def average(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Return one cell per point, of the mean of each metric over its seeds.

  Args:
    cells: finished ones.

  Returns:
    Cells as the first of their seeds, with `id` the point's, the means as
    "metrics", the sum of "seconds", "seeds" the number of seeds, and "spread":
    the standard deviations (ddof 1), where there are several.
  """
  rows = []
  for _, group in itertools.groupby(sorted(cells, key=point), point):
    group = list(group)
    common = set.intersection(*(set(c["metrics"]) for c in group))
    names = [name for name in group[0]["metrics"] if name in common]
    values = np.array([[c["metrics"][name] for name in names] for c in group])
    spread = {}
    if len(group) > 1:
      deviations = values.astype(float).std(axis=0, ddof=1)
      spread = dict(zip(names, deviations.tolist(), strict=True))
    means = group[0]["metrics"]
    if len(group) > 1:
      means = dict(zip(names, values.mean(axis=0).tolist(), strict=True))
    rows.append(
      {
        **group[0],
        "id": point(group[0]),
        "metrics": means,
        "spread": spread,
        "seeds": len(group),
        "seconds": sum(c["seconds"] for c in group),
      }
    )
  return rows
