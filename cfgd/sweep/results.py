"""Results of the cells of a sweep: their files, and means over seeds."""

from collections.abc import Mapping
import dataclasses
import itertools
import json
import math
import operator
from typing import Any

from etils import epath
import numpy as np

from cfgd.sweep import grid


@dataclasses.dataclass(frozen=True)
class Result:
  """What a cell found, or several that differ only in their seed.

  Attributes:
    v: of the sampler; None where it has no effect.
    seconds: of sampling and scoring.
    training_seconds: of the model; None in older files, like `machine`.
    folder: of the pictures, grid.png and neighbours.png.
    spread: standard deviation of each metric over the seeds, {} for one seed.
  """

  cell: grid.Cell
  sampler: str
  v: float | None
  num_samples: int
  seconds: float
  metrics: Mapping[str, float]
  provenance: Mapping[str, Any]
  guidance: str = "as configured"
  training_seconds: float | None = None
  machine: str | None = None
  folder: epath.Path | None = None
  spread: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def metric(self, name):
    """Return a metric, nan if there is none of this name."""
    return self.metrics.get(name, math.nan)

  def picture(self, name):
    """Return the path of one of the folder's pictures, None without it."""
    path = self.folder and self.folder / name
    return path if path and path.exists() else None

  def to_json(self):
    """Return the text of metrics.json."""
    cell = self.cell
    plain = {"id": cell.id, "point": cell.point, **cell._asdict()}
    plain |= {"fields": dict(cell.fields), "variant": cell.variant}
    plain |= {name: getattr(self, name) for name in _RECORDED}
    return json.dumps(plain, indent=2) + "\n"

  @classmethod
  def from_json(cls, text, folder=None):
    """Read the text of metrics.json; newer keys may be absent."""
    plain = json.loads(text)
    fields = tuple(
      (name, tuple(value) if isinstance(value, list) else value)
      for name, value in plain.get("fields", {}).items()
    )
    axes = plain["p_uncond"], plain["T"], plain["w"]
    recorded = {name: plain[name] for name in _RECORDED if name in plain}
    cell = grid.Cell(*axes, fields, plain.get("seed"))
    return cls(cell, folder=folder, **recorded)


_RECORDED = (
  *("guidance", "sampler", "v", "num_samples", "seconds", "training_seconds"),
  *("machine", "metrics", "provenance"),
)


def path(planned):
  """Return the file whose existence says that a cell is done."""
  return planned.folder / "metrics.json"


def read(plan):
  """Return the results of the cells of a plan that are done."""
  found = [
    (planned.cell, Result.from_json(path(planned).read_text(), planned.folder))
    for planned in plan
    if path(planned).exists()
  ]
  # Older files have older names of fields.
  return [dataclasses.replace(result, cell=cell) for cell, result in found]


def average(results):
  """Return one result per point, with means and spreads over its seeds.

  Everything else is that of the first seed, but for the sum of `seconds`.
  """
  by_point = operator.attrgetter("cell.point")
  groups = itertools.groupby(sorted(results, key=by_point), by_point)
  return [_average(list(group)) for _, group in groups]


def _average(results):
  first = results[0]
  metrics, spread = first.metrics, {}
  if len(results) > 1:
    names = [k for k in metrics if all(k in r.metrics for r in results)]
    values = np.array([[r.metrics[k] for k in names] for r in results], float)
    means, deviations = values.mean(axis=0), values.std(axis=0, ddof=1)
    metrics = dict(zip(names, means.tolist(), strict=True))
    spread = dict(zip(names, deviations.tolist(), strict=True))
  return dataclasses.replace(
    first,
    cell=first.cell._replace(seed=None),
    metrics=metrics,
    spread=spread,
    seconds=sum(result.seconds for result in results),
  )
