"""Score samples with the feature network that the config names."""

import dataclasses
import json

from absl import logging
from etils import epath
import jax

from cfgd import build
from cfgd import identity
from cfgd.metrics import fid
from cfgd.metrics import own
from cfgd.runtime import distributed
from cfgd.runtime import errors

# Fields that say where things are, not what they are.
_PLACES = ("feature_dir", "cache_dir", "inception", "data_dir")


def evaluate(config, workdir, samples):
  """Compute and write the metrics of a run's samples.

  Args:
    config: ConfigDict. metrics.feature_network is "inception", see
      `fid.evaluate`, or a small classifier trained on the data itself, see
      `own.evaluate`.
    workdir: folder of the run.
    samples: path, see `image_sets.open_images`.

  Returns:
    Dict with "metrics" (name -> float), "num_samples" and "provenance". It is
    written as JSON beside the samples, and read back from there if these
    samples have been scored in this way before.
  """
  if config.metrics.feature_network == "inception":
    return fid.evaluate(
      config,
      samples,
      *_inception_reference(config),
      shared=own.folder(config, workdir),
    )
  return own.evaluate(config, workdir, samples)


def prepare(config, workdir):
  """Make everything that scoring needs besides the samples.

  Includes the scores of real held-out images, see `held_out`.
  """
  if config.metrics.feature_network == "inception":
    fid.prepare(
      config,
      *_inception_reference(config),
      shared=own.folder(config, workdir),
    )
  else:
    own.reference(config, workdir)
  _score_held_out(config, workdir)


def held_out(config, workdir):
  """Return the scores of real held-out images, to show beside those of samples.

  As many images as a run samples, or all if there are fewer; the scores are
  kept in held_out/ of the workdir. Among several processes `prepare` makes
  them, which takes all of them; this function waits for none.

  Returns:
    Dict with "metrics", named as those of samples, without the comparisons with
    held-out images; "num_samples"; and "about" with what they depend on, for a
    data set's own network also "feature_network_accuracy", "dead_features" and
    "num_features". None if there are no held-out images or too few.
  """
  path = _held_out_path(config, workdir)
  if path.exists():
    return json.loads(path.read_text())
  return None if jax.process_count() > 1 else _score_held_out(config, workdir)


def _held_out_path(config, workdir):
  """Return a path named by what the scores depend on, without opening data."""
  data = dataclasses.asdict(build.data_spec(config))
  del data["random_crop"]  # which evaluation never has
  parts = {"metrics": identity.to_dict(config.metrics), "data": data}
  what = {
    part: {k: v for k, v in fields.items() if k not in _PLACES}
    for part, fields in parts.items()
  }
  what["num_samples"] = config.sampling.num_samples
  name = f"{identity.digest(what)}.json"
  return epath.Path(workdir) / "held_out" / name


def _score_held_out(config, workdir):
  path = _held_out_path(config, workdir)
  if config.metrics.feature_network != "inception":
    return own.held_out(config, workdir, path)
  try:
    source = distributed.in_all(lambda: build.source(config, "heldout"))
  except errors.UserError as error:
    logging.info("No held-out images are scored: %s", error)
    return None
  return fid.held_out(
    config,
    *_inception_reference(config),
    source,
    path,
    shared=own.folder(config, workdir),
  )


def _inception_reference(config):
  """Return (reference, id of the preprocessing that it must have)."""
  name = config.metrics.reference or config.data.source
  try:
    source = distributed.in_all(lambda: build.source(config, "train"))
  except errors.UserError as error:
    # Statistics do not need the data set; without them `fid` will report it.
    logging.info("The reference's preprocessing is not checked: %s", error)
    return name, ""
  return name, source.preprocessing
