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
    seed: of training and sampling; None is the config's own.
  """

  p_uncond: float
  T: int
  w: float
  fields: tuple[tuple[str, Any], ...] = ()
  seed: int | None = None

  @property
  def id(self):
    """Name that is also a folder's."""
    return self.point + self.suffix

  @property
  def suffix(self):
    """What the seed adds to names of folders."""
    return "" if self.seed is None else f"_seed{self.seed}"

  @property
  def point(self):
    """The same for all seeds."""
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


def cells(grids, sampling, seeds=()):
  """Return the cells of a union of products, each once.

  Args:
    grids: name -> {"p_uncond", "T", "w", and any field of `sampling`}, each a
      sequence of values.
    sampling: the fields' values where a grid does not name them.
    seeds: to run every cell with; none for the config's own.

  Returns:
    List of Cell by seed, then p_uncond, then T, then the other fields, then w:
    one training per seed and p_uncond, one compilation per T and kind of
    sampler.
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
  return [
    point._replace(seed=seed)
    for seed in seeds or (None,)
    for point in sorted(points, key=order)
  ]


def order(point):
  """Return what cells of one seed are sorted by, see `cells`."""
  fields = point.fields
  return point.p_uncond, point.T, len(fields), repr(fields), point.w


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
