"""Which fields make a model, its samples and its scores what they are.

A model is what its workdir's config.json recorded. Folders of samples and of a
sweep's cells are named by the settings that have an effect and are not at their
default, so that neither a new field nor one without effect renames them; all
settings with an effect are recorded in the folder's settings.json and compared
before it is used again, as a name does not tell what a default was.
"""

import hashlib
import json

from absl import logging
from etils import epath
from flax import traverse_util

from cfgd import diffusion
from cfgd import methods
from cfgd.runtime import errors
from cfgd.runtime import files
from configs import base

# Fields that have another name now, and what to use instead.
RENAMED = {
  "sampling.second_dir": "use sampling.guide_dir",
  "sampling.second_step": "use sampling.guide_step",
  "sampling.classifier_form": (
    "use sampling.sampler='ancestral_mean_shift' for 'mean'; 'eps' is the "
    "default"
  ),
}
# Records have kept the names that these fields had when the first were made.
_RECORDED_AS = {
  "sampling.guide_dir": "sampling.second_dir",
  "sampling.guide_step": "sampling.second_step",
}
# Fields that may change between two calls on one workdir. A new field may be
# added here; one that runs have recorded must stay where it is, or their
# digests change.
_FREE = {
  "distill": ("teacher",),
  "data": ("dir", "threads", "prefetch"),
  "model": ("remat",),
  "train": (
    *("microbatches", "steps", "log_every", "checkpoint_every"),
    *("sample_every", "keep", "keep_every", "keep_first", "watchdog_seconds"),
    *("lease_seconds", "heldout_images", "max_skipped"),
  ),
}
_FREE_SECTIONS = ("sampling", "metrics", "sweep")
# Fields of `sampling` that change no image: how they are spread over calls and
# files.
_LAYOUT = ("batch_size", "chunk_size")
# Fields of `sampling` that predictions depend on, whatever the sampler.
_OF_PREDICT = (*methods.Strength._fields, "v", "rescale", "score_scale")
# Fields of a model that its samples may have otherwise: the computation's type,
# as parameters are float32, and which teacher it had, as none is needed now.
_NOT_OF_SAMPLES = (
  *("model.dtype", "distill.teacher_step", "distill.teacher_model"),
)
# Recorded fields that say where checkpoints are and how many images there are.
_PLACES = (
  *("sampling.num_samples", "sampling.checkpoint_step"),
  *("sampling.second_dir", "sampling.second_step"),
)


# Configs as plain values.


def to_dict(config):
  """Return the config as plain nested dicts and lists, as JSON has them."""
  return json.loads(config.to_json_best_effort())


def flatten(plain):
  """Return nested dicts as one, by dotted names."""
  return traverse_util.flatten_dict(plain, sep=".")


def fields(config):
  """Return the values of a config by dotted field, as JSON has them."""
  return flatten(to_dict(config))


def defaults():
  """Return configs/base.py's value of every field, by dotted name.

  A record that lacks a field was made before the field was, by code that did
  what its default says.
  """
  return fields(base.get_config())


def digest(plain):
  """Return 8 hexadecimal digits that name a JSON-like value."""
  text = json.dumps(plain, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def from_dict(plain):
  """Return a recorded config with today's fields and types.

  A field that was not recorded gets its default; recorded fields that no longer
  exist are dropped.

  Args:
    plain: nested dicts, as config.json has them.
  """
  config = base.get_config()
  known = defaults()
  recorded = {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in flatten(plain).items()
    if field in known
  }
  with config.ignore_type():
    config.update_from_flattened_dict(recorded)
  return config


# Models.


def of_model(config):
  """Return the fields, as nested dicts, that a trained model depends on.

  The others may change from call to call: how long to train, how often to log
  and save, and all of sampling and evaluation.
  """
  return _of_model(to_dict(config))


def _of_model(plain):
  return {
    section: value
    if not isinstance(value, dict)
    else {k: v for k, v in value.items() if k not in _FREE.get(section, ())}
    for section, value in plain.items()
    if section not in _FREE_SECTIONS
  }


# What a network must share with one that guides or teaches it.
_SHARED = {
  "data": ("image_size", "channels", "num_classes"),
  "diffusion": ("timesteps", "logsnr_min", "logsnr_max"),
}


def require_shared(ours, theirs, where):
  """Raise unless two networks are for the same images and noise levels.

  Args:
    ours: ConfigDict.
    theirs: ConfigDict of the other network.
    where: it is, for the message, as "field=folder".

  Raises:
    errors.UserError: names the first field that differs.
  """
  for section, names in _SHARED.items():
    for name in names:
      one, other = ours[section][name], theirs[section][name]
      if one != other:
        raise errors.UserError(
          f"{where} was trained with {section}.{name}={other!r}, the model "
          f"with {one!r}: they must agree"
        )


def _record(workdir):
  return epath.Path(workdir) / "config.json"


def is_run(workdir):
  """Return whether a folder is the workdir of a run."""
  return bool(str(workdir)) and _record(workdir).exists()


def _read_record(workdir):
  path = _record(workdir)
  if not path.exists():
    raise errors.UserError(f"{path}: no such file; not the workdir of a run")
  return _read_json(path, "use another --workdir")


def _read_json(path, remedy):
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise errors.UserError(f"{path} is not JSON ({error}): {remedy}") from error


def recorded_config(workdir):
  """Return the config that a workdir was made with, see `from_dict`.

  Raises:
    errors.UserError: there is none, or it is not JSON.
  """
  return from_dict(_read_record(workdir))


def teacher_of(workdir):
  """Return (digest, step) of the teacher of a begun student; else ("", -1)."""
  if not _record(workdir).exists():
    return "", -1
  distill = recorded_config(workdir).distill
  return distill.teacher_model, distill.teacher_step


def model_digest(config, workdir):
  """Return the digest of a model as its workdir recorded it.

  So it stays the same when fields are added to configs/base.py. A config that
  `claim_workdir` accepts there has this identity.

  Args:
    config: ConfigDict of the run, for a workdir without a record.
    workdir: folder of the run.
  """
  recorded = _record(workdir).exists()
  plain = _read_record(workdir) if recorded else to_dict(config)
  return digest(_of_model(plain))


def claim_workdir(config, workdir, *, write, ignore=()):
  """Make sure that a workdir belongs to this config.

  A field that the record lacks counts as recorded at its default. A recorded
  field that no longer exists is ignored, with a warning.

  Args:
    config: ConfigDict.
    workdir: folder of the run.
    write: record the config where the folder has no record.
    ignore: fields that may differ.

  Raises:
    errors.UserError: the folder was made with another config; names the first
      fields that differ. Or it cannot be used, see `files.check_place`.
  """
  files.check_place(workdir)
  path = _record(workdir)
  if path.exists():
    _compare_workdir(config, workdir, ignore)
  elif write:
    files.write_atomic(path, json.dumps(to_dict(config), indent=2) + "\n")


def _compare_workdir(config, workdir, ignore):
  now = flatten(of_model(config))
  there = flatten(_of_model(_read_record(workdir)))
  found = _differences(there, now, defaults())
  differing = [text for field, text in found.items() if field not in ignore]
  if differing:
    raise errors.UserError(
      f"{workdir} was made with another config ({_first_few(differing)}): use "
      "another --workdir or the same config"
    )
  unknown = [f"{k}={v!r}" for k, v in there.items() if k not in now]
  if unknown:
    logging.warning(
      "%s has fields that no longer exist; they are ignored: %s.",
      _record(workdir),
      ", ".join(unknown),
    )


def _differences(there, now, default):
  """Return {field: text} of the fields of `now` that are recorded otherwise."""
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


def _first_few(texts):
  texts = list(texts)
  return "; ".join(texts[:3]) + ("; ..." if len(texts) > 3 else "")


# Samples.


def _reduced(sampling):
  """Return the method with the same samples as `sampling.guidance`'s.

  Of those, the one that needs the fewest networks at the strengths set.

  Args:
    sampling: the config's section.
  """
  name = sampling.guidance
  while True:
    at_zero = methods.METHODS[name].at_zero
    same = [at_zero[strength] for strength in at_zero if not sampling[strength]]
    if not same:
      return name
    name = same[0]


def unused(config):
  """Return {field of `sampling` without effect: the field that says why}."""
  sampling = config.sampling
  method = methods.METHODS[sampling.guidance]
  sampler = diffusion.SAMPLERS[sampling.sampler]
  threshold = methods.THRESHOLDS[sampling.threshold]
  grid = methods.GRIDS[sampling.grid]
  noisy = "noise_scale" not in sampler.numbers or sampling.noise_scale
  still = ()
  if "churn" in sampler.numbers and not sampling.churn:
    still = ("churn_low", "churn_high", "noise_scale")
  of_samplers = _others(diffusion.SAMPLERS, sampling.sampler)
  rules = [
    ("sampling.threshold", _others(methods.THRESHOLDS, sampling.threshold)),
    ("sampling.grid", _others(methods.GRIDS, sampling.grid)),
    ("sampling.sampler", [k for k in of_samplers if k not in _OF_PREDICT]),
    ("sampling.sampler", () if sampler.uses_v else ("v", "v_from")),
    ("sampling.noise_scale", () if noisy else ("v", "v_from")),
    ("sampling.churn", still),
    ("model.learn_sigma", () if config.model.learn_sigma else ("v_from",)),
    (
      "sampling.v_from",
      ("v",) if config.model.learn_sigma and sampling.v_from == "own" else (),
    ),
    ("sampling.guidance", _idle_with(method)),
  ]
  if not any(sampling[strength] for strength in method.strengths):
    rules.append(("sampling.w", ("w_schedule", "interval", "rescale")))
  if "w" in method.strengths and not sampling.w:
    rules.append(("sampling.w", ("rescale",)))
  if not methods.METHODS[_reduced(sampling)].guide:
    zero = next(iter(method.at_zero), "w")
    rules.append((f"sampling.{zero}", ("guide_dir", "guide_step")))
  used = {*sampler.numbers, *threshold.numbers, *grid.numbers} - {*still}
  found = {}
  for because, names in rules:
    for name in names:
      if name not in used:
        found.setdefault(name, because)
  return found


def _others(rows, chosen):
  """Return the numbers that other rows of a table use, and the chosen not."""
  used = {name for row in rows.values() for name in row.numbers}
  return sorted(used - set(rows[chosen].numbers))


def _idle_with(method):
  """Return the fields of `sampling` that a method has no use for."""
  idle = [
    name for name in methods.Strength._fields if name not in method.strengths
  ]
  idle += [] if method.strengths else ["w_schedule", "interval"]
  idle += [] if method.combines else ["rescale"]
  idle += [] if method.guide else ["guide_dir", "guide_step"]
  # w is 0 there, or validation refuses it.
  return [name for name in idle if name != "w"]


def why_unused(config, field):
  """Return "A=1 has no effect with B=2" of a field of `unused`."""
  because = unused(config)[field]
  return (
    f"sampling.{field}={config.sampling[field]!r} has no effect with "
    f"{because}={fields(config)[because]!r}"
  )


def warn_of_unused(config):
  """Log one line that names the fields that are set without effect."""
  default, now = defaults(), fields(config)
  needed = methods.METHODS[config.sampling.guidance].guide
  idle = [
    why_unused(config, name)
    for name in unused(config)
    if now[f"sampling.{name}"] != default[f"sampling.{name}"]
    # At w = 0 the guiding network still has to exist.
    and not (needed and name in ("guide_dir", "guide_step"))
    # Samplers without a use for a network's own v need it to be said.
    and not (config.model.learn_sigma and name == "v_from")
  ]
  if idle:
    logging.warning("%s.", "; ".join(idle))


def of_sampling(config):
  """Return the fields of `sampling` that have an effect, by recorded name.

  Configs whose images are the same by another guidance have the same, see
  `_reduced`.
  """
  config = config.copy_and_resolve_references()
  sampling = config.sampling
  sampling.guidance = _reduced(sampling)
  without_score = diffusion.SAMPLERS[sampling.sampler].without_score
  if without_score and not methods.METHODS[sampling.guidance].score:
    sampling.sampler = without_score
  config.sampling.interval = tuple(map(float, config.sampling.interval))
  idle = {*_LAYOUT, *unused(config)}
  plain = to_dict(config)["sampling"]
  return _recorded(
    {f"sampling.{k}": v for k, v in plain.items() if k not in idle}
  )


def _recorded(flat):
  flat = {_RECORDED_AS.get(field, field): v for field, v in flat.items()}
  # A sampler that was a form of classifier guidance.
  if flat.get("sampling.sampler") == "ancestral_mean_shift":
    flat["sampling.sampler"] = "ancestral"
    flat["sampling.classifier_form"] = "mean"
  return flat


def recorded_name(name):
  """Return the name that records have for a field of `sampling`."""
  field = f"sampling.{name}"
  return _RECORDED_AS.get(field, field).removeprefix("sampling.")


def recorded_defaults():
  """Return `defaults` by the names that records have."""
  return _recorded(defaults())


def settings_digest(settings, default=None):
  """Return 8 hexadecimal digits that name settings by what is not default.

  Args:
    settings: value by dotted field, as JSON has it.
    default: by field, `recorded_defaults` unless given; a setting without a
      default is always named.
  """
  default = default or recorded_defaults()
  named = {
    field: value
    for field, value in settings.items()
    if field not in default or default[field] != value
  }
  return digest(named)


def claim_samples(model, guide, *, write):
  """Return the folder of a model's samples; make sure that it belongs to them.

  Args:
    model: (config, workdir, step of the checkpoint).
    guide: the same of the guiding network, or None.
    write: record the settings where there is no record.

  Raises:
    errors.UserError: the workdir is of another run, or the samples were made
      with other defaults.
  """
  config, workdir, step = model
  warn_of_unused(config)
  claim_workdir(config, workdir, write=False, ignore=_NOT_OF_SAMPLES)
  sampling = of_sampling(config)
  found = {
    "model": model_digest(config, workdir),
    "model.dtype": config.model.dtype,
    "checkpoint_step": step,
    "second": None,
    **{k: v for k, v in sampling.items() if k not in _PLACES},
  }
  if "sampling.second_dir" in sampling:
    theirs, folder, step_of_guide = guide
    digest_of_guide = model_digest(theirs, folder)
    found["second"] = {
      "model": digest_of_guide,
      "checkpoint_step": step_of_guide,
    }
  kind, method, num_steps, w = (
    found[f"sampling.{name}"] for name in ("sampler", "guidance", "T", "w")
  )
  name = f"{kind}_{method}_T{num_steps}_w{w:g}_step{step}"
  name += f"-{settings_digest(found)}"
  folder = epath.Path(workdir) / "samples" / name
  claim_settings(folder / "settings.json", found, write=write)
  return folder


def claim_settings(path, settings, default=None, *, write):
  """Make sure that a folder belongs to these settings.

  Args:
    path: of the folder's record, settings.json.
    settings: see `settings_digest`.
    default: see `settings_digest`; a field that the record lacks counts as
      recorded at its default.
    write: record the settings where the folder has no record.

  Raises:
    errors.UserError: the record has other values: a default has changed since.
  """
  path = epath.Path(path)
  if not path.exists():
    found = {}
  else:
    remedy = f"delete {path.parent} to make it again"
    there = _read_json(path, remedy)
    found = _differences(there, settings, default or recorded_defaults())
  if found:
    raise errors.UserError(
      f"{path.parent} was made with other defaults "
      f"({_first_few(found.values())}): set these fields as they were, or "
      f"{remedy}"
    )
  if write and not path.exists():
    files.write_atomic(path, json.dumps(settings, indent=2) + "\n")
