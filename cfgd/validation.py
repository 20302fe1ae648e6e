"""The rules of a config, checked before anything is compiled or written."""

import itertools
import math
import re

from cfgd import diffusion
from cfgd import identity
from cfgd import methods
from cfgd.data import images
from cfgd.runtime import errors

_NUM_GROUPS = 32  # of GroupNorm in cfgd/models/blocks.py
# Inception, or own:NAME, see `own_network`.
_OWN_NETWORK = re.compile(r"own:([a-z0-9_]+)")
# Sections of `sweep` with keys of their own.
_OPEN = ("sweep.grids.", "sweep.classifier.", "sweep.figures.")


def _require(condition, field, value, allowed):
  if not condition:
    raise errors.UserError(f"{field}={value!r}: {allowed}")


# Rules of one field: value -> what it must be instead, or None.


def _that(holds, otherwise):
  return lambda value: None if holds(value) else otherwise


def _at_least(low):
  return _that(lambda value: low <= value < math.inf, f"must be at least {low}")


def _above(low):
  return _that(lambda value: low < value < math.inf, f"must be above {low}")


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
  "sampling": "classifier_w score_scale noise_scale",
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
  "task": _one_of("diffusion", "classifier"),
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
  _validate_data(config.data)
  _validate_levels(config)
  _validate_training(config, num_devices)
  _validate_sampling(config)


def validate_sampling(config):
  """Check the rules of the fields that sampling and evaluation read."""
  _validate_fields(config, ("sampling.", "metrics."))
  _validate_sampling(config)


def validate_generation(config):
  """Check that a config's model makes images."""
  _require(
    config.task == "diffusion",
    "task",
    config.task,
    "makes no samples; give the config of a diffusion model",
  )


def _validate_fields(config, sections=("",)):
  """Check that all fields are known, and each by its rule."""
  values = identity.flatten(config.to_dict())
  known = identity.defaults()
  for field, value in values.items():
    if field not in known and not field.startswith(_OPEN):
      advice = identity.RENAMED.get(field, "see configs/base.py")
      raise errors.UserError(f"{field}={value!r}: no such field; {advice}")
  for field, rule in RULES.items():
    if field.startswith(sections):
      wrong = rule(values[field])
      _require(not wrong, field, values[field], wrong)


def _validate_task(config):
  """Check the fields that a task does not go with."""
  model = config.model
  if config.task == "classifier":
    for field in ("null_row", "learn_sigma"):
      _require(
        not model[field],
        f"model.{field}",
        model[field],
        "must be False where task='classifier'",
      )
    _require(
      model.num_head_channels > 0,
      "model.num_head_channels",
      model.num_head_channels,
      "must be above 0 where task='classifier': its pool has heads by width",
    )
  _require(
    not model.learn_sigma or config.diffusion.timesteps != "uniform",
    "model.learn_sigma",
    True,
    "belongs to ADM's weights: diffusion.timesteps must be adm_cosine or "
    "adm_linear",
  )
  p_uncond = config.diffusion.p_uncond
  _require(
    model.null_row or p_uncond == 0,
    "diffusion.p_uncond",
    p_uncond,
    "must be 0 where model.null_row=False leaves no label to drop to",
  )


def _validate_data(data):
  images.rgb(data.background)
  images.whole_side(data.image_size, data.random_crop)
  _require(
    not data.crop or data.crop >= data.image_size,
    "data.crop",
    data.crop,
    f"must be 0 or at least data.image_size={data.image_size}",
  )


def _validate_levels(config):
  """Check the image's side and the channels at every level of the network."""
  size, model = config.data.image_size, config.model
  _require(model.channel_mult, "model.channel_mult", (), "must not be empty")
  halvings = len(model.channel_mult) - 1
  _require(
    size % 2**halvings == 0,
    "data.image_size",
    size,
    f"must be divisible by {2**halvings}: model.channel_mult has "
    f"{halvings + 1} levels",
  )
  resolutions = [size >> level for level in range(halvings + 1)]
  for resolution in model.attention_resolutions:
    _require(
      resolution in resolutions,
      "model.attention_resolutions",
      resolution,
      f"the levels have {resolutions} pixels",
    )
  for resolution, mult in zip(resolutions, model.channel_mult, strict=True):
    _validate_width(model, resolution, int(mult * model.model_channels))


def _validate_width(model, resolution, width):
  _require(
    width > 0 and width % _NUM_GROUPS == 0,
    "model.model_channels",
    model.model_channels,
    f"the level of {resolution} pixels gets {width} channels, not a positive "
    f"multiple of GroupNorm's {_NUM_GROUPS}",
  )
  if resolution in model.attention_resolutions:
    field = "num_head_channels" if model.num_head_channels else "num_heads"
    _require(
      width % model[field] == 0,
      f"model.{field}",
      model[field],
      f"must divide the {width} channels at {resolution} pixels",
    )


def _validate_training(config, num_devices):
  levels, optim, train = config.diffusion, config.optim, config.train
  _require(
    levels.logsnr_min < levels.logsnr_max,
    "diffusion.logsnr_min",
    levels.logsnr_min,
    f"must be below diffusion.logsnr_max={levels.logsnr_max}",
  )
  _require(
    not optim.decay_steps
    or optim.decay_steps >= max(train.steps, optim.warmup_steps + 1),
    "optim.decay_steps",
    optim.decay_steps,
    f"must be 0, or at least train.steps={train.steps} and above "
    f"optim.warmup_steps={optim.warmup_steps}",
  )
  _require(
    train.batch_size % num_devices == 0,
    "train.batch_size",
    train.batch_size,
    f"must be divisible by the {num_devices} devices",
  )
  rows = train.batch_size // num_devices
  _require(
    rows % train.microbatches == 0,
    "train.microbatches",
    train.microbatches,
    f"must divide the {rows} images of each device: train.batch_size="
    f"{train.batch_size} over {num_devices} devices",
  )


def own_network(config):
  """Return the name of a data set's own feature network, "" for Inception."""
  value = config.metrics.feature_network
  found = _OWN_NETWORK.fullmatch(value)
  _require(
    found or value == "inception",
    "metrics.feature_network",
    value,
    "must be 'inception', or 'own:NAME' for a small classifier of the data "
    "itself, NAME being of a-z, 0-9 and _",
  )
  return found[1] if found else ""


def _validate_sampling(config):
  """Check what of sampling and evaluation goes together."""
  own_network(config)
  metrics, sampling = config.metrics, config.sampling
  _require(
    metrics.reference_features > metrics.neighbours,
    "metrics.reference_features",
    metrics.reference_features,
    f"must be above metrics.neighbours={metrics.neighbours}",
  )
  for label in sampling.labels:
    _require(
      0 <= label < config.data.num_classes,
      "sampling.labels",
      label,
      f"must be in 0..{config.data.num_classes - 1}",
    )
  interval = tuple(sampling.interval)
  _require(
    not interval or (len(interval) == 2 and interval[0] < interval[1]),
    "sampling.interval",
    interval,
    "must be empty or two log-SNRs, the lower first",
  )
  _validate_method(config)
  _validate_sampler(sampling)


def _validate_method(config):
  """Check what the row of `sampling.guidance` needs."""
  sampling, name = config.sampling, config.sampling.guidance
  method = methods.METHODS[name]
  classes = config.data.num_classes
  _require(
    not method.max_classes or classes <= method.max_classes,
    "sampling.guidance",
    name,
    "makes a forward pass per class at every step, for at most "
    f"{method.max_classes} classes; with data.num_classes={classes} use 'cfg', "
    "which needs a null label",
  )
  _require(
    sampling.w == 0 or "w" in method.strengths,
    "sampling.w",
    sampling.w,
    f"must be 0 where sampling.guidance={name!r}",
  )
  if method.null:
    _validate_null(sampling, method, config.diffusion.p_uncond)
  _require(
    method.guide != "classifier" or sampling.guide_dir,
    "sampling.guide_dir",
    sampling.guide_dir,
    f"must be the workdir of a noisy classifier for sampling.guidance={name!r}",
  )
  _require(
    method.guide != "diffusion"
    or sampling.guide_dir
    or sampling.guide_step != -1,
    "sampling.guide_step",
    sampling.guide_step,
    f"must be an earlier checkpoint where sampling.guidance={name!r} and "
    "sampling.guide_dir=''",
  )
  _require(
    not sampling.rescale or method.combines,
    "sampling.rescale",
    sampling.rescale,
    f"must be 0 where sampling.guidance={name!r} has no second eps",
  )


def _validate_null(sampling, method, p_uncond):
  """Check that the unconditional model is trained where it is used.

  A method that has none at w = 0 uses it with w = 0, too.
  """
  field, w = "sampling.w", sampling.w
  always = not method.at_zero
  _require(
    p_uncond > 0 or (w == 0 and not always),
    field,
    w,
    "guidance needs an unconditional model, which diffusion.p_uncond=0 does "
    "not train; use w=0 or p_uncond > 0",
  )
  _require(
    p_uncond < 1 or w == -1 or always,
    field,
    w,
    "diffusion.p_uncond=1 trains the unconditional model only; use w=-1",
  )


def _validate_sampler(sampling):
  sampler = diffusion.SAMPLERS[sampling.sampler]
  _require(
    not sampler.takes_score or methods.METHODS[sampling.guidance].score,
    "sampling.sampler",
    sampling.sampler,
    f"needs guidance by a classifier, not {sampling.guidance!r}",
  )
  _require(
    "noise_scale" in sampler.numbers or sampling.noise_scale == 1,
    "sampling.noise_scale",
    sampling.noise_scale,
    f"must be 1 where sampling.sampler={sampling.sampler!r}",
  )


def validate_grids(config):
  """Check that a sweep's grids name cells; the cells are checked one by one."""
  _validate_seeds(config.sweep)
  grids = config.sweep.grids
  _require(grids, "sweep.grids", {}, "must name at least one grid")
  for name, axes in grids.items():
    for axis in ("p_uncond", "T", "w", *axes):
      field = f"sweep.grids.{name}.{axis}"
      values = axes.get(axis, ())
      advice = identity.RENAMED.get(f"sampling.{axis}", "")
      _require(
        axis == "p_uncond" or axis in config.sampling,
        field,
        values,
        advice or "no such axis; it is p_uncond or a field of sampling",
      )
      _require(
        isinstance(values, tuple | list) and values,
        field,
        values,
        "must have at least one value",
      )
      _validate_values(
        field, values, 0.0 if axis == "p_uncond" else config.sampling[axis]
      )
    _validate_effects(config, name, axes)


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
      reasons.setdefault((axis, value), []).append(why)
  for (axis, value), whys in reasons.items():
    # At the config's own value it is no axis.
    _require(
      not all(whys) or value == config.sampling[axis],
      f"sweep.grids.{name}.{axis}",
      value,
      f"has no effect in any cell of this grid ({whys[0]}); leave it out",
    )


def _validate_seeds(sweep):
  """Check the seeds of a sweep and the limits of its claims."""
  field, seeds = "sweep.seeds", tuple(sweep.seeds)
  for seed in seeds:
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    _require(whole, field, seed, "must be an integer")
    _require(seed >= 0, field, seed, "must not be below 0")
  _require(
    len(set(seeds)) == len(seeds), field, seeds, "must have each seed once"
  )
  for name, low, high in (
    ("confidence", 0, 1),
    ("alike", 1, math.inf),
    ("small_w", 0, math.inf),
    ("copied", 0, 1),
    ("copied_epochs", 0, math.inf),
  ):
    value = sweep.claims[name]
    _require(
      low < value < high,
      f"sweep.claims.{name}",
      value,
      f"must be above {low}" + (f" and below {high}" if high == 1 else ""),
    )


def _validate_values(field, values, example):
  """Check that an axis has values of the type that the field has."""
  if isinstance(example, int | float):
    kinds = (int,) if isinstance(example, int) else (int, float)
    wrong = _each(*kinds)(values)
    _require(not wrong, field, values, wrong)
    return
  for value in values:
    _require(
      isinstance(value, type(example)),
      field,
      value,
      f"must be a {type(example).__name__}",
    )
