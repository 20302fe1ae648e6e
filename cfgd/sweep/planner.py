"""What a sweep costs, before anyone pays: evaluations, FLOP and hours."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from cfgd import config as config_lib
from cfgd import diffusion
from cfgd import networks
from cfgd.runtime import errors
from cfgd.sweep import grid

# A step's backward pass costs twice its forward pass.
_PASSES_OF_A_STEP = 3
# A gradient with respect to the input: forward, and half of a backward pass.
_PASSES_OF_A_GRADIENT = 2
# A second network of the model's own size, as a part of it.
_AS_MODEL = 1.0
_ASSUMED = " *"
_ASSUMPTION = "* There is no run in sampling.second_dir: as dear as the model."


class Cost(NamedTuple):
  """Part of a sweep.

  Attributes:
    what: for readers.
    cells: number of them; 0 for a training.
    evaluations: forward passes of the model, or their equivalent in FLOP, per
      image.
    images: generated, or trained on.
    flop: in all.
  """

  what: str
  cells: int
  evaluations: float
  images: int
  flop: float


def evaluations(config, second_share):
  """Return the forward passes that one image of a config takes.

  Args:
    config: ConfigDict of one cell.
    second_share: FLOP of a forward pass of the classifier or the weaker model,
      as a part of the model's.
  """
  sampling = config.sampling
  low, high = tuple(sampling.interval) or (-math.inf, math.inf)
  logsnrs = diffusion.logsnr_grid(sampling.T, **config_lib.logsnr_range(config))
  inside = int(np.sum((logsnrs >= low) & (logsnrs < high)))
  guided = inside if sampling.w != 0 else 0
  gradient = _PASSES_OF_A_GRADIENT * second_share
  more = {
    "none": 0,
    "cfg": guided,
    "auto": guided * second_share,
    "marginal": guided * (config.data.num_classes + second_share),
    "classifier": guided * gradient,
    # Its strength is w + 1: also where w is 0, and outside of the interval.
    "classifier_null": (sampling.T if sampling.w != -1 else 0) * gradient,
    "cfg+classifier": guided
    + (inside if sampling.classifier_w else 0) * gradient,
  }
  return sampling.T + more[sampling.guidance]


def costs(config, cells, config_at):
  """Return what the parts of a sweep cost, trainings first.

  Args:
    config: ConfigDict of the sweep.
    cells: of `grid.cells`.
    config_at: cell -> ConfigDict.

  Returns:
    List of Cost.
  """
  one = networks.forward_flop(config)
  classifier = config_lib.classifier_config(config)
  share = networks.forward_flop(classifier) / one if classifier else 0.0
  seeds = len({cell.seed for cell in cells})
  parts = [
    _training(f"training, p_uncond={p:g}", config, one, seeds)
    for p in sorted({cell.p_uncond for cell in cells})
  ]
  if classifier:
    parts.append(
      _training("training the classifier", classifier, share * one, seeds)
    )
  # The order of the cells within each seed.
  cells = sorted(cells, key=grid.order)
  for (p, steps, variant), members in itertools.groupby(cells, _group):
    members = list(members)
    second = _second_share(config_at(members[0]), share, one)
    each = [
      evaluations(config_at(cell), _AS_MODEL if second is None else second)
      for cell in members
    ]
    images = config.sampling.num_samples * len(members)
    what = ", ".join(filter(None, [f"p_uncond={p:g}, T={steps}", variant]))
    what += _ASSUMED if second is None else ""
    mean = sum(each) / len(each)
    parts.append(Cost(what, len(members), mean, images, images * mean * one))
  return parts


def _second_share(config, own, one):
  """Return what guidance's second network costs; None where that is not known.

  Args:
    config: ConfigDict of one cell.
    own: share of the classifier that the sweep trains, 0 if none.
    one: FLOP of the model's forward pass.
  """
  kind, folder = config_lib.second_network(config), config.sampling.second_dir
  if kind is None or (kind == "classifier" and own and not folder):
    return own
  if not folder:  # an earlier checkpoint of the model
    return _AS_MODEL
  try:
    theirs = config_lib.from_dict(config_lib.read_recorded(folder))
  except errors.UserError:  # not trained yet
    return own if kind == "classifier" and own else None
  return networks.forward_flop(theirs) / one


def _group(cell):
  return cell.p_uncond, cell.T, cell.variant


def _training(what, config, one, seeds):
  images = config.train.steps * config.train.batch_size * seeds
  what += f", {seeds} seeds" if seeds > 1 else ""
  passes = _PASSES_OF_A_STEP
  return Cost(what, 0, passes, images, images * passes * one)


def table(parts, evaluations_per_second):
  """Return the costs as lines of text, the sum last.

  Args:
    parts: of `costs`.
    evaluations_per_second: forward passes of the model on one image that the
      hardware makes in a second; 0 where that is not known: no hours.
  """
  one = parts[0].flop / (parts[0].images * parts[0].evaluations)
  total = Cost(
    what="in all",
    cells=sum(part.cells for part in parts),
    evaluations=math.nan,
    images=sum(part.images for part in parts),
    flop=sum(part.flop for part in parts),
  )
  row = "{:34} {:>5} {:>13} {:>11} {:>11} {:>9}".format
  lines = [row("", "cells", "images", "evaluations", "PFLOP", "hours")]
  for part in [*parts, total]:
    count = part.flop / one
    hours = (
      count / evaluations_per_second / 3600 if evaluations_per_second else 0
    )
    lines.append(
      row(
        part.what,
        part.cells or "",
        f"{part.images:,}",
        f"{count:.3g}",
        f"{part.flop / 1e15:,.3g}",
        f"{hours:,.1f}" if hours else "",
      )
    )
  assumed = any(part.what.endswith(_ASSUMED) for part in parts)
  return lines + [_ASSUMPTION] * assumed
