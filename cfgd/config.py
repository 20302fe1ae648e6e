"""A config's fields as arguments, and which of them make a run what it is."""

import dataclasses
import hashlib
import json
import math

from absl import logging
from etils import epath

from cfgd.data import spec
from cfgd.runtime import errors
from cfgd.runtime import files
from configs import base

# Fields that may change between two calls on one workdir. A new field may be
# added here; one that runs have been made with must stay where it is, or their
# digests change.
_FREE = {
  "data": ("dir", "threads", "prefetch"),
  "model": ("remat",),
  "train": (
    "microbatches",
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
# Ways of guiding that need a noisy classifier.
GUIDED_BY_CLASSIFIER = (
  *("classifier", "classifier_null", "cfg+classifier"),
  "marginal",
)


def get(config, field):
  """Return a field by its dotted name."""
  for name in field.split("."):
    config = config[name]
  return config


def _put(config, field, value):
  """Set a field by its dotted name; a list of JSON's is a tuple of ours."""
  *sections, name = field.split(".")
  for section in sections:
    config = config[section]
  config[name] = tuple(value) if isinstance(value, list) else value


def cell_config(config, *, p_uncond, seed=None, **sampling):
  """Return a copy of the config at one point of a sweep.

  Args:
    config: ConfigDict of the sweep.
    p_uncond: of the model.
    seed: of training and sampling; None leaves the config's own.
    **sampling: values of fields of `sampling`.
  """
  config = config.copy_and_resolve_references()
  config.diffusion.p_uncond = p_uncond
  if seed is not None:
    config.seed = config.sampling.seed = seed
  config.sampling.update(sampling)
  return config


def classifier_config(config):
  """Return the config of a sweep's own classifier: sweep.classifier's fields.

  None where there are no such fields.
  """
  if not config.sweep.classifier:
    return None
  changed = config.copy_and_resolve_references()
  for field, value in flatten(to_dict(config.sweep.classifier)).items():
    _put(changed, field, value)
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
  if config.sampling.guidance in GUIDED_BY_CLASSIFIER:
    return "classifier"
  return "diffusion" if config.sampling.guidance == "auto" else None


def sampling_choices(config):
  """Return the fields of `sampling.sampler.Choices` that a config has."""
  sampling = config.sampling
  names = ("sampler", "guidance", "w_schedule", "v_from", "threshold")
  names += ("classifier_form",)
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


def data_spec(config):
  """Return the data.spec.Spec of evaluation, without random crops."""
  return dataclasses.replace(training_spec(config), random_crop=0.0)


def training_spec(config):
  """Return the data.spec.Spec of training, which may read random crops."""
  data = config.data
  return spec.Spec(
    source=data.source,
    image_size=data.image_size,
    crop=data.crop,
    random_crop=data.random_crop,
    background=data.background,
    data_dir=data.dir,
    channels=data.channels,
    num_classes=data.num_classes,
  )


def from_dict(plain):
  """Return a recorded config with today's fields and types.

  A field that was not recorded has its default, one that is no more is left
  out.

  Args:
    plain: nested dicts, of `read_recorded`.
  """
  config = base.get_config()
  known = defaults()
  with config.ignore_type(), config.unlocked():
    for field, value in flatten(plain).items():
      if field in known:
        _put(config, field, value)
  return config


def to_dict(config):
  """Return the config as plain nested dicts and lists, as JSON has them."""
  return json.loads(config.to_json_best_effort())


def defaults():
  """Return the default of every field, configs/base.py's, by dotted name.

  A record that lacks a field was made before there was one, by code that did
  what the field's default says.
  """
  return flatten(to_dict(base.get_config()))


def identity(config):
  """Return the fields that a trained model depends on.

  What is left out may change from call to call: how long to train, how often
  to log and save, and all of sampling and evaluation.
  """
  return _identity(to_dict(config))


def _identity(plain):
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


def model_digest(config, workdir):
  """Return the digest of a run's identity as its workdir recorded it.

  So it stays what it was when fields are added to configs/base.py. A config
  that `claim_workdir` accepts there has this identity.

  Args:
    config: ConfigDict of the run, for a workdir without a record.
    workdir: folder of the run.
  """
  recorded = _record(workdir).exists()
  plain = read_recorded(workdir) if recorded else to_dict(config)
  return digest(_identity(plain))


def flatten(plain, prefix=""):
  """Return nested dicts as one, by dotted names."""
  flat = {}
  for key, value in plain.items():
    if isinstance(value, dict):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = value
  return flat


def _record(workdir):
  return epath.Path(workdir) / "config.json"


def read_recorded(workdir):
  """Return the config that a workdir was made with, as plain dicts.

  Raises:
    errors.UserError: there is none, or it is not JSON.
  """
  path = _record(workdir)
  if not path.exists():
    raise errors.UserError(f"{path}: no such file; not the workdir of a run")
  return read_json(path, "use another --workdir")


def read_json(path, remedy):
  """Return what a JSON file says.

  Args:
    path: epath.Path.
    remedy: what to do where it is not JSON.

  Raises:
    errors.UserError: it is not JSON.
  """
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise errors.UserError(f"{path} is not JSON ({error}): {remedy}") from error


def differences(there, now, default):
  """Say in which fields a record differs from what is wanted.

  Args:
    there: recorded values by field.
    now: wanted ones.
    default: of fields that were not recorded.

  Returns:
    {field: "FIELD: A there, B now"} of the fields of `now` that differ. Fields
    that are recorded and no more do not count.
  """
  found = {}
  for field, value in now.items():
    if field in there:
      recorded, text = there[field], f"{there[field]!r} there"
    elif field in default:
      recorded, text = default[field], f"{default[field]!r} there by default"
    else:
      recorded, text = None, "absent there"
    if recorded != value:
      found[field] = f"{field}: {text}, {value!r} now"
  return found


def first_few(texts):
  """Return the first texts of a list as one."""
  texts = list(texts)
  return "; ".join(texts[:3]) + ("; ..." if len(texts) > 3 else "")


def claim_workdir(config, workdir, *, write, but=()):
  """Make sure that a workdir belongs to this config.

  A field that the workdir's record lacks counts as recorded at its default. One
  that is recorded but no longer exists is ignored, with a warning.

  Args:
    config: ConfigDict.
    workdir: folder of the run.
    write: record the config where the folder has none yet.
    but: fields that may differ.

  Raises:
    errors.UserError: the folder was made with another config; names the first
      fields that differ.
  """
  path = _record(workdir)
  if not path.exists():
    if write:
      files.write_atomic(path, json.dumps(to_dict(config), indent=2) + "\n")
    return
  now = flatten(identity(config))
  there = flatten(_identity(read_recorded(workdir)))
  differing = differences(there, now, defaults())
  differing = [text for field, text in differing.items() if field not in but]
  if differing:
    raise errors.UserError(
      f"{workdir} was made with another config ({first_few(differing)}): use "
      "another --workdir or the same config"
    )
  unknown = [f"{k}={v!r}" for k, v in there.items() if k not in now]
  if unknown:
    logging.warning(
      "%s has fields that no longer exist; they are ignored: %s.",
      path,
      ", ".join(unknown),
    )
