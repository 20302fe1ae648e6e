"""A small sweep, and results that no sweep has made."""

from cfgd.sweep import grid
from cfgd.sweep import results
from tests import conftest


def small_sweep():
  """Return a tiny sweep of two models, two cells of the first."""
  config = conftest.make_tiny()
  config.sweep.grids.main.T = (3,)
  config.sweep.grids.main.w = (0.0, 0.5)
  del config.sweep.grids.fast
  config.sweep.grids.T = {"p_uncond": (0.5,), "T": (2,), "w": (1.0,)}
  return config


def make_result(p_uncond, T, w, metrics, *, fields=(), seed=None, **changes):
  """Return a Result; `fields` is {name: value} or pairs."""
  cell = grid.Cell(p_uncond, T, w, tuple(dict(fields).items()), seed)
  about = {"sampler": "ancestral", "v": 0.3, "num_samples": 1000}
  about |= {"seconds": 21.3, "provenance": {}, "guidance": "cfg"}
  return results.Result(cell, **about | changes, metrics=metrics)
