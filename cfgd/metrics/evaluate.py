"""Score samples by the network that the config names."""

import functools
import json

from absl import logging
from etils import epath
import numpy as np

from cfgd import config as config_lib
from cfgd import distributed
from cfgd import errors
from cfgd import files
from cfgd import validation
from cfgd.data import sources
from cfgd.metrics import extract
from cfgd.metrics import feature_training
from cfgd.metrics import fid
from cfgd.metrics import image_sets
from cfgd.metrics import scores


def evaluate(config, workdir, samples):
  """Compute and write the metrics of samples of a run.

  Args:
    config: ConfigDict of configs/base.py's fields. metrics.feature_network
      says by what: "inception", see `fid.evaluate`, or "embedded", the embedded
      data's own small network, whose distances are called fd_embedded and never
      FID.
    workdir: folder of the run; the embedded data's network is kept in it unless
      metrics.feature_dir names another place.
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
  return _evaluate_embedded(config, workdir, samples)


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
    reference(config, workdir)


def _inception_reference(config):
  """Return (reference, id of the preprocessing that it must have)."""
  name = config.metrics.reference or config.data.source
  try:
    return name, _load(config, "train").preprocessing
  except errors.UserError as error:
    # Statistics do without the data set; without them, it will be missed.
    logging.info("Preprocessing is not compared: %s", error)
    return name, ""


def _load(config, split):
  return sources.load(
    config.data.source, split, **config_lib.source_arguments(config)
  )


def _evaluate_embedded(config, workdir, samples):
  validation.validate_sampling(config)
  samples = epath.Path(samples)
  images = _open(samples, config_lib.image_shape(config))
  for field, needed in (
    ("num_splits", config.metrics.num_splits),
    ("neighbours", config.metrics.neighbours + 1),
  ):
    if len(images) < needed:
      raise errors.UserError(
        f"metrics.{field}={config.metrics[field]}: {samples} has only "
        f"{len(images)} images; lower it or sample more"
      )
  train, held_out, network, params, name = reference(config, workdir)
  provenance = {
    "samples_sha256": images.fingerprint,
    "feature_network": name,
    "reference": train.preprocessing,
    "num_splits": config.metrics.num_splits,
    "neighbours": config.metrics.neighbours,
  }
  result = samples.with_name(
    samples.name.removesuffix(".npz") + ".metrics.json"
  )
  if result.exists():
    recorded = json.loads(result.read_text())
    if recorded["provenance"] == provenance:
      logging.info("Metrics are there: %s", result)
      return recorded
  metrics = _score(config.metrics, network, params, images[:], train, held_out)
  report = {
    "metrics": metrics,
    "num_samples": len(images),
    "provenance": provenance,
  }
  if distributed.is_lead():
    files.write_atomic(result, json.dumps(report, indent=2) + "\n")
  logging.info(
    "%s", ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
  )
  return report


def reference(config, workdir):
  """Return the embedded data's (train, held-out, network, params, name)."""
  if config.data.source != "embedded":
    raise errors.UserError(
      f"data.source='{config.data.source}': only the embedded data can be "
      "scored so far"
    )
  train, held_out = _load(config, "train"), _load(config, "heldout")
  folder = config.metrics.feature_dir or epath.Path(workdir) / "feature_net"
  network = feature_training.ensure(
    folder,
    train,
    held_out,
    seed=config.seed,
    **config.metrics.feature_net.to_dict(),
  )
  return train, held_out, *network


def _open(path, shape):
  images = image_sets.open_images(path)
  if images.shape != shape:
    raise errors.UserError(
      f"{path}: images of {[len(images), *images.shape]}; needed: uint8 "
      f"[N, {', '.join(map(str, shape))}]"
    )
  return images


def _score(metrics, network, params, images, train, held_out):
  run = functools.partial(
    extract.extract, network, params, batch_size=metrics.batch_size
  )
  features, probabilities = run(images)
  real, unseen = run(train.images)[0], run(held_out.images)[0]

  def distance(other):
    moments = [
      scores.mean_and_covariance(
        scores.add(scores.empty_moments(rows.shape[1]), rows)
      )
      for rows in (other, features)
    ]
    return scores.frechet_distance(*moments[0], *moments[1])

  mean, std = scores.inception_score(
    probabilities, metrics.num_splits, np.random.default_rng(0)
  )
  precision, recall = scores.precision_recall(
    real, features, metrics.neighbours
  )
  return {
    "fd_embedded": float(distance(real)),
    "fd_embedded_heldout": float(distance(unseen)),
    "is_embedded": float(mean),
    "is_embedded_std": float(std),
    "precision": float(precision),
    "recall": float(recall),
  }
