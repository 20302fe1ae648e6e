"""Results that no sweep has made."""

from cfgd.sweep import grid
from cfgd.sweep import results


def make_result(p_uncond, T, w, metrics, *, fields=(), seed=None, **changes):
  """Return a Result; `fields` is {name: value} or pairs."""
  cell = grid.Cell(p_uncond, T, w, tuple(dict(fields).items()), seed)
  about = {"sampler": "ancestral", "v": 0.3, "num_samples": 1000}
  about |= {"seconds": 21.3, "provenance": {}, "guidance": "cfg"}
  return results.Result(cell, **about | changes, metrics=metrics)
