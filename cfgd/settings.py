"""What samples and a sweep's cells depend on, and what names their folders.

A folder is named by those settings that have an effect and are not at their
default, so that neither a field without effect nor a new field renames it. All
settings that have an effect are recorded in it, and compared before it is used
again: a name does not tell what a default was when the folder was made.
"""

from collections.abc import Callable
import json
from typing import Any
from typing import NamedTuple

from absl import logging
from etils import epath

from cfgd import config as config_lib
from cfgd.runtime import errors
from cfgd.runtime import files

# Fields of `sampling` that only say how the images are spread over calls and
# files.
_LAYOUT = ("batch_size", "chunk_size")


class _Rule(NamedTuple):
  """Where fields of `sampling` have no effect.

  Attributes:
    fields: names.
    because: field by whose value a reader sees why.
    holds: ConfigDict -> whether the fields have no effect.
  """

  fields: tuple[str, ...]
  because: str
  holds: Callable[[Any], bool]


def _at(fields, because, *values):
  """Return the rule that fields have no effect at some values of another."""
  return _Rule(
    fields, because, lambda config: config_lib.get(config, because) in values
  )


def effective_guidance(sampling):
  """Return the guidance that gives the same images with the fewest networks.

  "none" where the strength is 0, and "cfg" where cfg+classifier's classifier
  has none; else `sampling.guidance` itself.
  """
  kind = sampling.guidance
  if kind == "cfg+classifier" and not sampling.classifier_w:
    kind = "cfg"
  by_w = ("cfg", "auto", "marginal", "classifier")
  return "none" if kind in by_w and not sampling.w else kind


def _guides_as(kind):
  return lambda config: effective_guidance(config.sampling) == kind


def _all_strengths_are_zero(config):
  """Say so of what w_schedule and interval apply to."""
  sampling = config.sampling
  other = sampling.guidance == "cfg+classifier" and sampling.classifier_w
  return not sampling.w and not other


# Values are listed, never excluded: of a sampler, guidance or threshold that
# does not stand here, all fields are taken to have an effect.
_NO_EFFECT = (
  # By the threshold.
  _at(("quantile",), "sampling.threshold", "clip", "none"),
  # By the sampler and its noise.
  _at(("v", "v_from", "noise_scale"), "sampling.sampler", "ddim"),
  _Rule(
    ("v", "v_from"),
    "sampling.noise_scale",
    lambda config: (
      config.sampling.sampler == "ancestral" and not config.sampling.noise_scale
    ),
  ),
  _at(("v_from",), "model.learn_sigma", False),
  _Rule(
    ("v",),
    "sampling.v_from",
    lambda config: config.model.learn_sigma and config.sampling.v_from == "own",
  ),
  # By the kind of guidance.
  _at(("w_schedule", "interval", "rescale"), "sampling.guidance", "none"),
  _at(("second_dir", "second_step"), "sampling.guidance", "none", "cfg"),
  _at(
    ("classifier_form",),
    "sampling.guidance",
    *("none", "cfg", "auto", "marginal", "cfg+classifier"),
  ),
  _at(
    ("classifier_w",),
    "sampling.guidance",
    *("none", "cfg", "auto", "marginal", "classifier", "classifier_null"),
  ),
  # By its strength.
  _Rule(("w_schedule", "interval"), "sampling.w", _all_strengths_are_zero),
  _at(("rescale",), "sampling.w", 0.0),
  _Rule(
    ("second_dir", "second_step", "classifier_form"),
    "sampling.w",
    _guides_as("none"),
  ),
  _Rule(
    ("second_dir", "second_step"),
    "sampling.classifier_w",
    _guides_as("cfg"),
  ),
)


def unused(config):
  """Return {field of `sampling` without effect: field that says why}."""
  found = {}
  for rule in _NO_EFFECT:
    if rule.holds(config):
      for field in rule.fields:
        found.setdefault(field, rule.because)
  return found


def why_unused(config, field):
  """Return "A=1 has no effect with B=2" of a field of `unused`."""
  because = unused(config)[field]
  return (
    f"sampling.{field}={config.sampling[field]!r} has no effect with "
    f"{because}={config_lib.get(config, because)!r}"
  )


def warn_of_unused(config):
  """Log one line that names the fields that are set and have no effect."""
  default = config_lib.defaults()
  plain = config_lib.to_dict(config)["sampling"]
  needed = config_lib.second_network(config) is not None
  idle = [
    why_unused(config, field)
    for field in unused(config)
    if plain[field] != default[f"sampling.{field}"]
    # At w = 0 a second network still has to be there.
    and not (needed and field in ("second_dir", "second_step"))
  ]
  if idle:
    logging.warning("%s.", "; ".join(idle))


def of_sampling(config):
  """Return the fields of `sampling` that have an effect, by dotted name.

  Configs that make the same images by another guidance have the same, see
  `effective_guidance`.
  """
  config = config.copy_and_resolve_references()
  config.sampling.guidance = effective_guidance(config.sampling)
  config.sampling.interval = tuple(map(float, config.sampling.interval))
  idle = {*_LAYOUT, *unused(config)}
  plain = config_lib.to_dict(config)["sampling"]
  return {f"sampling.{k}": v for k, v in plain.items() if k not in idle}


def digest(settings, default=None):
  """Return 8 hexadecimal digits that name settings by what is not default.

  Args:
    settings: value by dotted field, as JSON has it.
    default: defaults by field, configs/base.py's where there are none; a
      setting without one is always named.
  """
  default = default or config_lib.defaults()
  named = {
    field: value
    for field, value in settings.items()
    if field not in default or default[field] != value
  }
  return config_lib.digest(named)


def claim(path, settings, default=None, *, write):
  """Make sure that a folder belongs to these settings.

  Args:
    path: of the folder's record, settings.json.
    settings: see `digest`.
    default: see `digest`; a field that the record lacks counts as recorded at
      its default.
    write: record the settings where the folder has none yet.

  Raises:
    errors.UserError: they are not those of the folder: a default has changed
      since it was made.
  """
  path = epath.Path(path)
  if not path.exists():
    if write:
      files.write_atomic(path, json.dumps(settings, indent=2) + "\n")
    return
  remedy = f"delete {path.parent} to make it again"
  there = config_lib.read_json(path, remedy)
  default = default or config_lib.defaults()
  found = config_lib.differences(there, settings, default)
  if found:
    raise errors.UserError(
      f"{path.parent} was made with other defaults "
      f"({config_lib.first_few(found.values())}): set these fields as they "
      f"were, or {remedy}"
    )
