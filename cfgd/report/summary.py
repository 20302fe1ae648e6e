"""What a report shows: the results of a sweep, and what stands beside them."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import ml_collections

from cfgd.metrics import evaluate
from cfgd.report import blocks
from cfgd.sweep import grid
from cfgd.sweep import results as results_lib

# Fields of `sampling` that are strengths of their own at w = 0, and the value
# that leaves the model alone.
TEMPERATURES = {"score_scale": 1.0, "noise_scale": 1.0}


@dataclasses.dataclass(frozen=True)
class Summary:
  """The contents of a report.

  Attributes:
    config: of the sweep; `config.sweep` has title, notes, and the names of the
      distance (lower is better) and the score (higher is better).
    cells: all cells of the sweep.
    results: of those that are done, one for each seed.
    real: scores of held-out images, see `metrics.evaluate.held_out`.
    beside: published numbers to compare with, such as `paper.printed.Table`;
      None for none.
    remarks: sentences to add to the captions of pictures, by picture.
    tally: a sentence for the top of the page; "" for none.
    lead: sections that stand before the curves.
    sections: more sections, before that of the cells.
  """

  config: ml_collections.ConfigDict
  cells: Sequence[grid.Cell]
  results: Sequence[results_lib.Result]
  real: Mapping[str, Any] | None = None
  beside: Any = None
  remarks: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tally: str = ""
  lead: Sequence[blocks.Section] = ()
  sections: Sequence[blocks.Section] = ()

  @property
  def distance(self):
    """Name of the metric that is better when lower."""
    return self.config.sweep.distance

  @property
  def score(self):
    """Name of the metric that is better when higher."""
    return self.config.sweep.score

  @functools.cached_property
  def averages(self):
    """Means over the seeds, in the order of the table."""
    means = results_lib.average(self.results)
    return sorted(means, key=lambda result: order(result.cell))

  @functools.cached_property
  def best(self):
    """The cells of lowest distance of each (p_uncond, T, family)."""
    lowest = {}
    for result in self.averages:
      distance, kind = result.metric(self.distance), group(result.cell)
      least, _ = lowest.get(kind, (math.inf, None))
      if math.isfinite(distance) and distance < least:
        lowest[kind] = distance, result.cell
    return {cell for _, cell in lowest.values()}

  @property
  def plain(self):
    """Averages without variants; all of them if there are only variants."""
    return [r for r in self.averages if not r.cell.variant] or self.averages

  @property
  def main(self):
    """The main curve's {"p_uncond", "T"}: those that most plain cells have."""
    return commonest(self.plain, "p_uncond", "T")

  @property
  def metric_names(self):
    """All metrics, in the order in which they turn up."""
    names = dict.fromkeys(k for r in self.results for k in r.metrics)
    return list(names) or [self.distance, self.score]


def of_sweep(config, workdir, plan):
  """Return the Summary of what a planned sweep has done so far."""
  cells = [planned.cell for planned in plan]
  real = evaluate.held_out(config, workdir)
  return Summary(config, cells, results_lib.read(plan), real)


def _temperature(cell):
  """Return the temperature that alone sets a cell at w = 0 apart, or None."""
  names = [name for name, _ in cell.fields]
  alone = len(names) == 1 and cell.w == 0 and names[0] in TEMPERATURES
  return names[0] if alone else None


def family(cell):
  """Return the name shared by cells that differ only in their strength."""
  return _temperature(cell) or cell.variant


def strength(cell):
  """Return w, or the temperature that alone sets the cell apart."""
  return cell.fields[0][1] if _temperature(cell) else cell.w


def group(cell):
  """Return what the cells of one curve share."""
  return cell.p_uncond, cell.T, family(cell)


def order(cell):
  """Return the sort key of the table of cells."""
  return *group(cell), strength(cell)


def commonest(results, *axes):
  """Return the values of axes that most results share.

  Of equally common ones that with the lowest p_uncond, then with the highest T.
  """
  cells = sorted(
    (result.cell for result in results), key=lambda c: (c.p_uncond, -c.T)
  )
  values = [tuple(getattr(cell, axis) for axis in axes) for cell in cells]
  return dict(zip(axes, max(values, key=values.count), strict=True))


def select(results, **axes):
  """Return the results of cells with these values."""
  return [
    result
    for result in results
    if all(getattr(result.cell, name) == v for name, v in axes.items())
  ]
