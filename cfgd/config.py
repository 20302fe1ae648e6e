"""What a config must satisfy, and which of its fields make a run what it is.

Every rule that spans fields stands here once and is checked before anything is
compiled or written.
"""

import hashlib
import json
import math

from etils import epath

from cfgd import errors
from cfgd import files

_NUM_GROUPS = 32  # of GroupNorm in cfgd/models/blocks.py
# Fields that may change between two calls on one workdir.
_FREE = {
  "data": ("dir", "threads", "prefetch"),
  "model": ("remat",),
  "train": (
    "steps",
    "log_every",
    "checkpoint_every",
    "sample_every",
    "keep",
    "keep_every",
    "keep_first",
    "watchdog_seconds",
    "lease_seconds",
    "heldout_images",
    "max_skipped",
  ),
}
_FREE_SECTIONS = ("sampling", "metrics", "sweep")
TASKS = ("diffusion", "classifier")
SAMPLERS = ("ancestral", "ddim")
THRESHOLDS = ("clip", "dynamic", "none")
WEIGHTS = ("constant", "linear", "cosine")
CLASSIFIER_FORMS = ("eps", "mean")
_BY_CLASSIFIER = ("classifier", "classifier_null", "cfg+classifier", "marginal")
_BY_NULL = ("cfg", "classifier_null", "cfg+classifier")
GUIDANCES = ("none", "cfg", "auto", *_BY_CLASSIFIER)
_DECAYS = ("cosine", "linear")
FEATURE_NETWORKS = ("inception", "embedded")
PROTOCOLS = ("adm", "pytorch_fid")
_DTYPES = ("float32", "bfloat16")
TIMESTEPS = ("uniform", "adm_cosine", "adm_linear")


def _require(condition, field, value, allowed):
  if not condition:
    raise errors.UserError(f"{field}={value!r}: {allowed}")


def _positive(config, *fields):
  for field in fields:
    value = get(config, field)
    _require(value >= 1, field, value, "must be at least 1")


def _one_of(config, field, choices):
  value = get(config, field)
  _require(value in choices, field, value, f"must be one of {choices}")


def _between(config, field, low, high):
  value = get(config, field)
  _require(low <= value <= high, field, value, f"must be in [{low}, {high}]")


def get(config, field):
  """Return a field by its dotted name."""
  for name in field.split("."):
    config = config[name]
  return config


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
      get(config, field) >= 0,
      field,
      get(config, field),
      "must not be below 0",
    )
  _require(
    optim.learning_rate > 0,
    "optim.learning_rate",
    optim.learning_rate,
    "must be above 0",
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


def validate_sampling(config):
  """Check the rules of the fields that sampling and evaluation read."""
  sampling = config.sampling
  _one_of(config, "sampling.sampler", SAMPLERS)
  _one_of(config, "sampling.weights", ("ema", "raw"))
  _one_of(config, "metrics.feature_network", FEATURE_NETWORKS)
  _one_of(config, "metrics.protocol", PROTOCOLS)
  _require(sampling.T >= 2, "sampling.T", sampling.T, "must be at least 2")
  _validate_guidance(config)
  _between(config, "sampling.v", 0, 1)
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
    "metrics.num_splits",
    "metrics.feature_net.width",
    "metrics.feature_net.num_features",
    "metrics.feature_net.steps",
    "metrics.feature_net.batch_size",
  )
  metrics = config.metrics
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
    not (kind in _BY_CLASSIFIER and not sampling.second_dir),
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


def cell_config(config, *, p_uncond, **sampling):
  """Return a copy of the config at one point of a sweep.

  Args:
    config: ConfigDict of the sweep.
    p_uncond: of the model.
    **sampling: values of fields of `sampling`.
  """
  config = config.copy_and_resolve_references()
  config.diffusion.p_uncond = p_uncond
  config.sampling.update(sampling)
  return config


def classifier_config(config):
  """Return the config of a sweep's own classifier: sweep.classifier's fields.

  None where there are no such fields.
  """
  if not config.sweep.classifier:
    return None
  changed = config.copy_and_resolve_references()
  for field, value in _flatten(to_dict(config.sweep.classifier)).items():
    *sections, name = field.split(".")
    section = get(changed, ".".join(sections)) if sections else changed
    section[name] = tuple(value) if isinstance(value, list) else value
  changed.sampling.w = 0.0
  changed.sampling.guidance = "none"
  return changed


def _encoder_arguments(config):
  model = config.model
  return {
    "model_channels": model.model_channels,
    "channel_mult": tuple(model.channel_mult),
    "num_res_blocks": model.num_res_blocks,
    "attention_resolutions": tuple(model.attention_resolutions),
    "num_head_channels": model.num_head_channels,
    "new_attention_order": model.new_attention_order,
    "dropout": model.dropout,
    "dtype": model.dtype,
    "remat": model.remat,
  }


def unet_arguments(config):
  """Return the keyword arguments of `models.unet.UNet`."""
  data, model = config.data, config.model
  return _encoder_arguments(config) | {
    "num_heads": model.num_heads,
    "num_labels": data.num_classes + int(model.null_row),
    "out_channels": data.channels * (2 if model.learn_sigma else 1),
  }


def classifier_arguments(config):
  """Return the keyword arguments of `models.classifier.Classifier`."""
  return _encoder_arguments(config) | {"num_classes": config.data.num_classes}


def second_network(config):
  """Return what guidance needs beside the model: its task, or None."""
  if config.sampling.guidance in _BY_CLASSIFIER:
    return "classifier"
  return "diffusion" if config.sampling.guidance == "auto" else None


def sampling_choices(config):
  """Return the fields of `sampling.sampler.Choices` that a config has."""
  sampling = config.sampling
  names = ("sampler", "guidance", "threshold", "w_schedule", "classifier_form")
  choices = {name: sampling[name] for name in names}
  return choices | {"rescale": sampling.rescale > 0}


def sampling_numbers(config):
  """Return the settings that do not compile again, by name."""
  sampling = config.sampling
  names = ("v", "w", "classifier_w", "rescale", "quantile")
  names += ("score_scale", "noise_scale")
  low, high = tuple(sampling.interval) or (-math.inf, math.inf)
  numbers = {name: float(sampling[name]) for name in names}
  return numbers | {"interval_low": float(low), "interval_high": float(high)}


def adam_arguments(config):
  """Return the keyword arguments of `training.state.make_optimizer`."""
  average = ("ema_decay", "ema_warmup")
  return {k: v for k, v in config.optim.items() if k not in average}


def parametrization(config):
  """Return the keyword arguments of `parametrization.denoiser`."""
  return {"timesteps": config.diffusion.timesteps} | logsnr_range(config)


def logsnr_range(config):
  """Return the keyword arguments of the schedule's functions."""
  return {
    "logsnr_min": config.diffusion.logsnr_min,
    "logsnr_max": config.diffusion.logsnr_max,
  }


def image_shape(config):
  """Return (H, W, C)."""
  data = config.data
  return data.image_size, data.image_size, data.channels


def source_arguments(config):
  """Return the keyword arguments of `data.sources.load`."""
  data = config.data
  return {
    "crop": data.crop,
    "image_size": data.image_size,
    "channels": data.channels,
    "num_classes": data.num_classes,
    "data_dir": data.dir,
  }


def from_dict(like, plain):
  """Return a recorded config with the fields and types of another.

  Args:
    like: ConfigDict, such as that of a run that reads another run's.
    plain: nested dicts, of `read_recorded`.
  """
  config = like.copy_and_resolve_references()
  known = _flatten(to_dict(config))
  with config.ignore_type(), config.unlocked():
    for field, value in _flatten(plain).items():
      if field in known:
        *sections, name = field.split(".")
        section = get(config, ".".join(sections)) if sections else config
        section[name] = tuple(value) if isinstance(value, list) else value
  return config


def to_dict(config):
  """Return the config as plain nested dicts and lists, as JSON has them."""
  return json.loads(config.to_json_best_effort())


def identity(config):
  """Return the fields that a trained model depends on.

  What is left out may change from call to call: how long to train, how often
  to log and save, and all of sampling and evaluation.
  """
  plain = to_dict(config)
  return {
    section: fields
    if not isinstance(fields, dict)
    else {k: v for k, v in fields.items() if k not in _FREE.get(section, ())}
    for section, fields in plain.items()
    if section not in _FREE_SECTIONS
  }


def digest(plain):
  """Return 8 hexadecimal digits that name a JSON-like value."""
  text = json.dumps(plain, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _flatten(plain, prefix=""):
  flat = {}
  for key, value in plain.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = value
  return flat


def read_recorded(workdir):
  """Return the config that a workdir was made with, as plain dicts.

  Raises:
    errors.UserError: there is none, or it is not JSON.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise errors.UserError(f"{path}: no such file; not the workdir of a run")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise errors.UserError(
      f"{path} is not JSON ({error}): use another --workdir"
    ) from error


def claim_workdir(config, workdir, *, write, but=()):
  """Make sure that a workdir belongs to this config.

  Args:
    config: ConfigDict.
    workdir: folder of the run.
    write: record the config where the folder has none yet.
    but: fields that may differ.

  Raises:
    errors.UserError: the folder was made with another config; names the first
      fields that differ.
  """
  path = epath.Path(workdir) / "config.json"
  ours = _flatten(identity(config))
  if not path.exists():
    if write:
      files.write_atomic(path, json.dumps(to_dict(config), indent=2) + "\n")
    return
  recorded = read_recorded(workdir)
  theirs = {k: v for k, v in _flatten(recorded).items() if k in ours}
  differing = [
    f"{field}: {theirs.get(field, 'absent')!r} there, {value!r} now"
    for field, value in ours.items()
    if theirs.get(field) != value and field not in but
  ]
  if differing:
    raise errors.UserError(
      f"{workdir} was made with another config ({'; '.join(differing[:3])}"
      f"{'; ...' if len(differing) > 3 else ''}): use another --workdir or the "
      "same config"
    )
