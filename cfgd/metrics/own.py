"""Scores by a small classifier that is trained on the data itself.

Distances in its features compare samples of one data set. They are called after
it, fd_NAME, and never FID.
"""

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
from cfgd.data import images as image_ops
from cfgd.data import prepare as data_prepare
from cfgd.data import sources
from cfgd.metrics import extract
from cfgd.metrics import feature_training
from cfgd.metrics import image_sets
from cfgd.metrics import neighbours
from cfgd.metrics import scores

_SHOWN = 10


def evaluate(config, workdir, samples):
  """Score a set of samples and write the result beside it.

  A picture of some samples over their nearest training and held-out images is
  written beside it, too.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: see `reference`.
    samples: see `image_sets.open_images`.

  Returns:
    Dict with "metrics" (name -> float), "num_samples" and "provenance"; read
    from where it was written if it was computed before.

  Raises:
    errors.UserError: the samples are missing or not images of the data's shape.
  """
  validation.validate_sampling(config)
  samples = epath.Path(samples)
  images = _open(config, samples)
  real = reference(config, workdir)
  provenance = {
    "samples_sha256": images.fingerprint,
    "feature_network": real.name,
    "reference": real.train.preprocessing,
    "num_splits": config.metrics.num_splits,
    "neighbours": config.metrics.neighbours,
    "reference_features": len(real.rows),
  }
  stem = samples.name.removesuffix(".npz")
  result = samples.with_name(f"{stem}.metrics.json")
  if result.exists():
    recorded = json.loads(result.read_text())
    if recorded["provenance"] == provenance:
      logging.info("Metrics are there: %s", result)
      return recorded
  found = [
    neighbours.nearest(images[:], part) for part in (real.train, real.held_out)
  ]
  metrics = _score(config.metrics, real, images[:])
  metrics["copied"] = neighbours.copied_share(
    *(distance for _, distance in found), len(real.train), len(real.held_out)
  )
  report = {
    "metrics": metrics,
    "num_samples": len(images),
    "provenance": provenance,
  }
  if distributed.is_lead():
    rows = [images[:_SHOWN]]
    for part, (index, _) in zip(
      (real.train, real.held_out), found, strict=True
    ):
      rows += [part[i : i + 1] for i in index[:_SHOWN]]
    picture = image_ops.grid(np.concatenate(rows), len(rows[0]))
    files.write_atomic(
      samples.with_name(f"{stem}.neighbours.png"), image_ops.png(picture)
    )
    files.write_atomic(result, json.dumps(report, indent=2) + "\n")
  logging.info(
    "%s", ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
  )
  return report


def _open(config, path):
  images = image_sets.open_images(path)
  shape = config_lib.image_shape(config)
  if images.shape != shape:
    raise errors.UserError(
      f"{path}: images of {[len(images), *images.shape]}; needed: uint8 "
      f"[N, {', '.join(map(str, shape))}]"
    )
  for field, needed in (
    ("num_splits", config.metrics.num_splits),
    ("neighbours", config.metrics.neighbours + 1),
  ):
    if len(images) < needed:
      raise errors.UserError(
        f"metrics.{field}={config.metrics[field]}: {path} has only "
        f"{len(images)} images; lower it or sample more"
      )
  return images


def reference(config, workdir):
  """Return what samples of a data set are compared with.

  Trains the classifier where it is missing; what was computed of the real
  images is kept for the next call.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: the classifier is kept in it unless metrics.feature_dir names
      another place.

  Returns:
    Reference.

  Raises:
    errors.UserError: the data is missing, or the classifier that is there was
      trained in another way.
  """
  metrics = config.metrics
  return _reference(
    str(metrics.feature_dir or epath.Path(workdir) / "feature_net"),
    config.data.source,
    tuple(config_lib.source_arguments(config).items()),
    tuple(sorted(metrics.feature_net.to_dict().items())),
    validation.own_network(config),
    metrics.reference_features,
    metrics.neighbours,
    metrics.batch_size,
  )


@functools.lru_cache(maxsize=1)
def _reference(
  folder, source, data, training, label, keep, neighbour, batch_size
):
  data = dict(data)
  where = ("image_size", "crop", "data_dir", "background")
  data_prepare.ensure(source, **{name: data[name] for name in where})
  train, held_out = (
    sources.load(source, split, **data) for split in ("train", "heldout")
  )
  network, params, digest = feature_training.ensure(
    folder, train, held_out, **dict(training)
  )
  return Reference(
    functools.partial(extract.extract, network, params, batch_size=batch_size),
    image_sets.SourceImages(train),
    image_sets.SourceImages(held_out),
    label=label,
    name=f"{label}-{digest}",
    keep=keep,
    neighbour=neighbour,
  )


class Reference:
  """A data set and the classifier that was trained on it.

  Attributes:
    extract: [N, H, W, C] uint8 -> (features [N, F], probabilities [N, K]).
    train: SourceImages.
    held_out: SourceImages.
    label: what its metrics are called after.
    name: of the classifier, with the hash of its weights, so that numbers from
      different ones are not taken for comparable.
  """

  def __init__(self, extract, train, held_out, *, label, name, keep, neighbour):
    self.extract, self.label, self.name = extract, label, name
    self.train, self.held_out = train, held_out
    self._keep, self._neighbour = keep, neighbour

  @functools.cached_property
  def _features(self):
    return self.extract(self.train)[0]

  @functools.cached_property
  def rows(self):
    """Features of a part of the training images, [K, F]."""
    # Always the same part, in order.
    order = np.random.default_rng(0).permutation(len(self.train))
    return self._features[np.sort(order[: self._keep])]

  @functools.cached_property
  def radii(self):
    """Squared distance of each row to its neighbour, for precision, [K]."""
    return scores.neighbour_radii(self.rows, self._neighbour)

  @functools.cached_property
  def statistics(self):
    """(Mean, covariance) of the features of all training images."""
    return _statistics(self._features)

  @functools.cached_property
  def held_out_statistics(self):
    """(Mean, covariance) of the features of all held-out images."""
    return _statistics(self.extract(self.held_out)[0])


def _statistics(features):
  moments = scores.add(scores.empty_moments(features.shape[1]), features)
  return scores.mean_and_covariance(moments)


def _score(metrics, real, images):
  features, probabilities = real.extract(images)
  statistics = _statistics(features)
  mean, std = scores.inception_score(
    probabilities, metrics.num_splits, np.random.default_rng(0)
  )
  precision, recall = scores.precision_recall(
    real.rows, features, metrics.neighbours, real_radii=real.radii
  )
  distance = functools.partial(scores.frechet_distance, *statistics)
  values = {
    f"fd_{real.label}": distance(*real.statistics),
    f"fd_{real.label}_heldout": distance(*real.held_out_statistics),
    f"is_{real.label}": mean,
    f"is_{real.label}_std": std,
    "precision": precision,
    "recall": recall,
  }
  return {name: float(value) for name, value in values.items()}
