"""The cells of a sweep."""

import itertools
from typing import Any
from typing import NamedTuple

AXES = ("p_uncond", "T", "w")


class Cell(NamedTuple):
  """One point of a sweep.

  Attributes:
    p_uncond: label-drop probability of the model.
    T: network evaluations per branch.
    w: the paper's guidance strength.
    fields: other fields of `sampling` at values of their own, as (name, value).
  """

  p_uncond: float
  T: int
  w: float
  fields: tuple[tuple[str, Any], ...] = ()

  @property
  def id(self):
    """Name that is also a folder's."""
    own = "".join(f"_{name}-{_text(value)}" for name, value in self.fields)
    return f"p{self.p_uncond:g}_T{self.T}_w{self.w:g}{own}"

  @property
  def variant(self):
    """What sets it apart besides the three axes, for readers; '' if nothing."""
    return ", ".join(
      _text(value) if name == "guidance" else f"{name} {_text(value)}"
      for name, value in self.fields
    )


def _text(value):
  if isinstance(value, tuple):
    return ",".join(map(_text, value))
  return f"{value:g}" if isinstance(value, float) else str(value)


def cells(grids, sampling):
  """Return the cells of a union of products, each once.

  Args:
    grids: name -> {"p_uncond", "T", "w", and any field of `sampling`}, each a
      sequence of values.
    sampling: the fields' values where a grid does not name them.

  Returns:
    List of Cell by p_uncond, then T, then the other fields, then w: one
    training per p_uncond, one compilation per T and kind of sampler.
  """
  points = set()
  for axes in grids.values():
    others = [name for name in sorted(axes) if name not in AXES]
    names = (*AXES, *others)
    for p, t, w, *values in itertools.product(*(axes[name] for name in names)):
      fields = tuple(
        (name, value)
        for name, value in zip(others, values, strict=True)
        if value != sampling[name]
      )
      points.add(Cell(float(p), int(t), float(w), fields))
  return sorted(points, key=_order)


def _order(cell):
  fields = len(cell.fields), repr(cell.fields)
  return cell.p_uncond, cell.T, *fields, cell.w


def shard(cells, index, count):
  """Return the cells of one of several jobs: a run of neighbours.

  Neighbours share a model and a compilation, so that a job needs few of them.
  The jobs get about the same number of network evaluations.

  Args:
    cells: of `cells`.
    index: of the job, from 1.
    count: number of jobs.
  """
  ends = list(
    itertools.accumulate(cell.T * (2 if cell.w else 1) for cell in cells)
  )
  middles = [(end + start) / 2 for start, end in itertools.pairwise([0, *ends])]
  return [
    cell
    for cell, middle in zip(cells, middles, strict=True)
    if int(middle / ends[-1] * count) == index - 1
  ]
