"""Results of the cells of a sweep: their files, and means over seeds."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import json
from typing import Any

from etils import epath
import numpy as np

from cfgd.runtime import files
from cfgd.sweep import grid


@dataclasses.dataclass(frozen=True)
class Result:
  """What a cell found, or several that differ only in their seed.

  Attributes:
    seconds: of sampling and scoring.
    training_seconds: of its model; None in older files, like `machine`.
    folder: of its pictures, grid.png and neighbours.png.
    spread: of each metric, the standard deviation over seeds; {} for one seed.
  """

  cell: grid.Cell
  guidance: str
  sampler: str
  v: float
  num_samples: int
  seconds: float
  metrics: Mapping[str, float]
  provenance: Mapping[str, Any]
  training_seconds: float | None = None
  machine: str | None = None
  folder: epath.Path | None = None
  spread: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def metric(self, name: str) -> float:
    """Return a metric, nan if there is none of this name."""
    return self.metrics.get(name, np.nan)

  def picture(self, name: str) -> epath.Path | None:
    """Return the path of one of the folder's pictures, None without it."""
    path = self.folder and self.folder / name
    return path if path and path.exists() else None

  def to_json(self) -> str:
    """Return the text of metrics.json."""
    cell = self.cell
    plain = {
      "id": cell.id,
      "point": cell.point,
      **cell._asdict(),
      "fields": dict(cell.fields),
      "variant": cell.variant,
      "guidance": self.guidance,
      "sampler": self.sampler,
      "v": self.v,
      "num_samples": self.num_samples,
      "seconds": self.seconds,
      "training_seconds": self.training_seconds,
      "machine": self.machine,
      "metrics": self.metrics,
      "provenance": self.provenance,
    }
    return json.dumps(plain, indent=2) + "\n"

  @classmethod
  def from_json(cls, text: str, folder: epath.Path | None = None):
    """Read metrics.json; keys that it lacks or has in addition do no harm."""
    plain = json.loads(text)
    fields = tuple(
      (name, tuple(value) if isinstance(value, list) else value)
      for name, value in plain.get("fields", {}).items()
    )
    axes = plain["p_uncond"], plain["T"], plain["w"]
    return cls(
      cell=grid.Cell(*axes, fields, plain.get("seed")),
      guidance=plain.get("guidance", "as configured"),
      folder=folder,
      **{name: plain[name] for name in _ALWAYS},
      **{name: plain.get(name) for name in ("training_seconds", "machine")},
    )


_ALWAYS = ("sampler", "v", "num_samples", "seconds", "metrics", "provenance")


def path(planned: grid.Planned) -> epath.Path:
  """Return the file whose existence says that a cell is done."""
  return planned.folder / "metrics.json"


def write(planned: grid.Planned, result: Result) -> None:
  """Write the result of a cell."""
  files.write_atomic(path(planned), result.to_json())


def read(plan: Sequence[grid.Planned]) -> list[Result]:
  """Return the results of the cells that are done."""
  return [
    Result.from_json(path(planned).read_text(), planned.folder)
    for planned in plan
    if path(planned).exists()
  ]


def average(results: Sequence[Result]) -> list[Result]:
  """Return one result per point, with means and spreads over its seeds.

  Everything else is that of the first seed, but for the sum of `seconds`.
  """
  by_point = lambda result: result.cell.point  # noqa: E731
  groups = itertools.groupby(sorted(results, key=by_point), by_point)
  return [_average(list(group)) for _, group in groups]


def _average(results):
  first, *others = results
  changes = {
    "cell": first.cell._replace(seed=None),
    "seconds": sum(result.seconds for result in results),
  }
  if others:
    names = [
      name
      for name in first.metrics
      if all(name in result.metrics for result in others)
    ]
    values = np.array(
      [[result.metrics[name] for name in names] for result in results], float
    )
    means, deviations = values.mean(axis=0), values.std(axis=0, ddof=1)
    changes["metrics"] = dict(zip(names, means.tolist(), strict=True))
    changes["spread"] = dict(zip(names, deviations.tolist(), strict=True))
  return dataclasses.replace(first, **changes)
