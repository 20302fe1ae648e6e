"""The cost of a sweep before it runs: evaluations, FLOP and hours."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from cfgd import build
from cfgd import identity
from cfgd import methods
from cfgd.runtime import errors
from cfgd.sweep import grid

# A step's backward pass costs twice its forward pass.
_PASSES_OF_A_STEP = 3
_ASSUMED = " *"
_ASSUMPTION = (
  "* No run in sampling.guide_dir yet: assumed as dear as the model."
)


class Cost(NamedTuple):
  """Cost of one part of a sweep.

  Attributes:
    name: of the part, for readers.
    cells: number of cells; 0 for a training.
    evaluations: per image, in forward passes of the model of equal FLOP.
    images: sampled, or trained on.
    flop: total.
  """

  name: str
  cells: int
  evaluations: float
  images: int
  flop: float


def price(config, workdir, evaluations_per_second):
  """Return the cost of a whole sweep as lines of text, see `table`."""
  return table(
    costs(config, grid.plan(config, workdir)), evaluations_per_second
  )


def run_dirs(config, workdir):
  """Return the folders of the models that a sweep trains."""
  return [str(k.run_dir) for k in grid.trainings(grid.plan(config, workdir))]


def jobs(config, workdir):
  """Return a line that says into which jobs a sweep divides."""
  plan = grid.plan(config, workdir)
  names = [training.run_dir.name for training in grid.trainings(plan)]
  count = len(names)
  return (
    f"Jobs: --part=trainings in up to {count}, --shard=1/{count} and so on, "
    f"one for each model ({', '.join(names)}); then --part=cells in up to "
    f"{len(plan)}."
  )


def evaluations(config, guide_cost):
  """Return the forward passes that one image of a config takes.

  Args:
    config: ConfigDict of one cell.
    guide_cost: FLOP of a forward pass of the guiding network, as a part of the
      model's.
  """
  sampling, classes = config.sampling, config.data.num_classes
  method = methods.METHODS[sampling.guidance]
  low, high = tuple(sampling.interval) or (-math.inf, math.inf)
  logsnrs = np.asarray(build.evaluated_logsnrs(config))
  inside = (low <= logsnrs) & (logsnrs < high)
  strengths = (
    methods.Strength(sampling.w * k, sampling.classifier_w * k) for k in inside
  )
  return sum(method.evaluations(k, guide_cost, classes) for k in strengths)


def costs(config, plan):
  """Return the Cost of each part of a planned sweep, trainings first."""
  one = build.forward_flop(config)
  seeds = len({planned.cell.seed for planned in plan})
  parts = [
    _training(f"training, p_uncond={p:g}", config, one, seeds)
    for p in sorted({planned.cell.p_uncond for planned in plan})
  ]
  classifier, share = grid.classifier_config(config), 0.0
  if classifier is not None:
    share = build.forward_flop(classifier) / one
    name = "training the classifier"
    parts.append(_training(name, classifier, share * one, seeds))
  # Cells of all seeds together, in the order within a seed.
  plan = sorted(plan, key=lambda planned: grid.order(planned.cell))
  for _, members in itertools.groupby(
    plan, lambda k: (k.cell.p_uncond, k.cell.T, k.cell.variant)
  ):
    parts.append(_sampling(list(members), share, one))
  return parts


def _training(name, config, one, seeds):
  images = config.train.steps * config.train.batch_size * seeds
  name += f", {seeds} seeds" if seeds > 1 else ""
  passes = _PASSES_OF_A_STEP
  return Cost(name, 0, passes, images, images * passes * one)


def _sampling(members, classifier_share, one):
  """Return the cost of cells that differ only in w and seed."""
  cell, config = members[0].cell, members[0].config
  share = classifier_share
  if members[0].guide_config is None:
    share = _guide_cost(config, one)
  each = [
    evaluations(planned.config, 1.0 if share is None else share)
    for planned in members
  ]
  images = config.sampling.num_samples * len(members)
  name = f"p_uncond={cell.p_uncond:g}, T={cell.T}"
  name += f", {cell.variant}" if cell.variant else ""
  name += _ASSUMED if share is None else ""
  mean = sum(each) / len(each)
  return Cost(name, len(members), mean, images, images * mean * one)


def _guide_cost(config, one):
  """Return the FLOP of sampling.guide_dir's network as a part of the model's.

  None if it is unknown, because there is no run in this folder yet.
  """
  if not methods.METHODS[config.sampling.guidance].guide:
    return 0.0
  if not config.sampling.guide_dir:  # an earlier checkpoint of the model
    return 1.0
  try:
    guide = identity.recorded_config(config.sampling.guide_dir)
  except errors.UserError:
    return None
  return build.forward_flop(guide) / one


def table(parts, evaluations_per_second):
  """Return the costs as lines of text, the sum last.

  Args:
    parts: of `costs`.
    evaluations_per_second: forward passes of the model, of one image each, that
      the hardware makes; 0 if unknown, which leaves the hours out.
  """
  one = parts[0].flop / (parts[0].images * parts[0].evaluations)
  cells, _, images, flop = map(sum, list(zip(*parts, strict=True))[1:])
  width = max(len(part.name) for part in parts)
  row = f"{{:{width}}} {{:>5}} {{:>13}} {{:>11}} {{:>11}} {{:>9}}".format
  lines = [row("", "cells", "images", "evaluations", "PFLOP", "hours")]
  for part in [*parts, Cost("in all", cells, math.nan, images, flop)]:
    count, hours = part.flop / one, ""
    if evaluations_per_second:
      hours = f"{count / evaluations_per_second / 3600:,.1f}"
    size = f"{part.images:,}", f"{count:.3g}", f"{part.flop / 1e15:,.3g}"
    lines.append(row(part.name, part.cells or "", *size, hours))
  assumed = any(part.name.endswith(_ASSUMED) for part in parts)
  return lines + [_ASSUMPTION] * assumed
