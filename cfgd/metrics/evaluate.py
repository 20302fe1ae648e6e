"""Score samples by the network that the config names."""

import json

from absl import logging
from etils import epath
import jax

from cfgd import config as config_lib
from cfgd.data import sources
from cfgd.metrics import fid
from cfgd.metrics import own
from cfgd.runtime import errors

# Fields of metrics that say where things are, not what.
_PLACES = ("feature_dir", "cache_dir", "inception")


def evaluate(config, workdir, samples):
  """Compute and write the metrics of samples of a run.

  Args:
    config: ConfigDict of configs/base.py's fields. metrics.feature_network
      says by what: "inception", see `fid.evaluate`, or a small classifier
      trained on the data itself, see `own.evaluate`.
    workdir: folder of the run.
    samples: path, see `image_sets.open_images`.

  Returns:
    Dict with "metrics" (name -> float), "num_samples" and "provenance"; it is
    also written as JSON beside the samples, and read back from there if these
    samples have been scored in this way before.

  Raises:
    errors.UserError: the samples are missing or not images of the data's shape.
  """
  if config.metrics.feature_network == "inception":
    return fid.evaluate(config, samples, *_inception_reference(config))
  return own.evaluate(config, workdir, samples)


def prepare(config, workdir):
  """Make what scoring needs and does not depend on samples, or say what lacks.

  The scores of real held-out images are part of it, see `held_out`.

  Args:
    config: see `evaluate`.
    workdir: see `evaluate`.
  """
  if config.metrics.feature_network == "inception":
    name, preprocessing = _inception_reference(config)
    wanted = {"preprocessing": preprocessing} if preprocessing else {}
    fid.prepare(config, name, wanted)
  else:
    own.reference(config, workdir)
  _score_held_out(config, workdir)


def held_out(config, workdir):
  """Return the scores of real held-out images, to show beside those of samples.

  They are as many as a run samples, or all where these are fewer. In several
  processes `prepare` makes the scores, for which it needs all of them; this
  function waits for none and may be called in one.

  Args:
    config: see `evaluate`.
    workdir: see `evaluate`; the scores are kept there in held_out/.

  Returns:
    Dict with "metrics", by the names that `evaluate` gives those of samples but
    for what compares with the held-out images themselves; "num_samples"; and
    "about" with what they depend on, for an own network also
    "feature_network_accuracy", "dead_features" and "num_features". None where
    there are none: no held-out images or too few.
  """
  path = _held_out_path(config, workdir)
  if path.exists():
    return json.loads(path.read_text())
  return None if jax.process_count() > 1 else _score_held_out(config, workdir)


def _held_out_path(config, workdir):
  """Name what the scores depend on that can be known without the data."""
  metrics = config_lib.to_dict(config.metrics)
  data = config_lib.source_arguments(config)
  for places, fields in ((metrics, _PLACES), (data, ("data_dir",))):
    for field in fields:
      del places[field]
  what = {
    "metrics": metrics,
    "data": data | {"source": config.data.source},
    "num_samples": config.sampling.num_samples,
  }
  name = f"{config_lib.digest(what)}.json"
  return epath.Path(workdir) / "held_out" / name


def _score_held_out(config, workdir):
  path = _held_out_path(config, workdir)
  if config.metrics.feature_network != "inception":
    return own.held_out(config, workdir, path)
  try:
    source = sources.load(
      config.data.source, "heldout", **config_lib.source_arguments(config)
    )
  except errors.UserError as error:
    logging.info("No held-out images are scored: %s", error)
    return None
  return fid.held_out(config, *_inception_reference(config), source, path)


def _inception_reference(config):
  """Return (reference, id of the preprocessing that it must have)."""
  name = config.metrics.reference or config.data.source
  try:
    source = sources.load(
      config.data.source, "train", **config_lib.source_arguments(config)
    )
  except errors.UserError as error:
    # Statistics do without the data set; without them, it will be missed.
    logging.info("Preprocessing is not compared: %s", error)
    return name, ""
  return name, source.preprocessing
