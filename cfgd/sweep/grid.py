"""The cells of a sweep."""

import itertools
from typing import NamedTuple


class Cell(NamedTuple):
  """One point of a sweep.

  Attributes:
    p_uncond: label-drop probability of the model.
    T: network evaluations per branch.
    w: the paper's guidance strength.
  """

  p_uncond: float
  T: int
  w: float

  @property
  def id(self):
    """Name that is also a folder's."""
    return f"p{self.p_uncond:g}_T{self.T}_w{self.w:g}"


def cells(grids):
  """Return the cells of a union of products, each once.

  Args:
    grids: name -> {"p_uncond", "T", "w"}, each a sequence of numbers.

  Returns:
    List of Cell by p_uncond, then T, then w: one training per p_uncond, one
    compilation per T.
  """
  points = {
    Cell(float(p), int(t), float(w))
    for axes in grids.values()
    for p, t, w in itertools.product(axes["p_uncond"], axes["T"], axes["w"])
  }
  return sorted(points)
