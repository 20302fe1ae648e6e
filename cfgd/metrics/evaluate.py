"""Score a file of samples against its data set."""

import functools
import hashlib
import io
import json
import zipfile

from absl import logging
from etils import epath
import numpy as np

from cfgd import config as config_lib
from cfgd import distributed
from cfgd import errors
from cfgd import files
from cfgd.data import sources
from cfgd.metrics import extract
from cfgd.metrics import feature_training
from cfgd.metrics import scores


def evaluate(config, workdir, samples):
  """Compute and write the metrics of samples.

  The embedded data's own small network gives features and class probabilities:
  the distances are called fd_embedded, never FID.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of the run; the feature network is kept in it unless
      metrics.feature_dir names another place.
    samples: path of an .npz with `arr_0` [N, H, W, C] uint8.

  Returns:
    Dict with "metrics" (name -> float), "num_samples" and "provenance"; it is
    also written as JSON beside the samples, and read back from there if these
    samples have been scored by this network before.

  Raises:
    errors.UserError: the file is missing or not images of the data's shape.
  """
  config_lib.validate_sampling(config)
  samples = epath.Path(samples)
  images, fingerprint = _read(samples, config_lib.image_shape(config))
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
    "samples_sha256": fingerprint,
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
  metrics = _score(config.metrics, network, params, images, train, held_out)
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
  """Return (train, held-out, network, params, network's name) to score by."""
  if config.data.source != "embedded":
    raise errors.UserError(
      f"data.source='{config.data.source}': only the embedded data can be "
      "scored so far"
    )
  load = functools.partial(
    sources.load, config.data.source, **config_lib.source_arguments(config)
  )
  train, held_out = load("train"), load("heldout")
  folder = config.metrics.feature_dir or epath.Path(workdir) / "feature_net"
  network = feature_training.ensure(
    folder,
    train,
    held_out,
    seed=config.seed,
    **config.metrics.feature_net.to_dict(),
  )
  return train, held_out, *network


def _read(path, shape):
  """Return (images, hash of the file)."""
  if not path.exists():
    raise errors.UserError(f"{path}: no such file; sample first")
  data = path.read_bytes()
  try:
    with np.load(io.BytesIO(data)) as arrays:
      images = arrays["arr_0"]
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f"{path}: not an .npz with images as arr_0 ({error})"
    ) from error
  if images.dtype != np.uint8 or images.shape[1:] != shape:
    raise errors.UserError(
      f"{path}: arr_0 is {images.dtype} {list(images.shape)}; needed: uint8 "
      f"[N, {', '.join(map(str, shape))}]"
    )
  return images, hashlib.sha256(data).hexdigest()[:16]


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
