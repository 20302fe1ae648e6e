"""The rules of a config, checked before anything is compiled or written."""

import functools
import itertools
import math
import re

from flax import traverse_util
import numpy as np

from cfgd import diffusion
from cfgd import identity
from cfgd import methods
from cfgd.data import images
from cfgd.runtime import errors

_NUM_GROUPS = 32  # of GroupNorm in cfgd/models/blocks.py
# Inception, or own:NAME, see `own_network`.
_OWN_NETWORK = re.compile(r"own:([a-z0-9_]+)")


def _require(config, field, holds, allowed, value=None):
  """Raise unless a rule holds; `value` is the field's own by default."""
  if not holds:
    if value is None:
      value = functools.reduce(
        lambda node, k: node[k], field.split("."), config
      )
    raise errors.UserError(f"{field}={value!r}: {allowed}")


# Rules of one field: value -> what it must be instead, or None.


def _that(holds, otherwise):
  return lambda value: None if holds(value) else otherwise


def _at_least(low):
  return _that(lambda value: low <= value, f"must be at least {low}")


def _above(low):
  return _that(lambda value: low < value, f"must be above {low}")


def _factor(value):
  return None if 0 <= value < math.inf else "must be a number of at least 0"


def _between(low, high):
  return _that(
    lambda value: low <= value <= high, f"must be in [{low}, {high}]"
  )


def _one_of(*choices):
  return _that(lambda value: value in choices, f"must be one of {choices}")


def _row_of(table):
  # Rows may be added until a value is checked.
  return lambda value: (
    None if value in table else f"must be one of {tuple(table)}"
  )


def _each(*kinds):
  what = "an integer" if kinds == (int,) else "a number"

  def rule(values):
    wrong = [
      value
      for value in values
      if not isinstance(value, kinds) or isinstance(value, bool)
    ]
    return f"{wrong[0]!r} must be {what}" if wrong else None

  return rule


# Fields by section that count from 1, or from 0.
_FROM_1 = {
  "data": "image_size channels num_classes threads prefetch",
  "model": "model_channels num_res_blocks num_heads",
  "train": "batch_size microbatches steps log_every checkpoint_every keep "
  "lease_seconds heldout_images max_skipped",
  "sampling": "num_samples batch_size chunk_size",
  "metrics": "min_images chunk_size inception_batch_size neighbours batch_size",
  "metrics.feature_net": "width num_features steps batch_size",
}
_FROM_0 = {
  "data": "crop",
  "optim": "warmup_steps weight_decay",
  "train": "sample_every keep_every keep_first watchdog_seconds",
}


def _named(sections):
  return [
    f"{section}.{name}"
    for section, names in sections.items()
    for name in names.split()
  ]


RULES = {
  **dict.fromkeys(_named(_FROM_1), _at_least(1)),
  **dict.fromkeys(_named(_FROM_0), _at_least(0)),
  "task": _one_of("diffusion", "classifier", "guided_student"),
  "model.condition": _one_of("all", "decoder"),
  # The error is a part of 1 + w.
  "distill.w_low": _above(-1),
  "distill.w_high": _that(math.isfinite, "must be a finite number"),
  "distill.teacher_step": _that(
    lambda value: value >= -1, "must be a step, or -1 for the newest"
  ),
  "model.channel_mult": _each(int, float),
  "model.attention_resolutions": _each(int),
  "model.dtype": _one_of("float32", "bfloat16"),
  "model.dropout": _that(lambda value: 0 <= value < 1, "must be in [0, 1)"),
  "diffusion.timesteps": _one_of("uniform", "adm_cosine", "adm_linear"),
  "diffusion.p_uncond": _between(0, 1),
  "optim.learning_rate": _above(0),
  "optim.decay": _one_of("cosine", "linear"),
  "optim.ema_decay": _between(0, 1),
  "optim.clip_norm": _that(
    lambda value: 0 <= value < math.inf, "must be a norm, or 0 for no clipping"
  ),
  "sampling.sampler": _row_of(diffusion.SAMPLERS),
  "sampling.T": _at_least(2),
  "sampling.guidance": _row_of(methods.METHODS),
  "sampling.w": _that(
    lambda value: -1 <= value < math.inf,
    "must be at least -1 (-1 is the unconditional model, 0 the conditional)",
  ),
  "sampling.w_schedule": _row_of(methods.W_SCHEDULES),
  "sampling.interval": _each(int, float),
  "sampling.rescale": _between(0, 1),
  "sampling.classifier_w": _factor,
  "sampling.score_scale": _factor,
  "sampling.noise_scale": _factor,
  "sampling.grid": _row_of(methods.GRIDS),
  "sampling.rho": _between(1, 1000),
  "sampling.churn": _factor,
  "sampling.v": _between(0, 1),
  "sampling.v_from": _one_of("own", "config"),
  "sampling.threshold": _row_of(methods.THRESHOLDS),
  "sampling.quantile": _between(0, 1),
  "sampling.labels": _each(int),
  "sampling.weights": _one_of("ema", "raw"),
  "sampling.checkpoint_step": _that(
    lambda value: value >= -1, "must be a step, or -1 for the newest"
  ),
  "metrics.protocol": _one_of("adm", "pytorch_fid"),
  "metrics.num_splits": _that(
    lambda value: value >= 0, "must be at least 1, or 0 for the protocol's"
  ),
}


def validate(config, *, num_devices):
  """Check all rules of a config for training and sampling.

  Args:
    config: ConfigDict of configs/base.py's fields.
    num_devices: over all hosts, that the training batch is split over.

  Raises:
    errors.UserError: naming field, value and what is allowed.
  """
  _validate_fields(config)
  _validate_task(config)
  _validate_data(config)
  _validate_levels(config)
  _validate_training(config, num_devices)
  _validate_sampling(config)


def validate_sampling(config):
  """Check the rules of the fields that sampling and evaluation read."""
  _validate_fields(config, ("sampling.", "metrics."))
  _validate_sampling(config)


def validate_generation(config):
  """Check all rules of a config whose model is to make images, anywhere."""
  validate(config, num_devices=1)
  _require(
    config,
    "task",
    config.task != "classifier",
    "makes no samples; give the config of a diffusion model",
  )


def _validate_fields(config, sections=("",)):
  """Check that no field has an old name, and each field by its rule."""
  values = traverse_util.flatten_dict(config.to_dict(), sep=".")
  for field, advice in identity.RENAMED.items():
    # Other fields that configs/base.py lacks are the user's own notes.
    if field in values:
      raise errors.UserError(
        f"{field}={values[field]!r}: no such field; {advice}"
      )
  for field, rule in RULES.items():
    if field.startswith(sections):
      wrong = rule(values[field])
      _require(config, field, not wrong, wrong)


def _validate_task(config):
  """Check the fields that do not go with every task or kind of network."""
  require, model = functools.partial(_require, config), config.model
  if config.task == "classifier":
    for name in ("null_row", "learn_sigma"):
      text = "must be False where task='classifier'"
      require(f"model.{name}", not model[name], text)
    require(
      "model.num_head_channels",
      model.num_head_channels > 0,
      "must be above 0 where task='classifier': its pool has heads by width",
    )
    text = "must be 'all' where task='classifier': it has no decoder"
    require("model.condition", model.condition == "all", text)
  if config.task == "guided_student":
    _validate_student(config)
  require(
    "model.learn_sigma",
    not model.learn_sigma or config.diffusion.timesteps != "uniform",
    "belongs to ADM's weights: diffusion.timesteps must be adm_cosine or "
    "adm_linear",
  )
  require(
    "diffusion.p_uncond",
    model.null_row or config.diffusion.p_uncond == 0,
    "must be 0 where model.null_row=False leaves no label to drop to",
  )


def _validate_student(config):
  """Check the fields of a network that learns what guidance predicts."""
  require, distill = functools.partial(_require, config), config.distill
  require(
    "distill.w_low",
    distill.w_low < distill.w_high,
    f"must be below distill.w_high={distill.w_high}",
  )
  require(
    "diffusion.p_uncond",
    config.diffusion.p_uncond == 0,
    "must be 0 where task='guided_student': it drops no labels",
  )
  require(
    "model.null_row",
    config.model.null_row,
    "must be True where task='guided_student': its teacher has one",
  )
  require(
    "train.init_from",
    not config.train.init_from,
    "must be '' where task='guided_student': it starts from its teacher",
  )


def _validate_data(config):
  data = config.data
  images.rgb(data.background)
  images.whole_side(data.image_size, data.random_crop)
  _require(
    config,
    "data.crop",
    not data.crop or data.crop >= data.image_size,
    f"must be 0 or at least data.image_size={data.image_size}",
  )


def _validate_levels(config):
  """Check the image's side and the channels at every level of the network."""
  require, model = functools.partial(_require, config), config.model
  size = config.data.image_size
  require("model.channel_mult", model.channel_mult, "must not be empty")
  levels = len(model.channel_mult)
  require(
    "data.image_size",
    size % 2 ** (levels - 1) == 0,
    f"must be divisible by {2 ** (levels - 1)}: model.channel_mult has "
    f"{levels} levels",
  )
  resolutions = [size >> level for level in range(levels)]
  for resolution in model.attention_resolutions:
    require(
      "model.attention_resolutions",
      resolution in resolutions,
      f"must be among the levels' pixels, {', '.join(map(str, resolutions))}",
      value=resolution,
    )
  heads = "num_head_channels" if model.num_head_channels else "num_heads"
  for resolution, mult in zip(resolutions, model.channel_mult, strict=True):
    width = int(mult * model.model_channels)
    require(
      "model.model_channels",
      width > 0 and width % _NUM_GROUPS == 0,
      f"the level of {resolution} pixels gets {width} channels, not a positive "
      f"multiple of GroupNorm's {_NUM_GROUPS}",
    )
    require(
      f"model.{heads}",
      resolution not in model.attention_resolutions
      or width % model[heads] == 0,
      f"must divide the {width} channels at {resolution} pixels",
    )


def _validate_training(config, num_devices):
  require, train = functools.partial(_require, config), config.train
  levels, optim = config.diffusion, config.optim
  require(
    "diffusion.logsnr_min",
    levels.logsnr_min < levels.logsnr_max,
    f"must be below diffusion.logsnr_max={levels.logsnr_max}",
  )
  require(
    "optim.decay_steps",
    not optim.decay_steps
    or optim.decay_steps >= max(train.steps, optim.warmup_steps + 1),
    f"must be 0, or at least train.steps={train.steps} and above "
    f"optim.warmup_steps={optim.warmup_steps}",
  )
  require(
    "train.batch_size",
    train.batch_size % num_devices == 0,
    f"must be divisible by the {num_devices} devices",
  )
  rows = train.batch_size // num_devices
  require(
    "train.microbatches",
    rows % train.microbatches == 0,
    f"must divide the {rows} images of each device: train.batch_size="
    f"{train.batch_size} over {num_devices} devices",
  )


def own_network(config):
  """Return the name of a data set's own feature network, "" for Inception."""
  value = config.metrics.feature_network
  found = _OWN_NETWORK.fullmatch(value)
  _require(
    config,
    "metrics.feature_network",
    found or value == "inception",
    "must be 'inception', or 'own:NAME' for a small classifier of the data "
    "itself, NAME being of a-z, 0-9 and _",
  )
  return found[1] if found else ""


def _validate_sampling(config):
  """Check what of sampling and evaluation goes together."""
  own_network(config)
  require = functools.partial(_require, config)
  metrics, sampling = config.metrics, config.sampling
  require(
    "metrics.reference_features",
    metrics.reference_features > metrics.neighbours,
    f"must be above metrics.neighbours={metrics.neighbours}",
  )
  last = config.data.num_classes - 1
  for label in sampling.labels:
    within = 0 <= label <= last
    require("sampling.labels", within, f"must be in 0..{last}", value=label)
  interval = tuple(sampling.interval)
  require(
    "sampling.interval",
    not interval or (len(interval) == 2 and interval[0] < interval[1]),
    "must be empty or two log-SNRs, the lower first",
  )
  _validate_method(config)
  _validate_sampler(config)
  _validate_grid(config)


def _validate_sampler(config):
  """Check what the row of `sampling.sampler` needs."""
  require, sampling = functools.partial(_require, config), config.sampling
  sampler = diffusion.SAMPLERS[sampling.sampler]
  here = f"sampling.sampler={sampling.sampler!r}"
  require(
    "sampling.sampler",
    not sampler.without_score or methods.METHODS[sampling.guidance].score,
    f"needs guidance by a classifier, not {sampling.guidance!r}",
  )
  for name, neutral in (("noise_scale", 1), ("churn", 0)):
    require(
      f"sampling.{name}",
      name in sampler.numbers or sampling[name] == neutral,
      f"must be {neutral} where {here}",
    )
  require(
    "sampling.churn_low",
    not sampling.churn or sampling.churn_low < sampling.churn_high,
    f"must be below sampling.churn_high={sampling.churn_high}",
  )
  require(
    "sampling.v_from",
    sampler.uses_v
    or not config.model.learn_sigma
    or sampling.v_from == "config",
    f"{here} has no use for the v that a network with learned sigma predicts; "
    "set sampling.v_from='config' to do without it, or take a sampler of "
    f"{tuple(k for k, row in diffusion.SAMPLERS.items() if row.uses_v)}",
  )


def _validate_grid(config):
  """Check what the row of `sampling.grid` needs."""
  require, sampling = functools.partial(_require, config), config.sampling
  grid, levels = methods.GRIDS[sampling.grid], config.diffusion
  here = f"sampling.grid={sampling.grid!r}"
  for name in ("logsnr_low", "logsnr_high"):
    require(
      f"sampling.{name}",
      name not in grid.numbers
      or levels.logsnr_min <= sampling[name] <= levels.logsnr_max,
      f"must be within the log-SNRs of training, diffusion.logsnr_min="
      f"{levels.logsnr_min} to diffusion.logsnr_max={levels.logsnr_max}",
    )
  require(
    "sampling.logsnr_low",
    "logsnr_low" not in grid.numbers
    or sampling.logsnr_low < sampling.logsnr_high,
    f"must be below sampling.logsnr_high={sampling.logsnr_high}",
  )
  require(
    "sampling.grid",
    not grid.timesteps or levels.timesteps != "uniform",
    "needs a network on ADM's timesteps: diffusion.timesteps must be "
    "adm_cosine or adm_linear",
  )
  order = diffusion.SAMPLERS[sampling.sampler].levels(sampling.T)
  require(
    "sampling.T",
    not grid.timesteps or order[-1] < grid.timesteps,
    f"needs {order[-1] + 1} levels, {here} has {grid.timesteps}",
  )


def _validate_method(config):
  """Check what the row of `sampling.guidance` needs."""
  require, sampling = functools.partial(_require, config), config.sampling
  method = methods.METHODS[sampling.guidance]
  here = f"sampling.guidance={sampling.guidance!r}"
  classes = config.data.num_classes
  fitting = [
    k for k, row in methods.METHODS.items() if config.task in row.tasks
  ]
  require(
    "sampling.guidance",
    config.task == "classifier" or sampling.guidance in fitting,
    f"does not sample task={config.task!r}; methods that do: {fitting}",
  )
  if config.task == "guided_student":
    _validate_trained_w(config)
  require(
    "sampling.guidance",
    not method.max_classes or classes <= method.max_classes,
    "makes a forward pass per class at every step, for at most "
    f"{method.max_classes} classes; with data.num_classes={classes} use a "
    "method that needs a null label instead",
  )
  require(
    "sampling.w",
    sampling.w == 0 or "w" in method.strengths,
    f"must be 0 where {here}",
  )
  if method.null:
    _validate_null(config, method)
  require(
    "sampling.guide_dir",
    method.guide != "classifier" or sampling.guide_dir,
    f"must be the workdir of a noisy classifier for {here}",
  )
  earlier = sampling.guide_dir or sampling.guide_step != -1
  require(
    "sampling.guide_step",
    method.guide != "diffusion" or earlier,
    f"must be an earlier checkpoint where {here} and sampling.guide_dir=''",
  )
  require(
    "sampling.rescale",
    not sampling.rescale or method.combines,
    f"must be 0 where {here} has no second eps",
  )


def _validate_trained_w(config):
  """Check that every w that a student is given is one that it was trained for.

  Schedules of w are monotone, so their ends are their limits.
  """
  sampling, levels = config.sampling, config.diffusion
  low, high = config.distill.w_low, config.distill.w_high
  schedule = diffusion.Schedule(levels.logsnr_min, levels.logsnr_max)
  weight = methods.W_SCHEDULES[sampling.w_schedule](
    sampling.w, schedule=schedule
  )
  ends = np.asarray([levels.logsnr_min, levels.logsnr_max], np.float32)
  given = [float(w) for w in weight(ends)]
  given += [0.0] if tuple(sampling.interval) else []
  # Schedules round.
  slack = 1e-5 * max(1.0, abs(high))
  _require(
    config,
    "sampling.w",
    low - slack <= min(given) and max(given) <= high + slack,
    f"gives the student w from {min(given):g} to {max(given):g}, and it was "
    f"trained for distill.w_low={low:g} to distill.w_high={high:g}",
  )


def _validate_null(config, method):
  """Check that the unconditional model is trained where it is used.

  A method without a row at w = 0 uses it there, too.
  """
  w, p_uncond = config.sampling.w, config.diffusion.p_uncond
  always = not method.at_zero
  _require(
    config,
    "sampling.w",
    p_uncond > 0 or (w == 0 and not always),
    "guidance needs an unconditional model, which diffusion.p_uncond=0 does "
    "not train; use w=0 or p_uncond > 0",
  )
  _require(
    config,
    "sampling.w",
    p_uncond < 1 or w == -1 or always,
    "diffusion.p_uncond=1 trains the unconditional model only; use w=-1",
  )


def validate_grids(config):
  """Check that a sweep's grids name cells; the cells are checked one by one."""
  _validate_seeds(config)
  grids, sampling = config.sweep.grids, config.sampling
  _require(config, "sweep.grids", grids, "must name at least one grid")
  for name, axes in grids.items():
    for axis in ("p_uncond", "T", "w", *axes):
      field, values = f"sweep.grids.{name}.{axis}", axes.get(axis, ())
      require = functools.partial(_require, config, field, value=values)
      require(axis != "seed", "is no axis; use sweep.seeds")
      require(
        axis == "p_uncond" or axis in sampling,
        identity.RENAMED.get(f"sampling.{axis}")
        or "no such axis; it is p_uncond or a field of sampling",
      )
      require(
        isinstance(values, tuple | list) and values,
        "must have at least one value",
      )
      wrong = _wrong_type(values, 0.0 if axis == "p_uncond" else sampling[axis])
      require(not wrong, wrong)
      _validate_values(config, field, values)
    _validate_effects(config, name, axes)


def _validate_values(config, field, values):
  """Check the values of a grid's axis by the rule of its field."""
  axis = field.rpartition(".")[2]
  section = "diffusion" if axis == "p_uncond" else "sampling"
  rule = RULES.get(f"{section}.{axis}")
  for value in values if rule else ():
    wrong = rule(value)
    _require(config, field, not wrong, wrong, value=value)


def _wrong_type(values, example):
  """Return what is wrong with values for a field that has an example's type."""
  if isinstance(example, int | float):
    kinds = (int,) if isinstance(example, int) else (int, float)
    return _each(*kinds)(values)
  wrong = [value for value in values if not isinstance(value, type(example))]
  return wrong and f"{wrong[0]!r} must be a {type(example).__name__}"


def _validate_effects(config, name, axes):
  """Check that each value of a grid's axes has an effect in one of its cells.

  Cells that differ in such a value alone would have the same samples.
  """
  names = [axis for axis in axes if axis != "p_uncond"]
  reasons = {}
  for values in itertools.product(*(axes[axis] for axis in names)):
    cell = dict(zip(names, values, strict=True))
    at = config.copy_and_resolve_references()
    at.sampling.update(cell)
    _validate_fields(at, ("sampling.",))
    idle = identity.unused(at)
    for axis, value in cell.items():
      why = axis in idle and identity.why_unused(at, axis)
      if axis == "v_from" and idle.get(axis) == "sampling.sampler":
        why = not config.model.learn_sigma and why  # it allows the sampler
      reasons.setdefault((axis, value), []).append(why)
  for (axis, value), whys in reasons.items():
    _require(
      config,
      f"sweep.grids.{name}.{axis}",
      # At the config's own value it is no axis.
      not all(whys) or value == config.sampling[axis],
      f"has no effect in any cell of this grid ({whys[0]}); leave it out",
      value=value,
    )


def _validate_seeds(config):
  """Check the seeds of a sweep and the limits of its claims."""
  seeds = tuple(config.sweep.seeds)
  for seed in seeds:
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    text = "must be an integer of at least 0"
    _require(config, "sweep.seeds", whole and seed >= 0, text, value=seed)
  unique = len(set(seeds)) == len(seeds)
  _require(config, "sweep.seeds", unique, "must have each seed once")
  for name, low, high in (
    ("confidence", 0, 1),
    ("alike", 1, math.inf),
    ("small_w", 0, math.inf),
    ("copied", 0, 1),
    ("copied_epochs", 0, math.inf),
  ):
    _require(
      config,
      f"sweep.claims.{name}",
      low < config.sweep.claims[name] < high,
      f"must be above {low}" + (f" and below {high}" if high == 1 else ""),
    )
