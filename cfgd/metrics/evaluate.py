"""Score samples by the network that the config names."""

from absl import logging

from cfgd import config as config_lib
from cfgd import errors
from cfgd.data import sources
from cfgd.metrics import fid
from cfgd.metrics import own


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


def held_out(config, workdir):
  """Return the scores of the real images that no model has seen.

  Args:
    config: see `evaluate`.
    workdir: see `evaluate`.

  Returns:
    None where there is no held-out part. Else a dict with "metrics" (name ->
    float, names as of samples), "num_samples" and "about", a dict that may have
    "feature_network_accuracy", the share of held-out images that the network
    classifies correctly.
  """
  del config, workdir
  return None


def prepare(config, workdir):
  """Make what scoring needs and does not depend on samples, or say what lacks.

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
