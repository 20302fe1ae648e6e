"""What a config must satisfy.

Every rule that spans fields stands here once and is checked before anything is
compiled or written.
"""

import itertools
import math
import re

from cfgd import config as config_lib
from cfgd import diffusion
from cfgd import settings
from cfgd.data import images
from cfgd.runtime import errors

_NUM_GROUPS = 32  # of GroupNorm in cfgd/models/blocks.py
TASKS = ("diffusion", "classifier")
SAMPLERS = tuple(diffusion.STEPS)
THRESHOLDS = ("clip", "dynamic", "none")
WEIGHTS = ("constant", "linear", "cosine")
V_FROM = ("own", "config")
CLASSIFIER_FORMS = ("eps", "mean")
_BY_NULL = ("cfg", "classifier_null", "cfg+classifier")
GUIDANCES = ("none", "cfg", "auto", *config_lib.GUIDED_BY_CLASSIFIER)
# `diffusion.marginal` makes a forward pass per class.
_MARGINAL_CLASSES = 100
_DECAYS = ("cosine", "linear")
# By what samples are scored: Inception, or own:NAME, see `own_network`.
_OWN_NETWORK = re.compile(r"own:([a-z0-9_]+)")
PROTOCOLS = ("adm", "pytorch_fid")
_DTYPES = ("float32", "bfloat16")
TIMESTEPS = ("uniform", "adm_cosine", "adm_linear")


def _require(condition, field, value, allowed):
  if not condition:
    raise errors.UserError(f"{field}={value!r}: {allowed}")


def _positive(config, *fields):
  for field in fields:
    value = config_lib.get(config, field)
    _require(value >= 1, field, value, "must be at least 1")


def _one_of(config, field, choices):
  value = config_lib.get(config, field)
  _require(value in choices, field, value, f"must be one of {choices}")


def _between(config, field, low, high):
  value = config_lib.get(config, field)
  _require(low <= value <= high, field, value, f"must be in [{low}, {high}]")


def _numbers(field, values, kind):
  for value in values:
    _require(
      isinstance(value, kind) and not isinstance(value, bool),
      field,
      value,
      "must be a number" if kind is not int else "must be an integer",
    )


def validate(config, *, num_devices):
  """Check all rules of a config for training and sampling.

  Args:
    config: ConfigDict of configs/base.py's fields.
    num_devices: over all hosts, that the training batch is split over.

  Raises:
    errors.UserError: naming field, value and what is allowed.
  """
  _one_of(config, "task", TASKS)
  _validate_model(config)
  _validate_task(config)
  _validate_training(config, num_devices)
  validate_sampling(config)


def _validate_task(config):
  """A classifier has no labels to read and predicts no noise."""
  if config.task != "classifier":
    return
  model = config.model
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


def validate_generation(config):
  """Check that a config's model makes images."""
  _require(
    config.task == "diffusion",
    "task",
    config.task,
    "makes no samples; give the config of a diffusion model",
  )


def _validate_model(config):
  data, model = config.data, config.model
  _positive(
    config,
    "data.image_size",
    "data.channels",
    "data.num_classes",
    "model.model_channels",
    "model.num_res_blocks",
    "model.num_heads",
  )
  _require(data.crop >= 0, "data.crop", data.crop, "must be 0 or a side")
  images.rgb(data.background)
  images.whole_side(data.image_size, data.random_crop)
  _require(
    not data.crop or data.crop >= data.image_size,
    "data.crop",
    data.crop,
    f"must be 0 or at least data.image_size={data.image_size}",
  )
  _require(model.channel_mult, "model.channel_mult", (), "must not be empty")
  _numbers("model.channel_mult", model.channel_mult, (int, float))
  _numbers("model.attention_resolutions", model.attention_resolutions, int)
  halvings = len(model.channel_mult) - 1
  _require(
    data.image_size % 2**halvings == 0,
    "data.image_size",
    data.image_size,
    f"must be divisible by {2**halvings}: model.channel_mult has "
    f"{halvings + 1} levels",
  )
  _one_of(config, "model.dtype", _DTYPES)
  _require(
    0 <= model.dropout < 1, "model.dropout", model.dropout, "must be in [0, 1)"
  )
  resolutions = [data.image_size >> level for level in range(halvings + 1)]
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
  diffusion, optim, train = config.diffusion, config.optim, config.train
  _require(
    diffusion.logsnr_min < diffusion.logsnr_max,
    "diffusion.logsnr_min",
    diffusion.logsnr_min,
    f"must be below diffusion.logsnr_max={diffusion.logsnr_max}",
  )
  _one_of(config, "diffusion.timesteps", TIMESTEPS)
  _between(config, "diffusion.p_uncond", 0, 1)
  _require(
    config.model.null_row or diffusion.p_uncond == 0,
    "diffusion.p_uncond",
    diffusion.p_uncond,
    "must be 0 where model.null_row=False leaves no label to drop to",
  )
  _require(
    not config.model.learn_sigma or diffusion.timesteps != "uniform",
    "model.learn_sigma",
    True,
    "belongs to ADM's weights: diffusion.timesteps must be adm_cosine or "
    "adm_linear",
  )
  _between(config, "optim.ema_decay", 0, 1)
  _positive(
    config,
    "train.batch_size",
    "train.microbatches",
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.lease_seconds",
    "train.heldout_images",
    "train.max_skipped",
    "data.threads",
    "data.prefetch",
  )
  _one_of(config, "optim.decay", _DECAYS)
  for field in (
    "train.sample_every",
    "train.keep_every",
    "train.keep_first",
    "train.watchdog_seconds",
    "optim.warmup_steps",
    "optim.weight_decay",
  ):
    _require(
      config_lib.get(config, field) >= 0,
      field,
      config_lib.get(config, field),
      "must not be below 0",
    )
  _require(
    optim.learning_rate > 0,
    "optim.learning_rate",
    optim.learning_rate,
    "must be above 0",
  )
  _require(
    0 <= optim.clip_norm < math.inf,
    "optim.clip_norm",
    optim.clip_norm,
    "must be a norm above 0, or 0 for no clipping",
  )
  _require(
    not optim.decay_steps
    or optim.decay_steps >= max(train.steps, optim.warmup_steps + 1),
    "optim.decay_steps",
    optim.decay_steps,
    f"must be 0 or reach train.steps={train.steps} and beyond "
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


def validate_sampling(config):
  """Check the rules of the fields that sampling and evaluation read."""
  sampling = config.sampling
  _one_of(config, "sampling.sampler", SAMPLERS)
  _one_of(config, "sampling.weights", ("ema", "raw"))
  own_network(config)
  _one_of(config, "metrics.protocol", PROTOCOLS)
  _require(sampling.T >= 2, "sampling.T", sampling.T, "must be at least 2")
  _validate_guidance(config)
  _between(config, "sampling.v", 0, 1)
  _one_of(config, "sampling.v_from", V_FROM)
  _positive(
    config,
    "sampling.num_samples",
    "sampling.batch_size",
    "sampling.chunk_size",
    "metrics.batch_size",
    "metrics.min_images",
    "metrics.chunk_size",
    "metrics.inception_batch_size",
    "metrics.neighbours",
    "metrics.feature_net.width",
    "metrics.feature_net.num_features",
    "metrics.feature_net.steps",
    "metrics.feature_net.batch_size",
  )
  metrics = config.metrics
  _require(
    metrics.num_splits >= 0,
    "metrics.num_splits",
    metrics.num_splits,
    "must be at least 1, or 0 for the protocol's splits",
  )
  _require(
    metrics.reference_features > metrics.neighbours,
    "metrics.reference_features",
    metrics.reference_features,
    f"must be above metrics.neighbours={metrics.neighbours}",
  )
  _require(
    sampling.checkpoint_step >= -1,
    "sampling.checkpoint_step",
    sampling.checkpoint_step,
    "must be a step, or -1 for the newest",
  )
  _numbers("sampling.labels", sampling.labels, int)
  for label in sampling.labels:
    _require(
      0 <= label < config.data.num_classes,
      "sampling.labels",
      label,
      f"must be in 0..{config.data.num_classes - 1}",
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


def _validate_guidance(config):
  sampling = config.sampling
  _one_of(config, "sampling.guidance", GUIDANCES)
  _one_of(config, "sampling.w_schedule", WEIGHTS)
  _one_of(config, "sampling.threshold", THRESHOLDS)
  _one_of(config, "sampling.classifier_form", CLASSIFIER_FORMS)
  _between(config, "sampling.rescale", 0, 1)
  _between(config, "sampling.quantile", 0, 1)
  for field in ("score_scale", "noise_scale", "classifier_w"):
    _require(
      0 <= sampling[field] < math.inf,
      f"sampling.{field}",
      sampling[field],
      "must be a number of at least 0",
    )
  _require(
    sampling.guidance != "marginal"
    or config.data.num_classes <= _MARGINAL_CLASSES,
    "sampling.guidance",
    sampling.guidance,
    "makes a forward pass per class at every step, for at most "
    f"{_MARGINAL_CLASSES} classes; with data.num_classes="
    f"{config.data.num_classes} use 'cfg', which needs a null label",
  )
  _validate_w(sampling, config.diffusion.p_uncond)
  _validate_combinations(sampling)


def _validate_w(sampling, p_uncond):
  field, w = "sampling.w", sampling.w
  _require(
    -1 <= w < math.inf,
    field,
    w,
    "must be a number of at least -1 (-1 is the unconditional model, 0 the "
    "conditional one)",
  )
  _require(
    w == 0 or sampling.guidance != "none",
    field,
    w,
    "must be 0 where sampling.guidance='none'",
  )
  if sampling.guidance not in _BY_NULL:
    return
  _require(
    (w == 0 and sampling.guidance != "classifier_null") or p_uncond > 0,
    field,
    w,
    "guidance needs an unconditional model, which diffusion.p_uncond=0 does "
    "not train; use w=0 or p_uncond > 0",
  )
  _require(
    w == -1 or p_uncond < 1 or sampling.guidance == "classifier_null",
    field,
    w,
    "diffusion.p_uncond=1 trains the unconditional model only; use w=-1",
  )


def _validate_combinations(sampling):
  """Check what of guidance does not go together."""
  interval = tuple(sampling.interval)
  _numbers("sampling.interval", interval, (int, float))
  _require(
    not interval or (len(interval) == 2 and interval[0] < interval[1]),
    "sampling.interval",
    interval,
    "must be empty or two log-SNRs, the lower first",
  )
  kind, form = sampling.guidance, sampling.classifier_form
  _require(
    not (kind in config_lib.GUIDED_BY_CLASSIFIER and not sampling.second_dir),
    "sampling.second_dir",
    sampling.second_dir,
    f"must be the workdir of a noisy classifier for sampling.guidance='{kind}'",
  )
  _require(
    kind != "auto" or sampling.second_dir or sampling.second_step != -1,
    "sampling.second_step",
    sampling.second_step,
    "must be an earlier checkpoint where sampling.guidance='auto' and "
    "sampling.second_dir=''",
  )
  _require(
    not sampling.rescale
    or kind not in ("classifier", "classifier_null", "none"),
    "sampling.rescale",
    sampling.rescale,
    f"must be 0 where sampling.guidance='{kind}' has no second eps",
  )
  _require(
    form == "eps" or kind in ("classifier", "classifier_null"),
    "sampling.classifier_form",
    form,
    f"must be 'eps' where sampling.guidance='{kind}'",
  )
  _require(
    form == "eps"
    or (sampling.sampler == "ancestral" and sampling.noise_scale == 1),
    "sampling.classifier_form",
    form,
    "shifts the mean of the ancestral sampler with noise_scale=1; use 'eps'",
  )
  _require(
    sampling.sampler == "ancestral" or sampling.noise_scale == 1,
    "sampling.noise_scale",
    sampling.noise_scale,
    f"must be 1 where sampling.sampler='{sampling.sampler}' adds no noise",
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
      _require(
        axis == "p_uncond" or axis in config.sampling,
        field,
        values,
        "no such axis; it is p_uncond or a field of sampling",
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
    at = config_lib.cell_config(
      config, p_uncond=config.diffusion.p_uncond, **cell
    )
    idle = settings.unused(at)
    for axis, value in cell.items():
      why = axis in idle and settings.why_unused(at, axis)
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
  """Check the seeds of a sweep and what decides on claims over them."""
  field, seeds = "sweep.seeds", tuple(sweep.seeds)
  _numbers(field, seeds, int)
  for seed in seeds:
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
  """Check that an axis has values of the kind that the field has."""
  if isinstance(example, int | float):
    _numbers(field, values, int if isinstance(example, int) else (int, float))
    return
  for value in values:
    _require(
      isinstance(value, type(example)),
      field,
      value,
      f"must be a {type(example).__name__}",
    )
