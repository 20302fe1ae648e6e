"""The cost of a sweep before it runs: evaluations, FLOP and hours."""

import itertools
import json
import math
import pathlib
import re
from typing import NamedTuple

import numpy as np

from cfgd import build
from cfgd import identity
from cfgd import methods
from cfgd.runtime import errors
from cfgd.sweep import grid

# Forward passes: a step's backward pass costs two, guidance has two branches.
_PASSES = {"train": 3, "sample": 2}
# Written by benchmarks.compile_table.
_ESTIMATES = pathlib.Path(__file__).with_name("estimates.json")
# Chips of a slice, https://docs.cloud.google.com/tpu/docs.
_LARGEST = {"v5e": 256, "v5p": 6144, "v6e": 256}
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


class Rates(NamedTuple):
  """Forward passes of the model, of one image each, in a second.

  Attributes:
    training: three of them make a training step's share of an image.
    sampling: in guided sampling.
  """

  training: float
  sampling: float


UNKNOWN = Rates(math.inf, math.inf)  # costs no hours, and none are shown


def price(config, workdir, rates):
  """Return the cost of a whole sweep as lines of text, see `table`."""
  return table(costs(config, grid.plan(config, workdir)), rates)


def rates(config, evaluations_per_second, topology):
  """Return the Rates that were measured, or a compiler's estimate of a slice.

  Args:
    config: ConfigDict of a sweep.
    evaluations_per_second: as measured, or 0.
    topology: such as v5p:4x4x4, or "".

  Raises:
    errors.UserError: there is no estimate for this network and chip.
  """
  if topology and evaluations_per_second:
    raise errors.UserError(
      f"--topology={topology}, --evaluations_per_second="
      f"{evaluations_per_second:g}: give one of them"
    )
  if not topology:
    return Rates(*[evaluations_per_second or math.inf] * 2)
  chip, _, shape = topology.partition(":")
  if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", shape):
    raise errors.UserError(
      f"--topology={topology}: must be CHIP:SIDES, such as v5p:4x4x4"
    )
  count = math.prod(int(side) for side in shape.split("x"))
  most = _LARGEST.get(chip, count)
  if count > most:
    raise errors.UserError(
      f"--topology={topology}: has {count:,} chips; the largest slice of "
      f"{chip} has {most:,}"
    )
  known = json.loads(_ESTIMATES.read_text())
  one = build.forward_flop(config)
  passes = {
    row["what"]: _PASSES[row["what"]] * row["images_per_second_and_chip"]
    for row in known
    if (row["chip"], row["dtype"]) == (chip, config.model.dtype)
    and math.isclose(row["forward_flop"], one, rel_tol=0.01)
  }
  if set(passes) != set(_PASSES):
    there = sorted(
      {f"{r['config']} in {r['dtype']} on {r['chip']}" for r in known}
    )
    raise errors.UserError(
      f"--topology={topology}: no estimate for a network of {one / 1e9:.1f} "
      f"GFLOP in {config.model.dtype} there; estimated: "
      f"{', '.join(there) or 'none yet'}. Measure by "
      "benchmarks.sample, or compile by benchmarks.compile_for, and give "
      "--evaluations_per_second"
    )
  return Rates(count * passes["train"], count * passes["sample"])


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
  costs = methods.Costs(guide_cost, build.branch_cost(config), classes)
  return sum(method.evaluations(k, costs) for k in strengths)


def costs(config, plan):
  """Return the Cost of each part of a planned sweep, trainings first."""
  one = build.forward_flop(config)
  seeds = len({planned.cell.seed for planned in plan})
  parts = [
    _training(f"training, p_uncond={p:g}", config, one, seeds)
    for p in sorted({planned.cell.p_uncond for planned in plan})
  ]
  student = grid.student_config(config)
  if student is not None:
    # Its teacher predicts with guidance.
    passes = _PASSES["train"] + 1 + build.branch_cost(config)
    taught = {k.cell.p_uncond for k in plan if k.teacher is not None}
    parts += [
      _training(f"student, p_uncond={p:g}", student, one, seeds, passes)
      for p in sorted(taught)
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


def _training(name, config, one, seeds, passes=_PASSES["train"]):
  images = config.train.steps * config.train.batch_size * seeds
  name += f", {seeds} seeds" if seeds > 1 else ""
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


def table(parts, rates):
  """Return the costs as lines of text, the sum last.

  Args:
    parts: of `costs`.
    rates: Rates; UNKNOWN leaves the hours out.
  """
  one = parts[0].flop / (parts[0].images * parts[0].evaluations)
  cells, _, images, flop = map(sum, list(zip(*parts, strict=True))[1:])
  width = max(len(part.name) for part in parts)
  row = f"{{:{width}}} {{:>5}} {{:>13}} {{:>11}} {{:>11}} {{:>9}}".format
  lines = [row("", "cells", "images", "evaluations", "PFLOP", "hours")]
  total = 0.0
  for part in [*parts, Cost("in all", cells, math.nan, images, flop)]:
    count = part.flop / one
    rate = rates.sampling if part.cells else rates.training
    hours = total if part.name == "in all" else count / rate / 3600
    total += hours
    size = f"{part.images:,}", f"{count:.3g}", f"{part.flop / 1e15:,.3g}"
    time = f"{hours:,.1f}" if hours else ""
    lines.append(row(part.name, part.cells or "", *size, time))
  assumed = any(part.name.endswith(_ASSUMED) for part in parts)
  return lines + [_ASSUMPTION] * assumed
