"""Scores by a small classifier that is trained on the data itself.

Distances between its features compare samples of one data set. They are named
after it, fd_NAME, and are never FID.
"""

import dataclasses
import functools
from typing import Any

from absl import logging
from etils import epath
import numpy as np

from cfgd import build
from cfgd import validation
from cfgd.data import images as image_ops
from cfgd.data import prepare as data_prepare
from cfgd.data import sources
from cfgd.metrics import contrast
from cfgd.metrics import extract
from cfgd.metrics import feature_training
from cfgd.metrics import image_sets
from cfgd.metrics import manifold
from cfgd.metrics import neighbours
from cfgd.metrics import reports
from cfgd.metrics import scores
from cfgd.metrics import splits
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files

_SHOWN = 10


def evaluate(config, workdir, samples):
  """Score a set of samples and write the result beside it.

  A picture of some samples above their nearest training and held-out images is
  written, too.

  Returns:
    Dict with "metrics" (name -> float), "num_samples" and "provenance"; an
    existing result is read.
  """
  validation.validate_sampling(config)
  samples = epath.Path(samples)
  images = distributed.in_all(
    lambda: image_sets.open_images(samples, verify=distributed.is_lead())
  )
  shape = build.image_shape(config)
  if images.shape != shape:
    raise errors.UserError(
      f"{samples}: images of {[len(images), *images.shape]}; needed: uint8 "
      f"[N, {', '.join(map(str, shape))}]"
    )
  image_sets.check_count(images, config.metrics)
  real = reference(config, workdir)
  return distributed.by_lead(
    lambda: _evaluate(config.metrics, samples, images, real)
  )


def _evaluate(metrics, samples, images, real):
  about = {
    "provenance": {
      "samples_sha256": images.fingerprint,
      **_settings(metrics, real, len(images)),
    }
  }
  stem = samples.name.removesuffix(".npz")
  result = samples.with_name(f"{stem}.metrics.json")
  recorded = reports.read(result, about)
  if recorded:
    return recorded
  pixels = images[:]
  found = [
    neighbours.nearest(pixels, part) for part in (real.train, real.held_out)
  ]
  values = _score(metrics, real, pixels)
  values |= _matched(real, pixels, contrast.sample_labels(samples))
  values["copied"] = neighbours.copied_share(
    *(distance for _, distance in found), len(real.train), len(real.held_out)
  )
  rows = [pixels[:_SHOWN]]
  for part, (index, _) in zip((real.train, real.held_out), found, strict=True):
    rows += [part[i : i + 1] for i in index[:_SHOWN]]
  picture = image_ops.grid(np.concatenate(rows), len(rows[0]))
  files.write_atomic(
    samples.with_name(f"{stem}.neighbours.png"), image_ops.png(picture)
  )
  numbers = {"metrics": values, "num_samples": len(images)}
  report = reports.write(result, numbers | about)
  logging.info("%s", reports.line(report))
  return report


def _settings(metrics, real, count):
  """Return what the scores of `count` images depend on besides the images."""
  return {
    "feature_network": real.name,
    "reference": real.train.preprocessing,
    **splits.about(splits.edges(count, metrics.num_splits)),
    "neighbours": metrics.neighbours,
    "reference_features": min(real.keep, len(real.train)),
  }


def held_out(config, workdir, path):
  """Score real images that no network has seen, as if they were samples.

  An existing result at `path` is kept if it is of the same network. Returns
  None if there are too few images, otherwise see `evaluate.held_out`.
  """
  metrics, real = config.metrics, reference(config, workdir)
  count = min(config.sampling.num_samples, len(real.held_out))
  if count < max(metrics.num_splits, metrics.neighbours + 1):
    return None
  about = {"about": _settings(metrics, real, count) | real.about}

  def score():
    recorded = reports.read(path, about)
    if recorded:
      return recorded
    images = real.held_out[:][image_sets.draw(len(real.held_out), count)]
    values = _score(metrics, real, images)
    del values[f"fd_{real.label}_heldout"]  # of images against themselves
    numbers = {"metrics": values, "num_samples": count}
    return reports.write(path, numbers | about)

  return distributed.by_lead(score)


def folder(config, workdir):
  """Return the folder of feature networks, which all processes see."""
  default = epath.Path(workdir) / "feature_net"
  return epath.Path(config.metrics.feature_dir or default)


def reference(config, workdir):
  """Return the Reference that samples of a data set are compared with.

  Trains the classifier if it is missing. It is kept in feature_net/ of the
  workdir, or in metrics.feature_dir, in a folder named by a hash of how it is
  trained. What was computed of the real images stays in memory.
  """
  metrics = config.metrics
  return _reference(
    str(folder(config, workdir)),
    build.data_spec(config),
    feature_training.Recipe(**metrics.feature_net.to_dict()),
    label=validation.own_network(config),
    keep=metrics.reference_features,
    neighbour=metrics.neighbours,
    batch_size=metrics.batch_size,
  )


@functools.lru_cache(maxsize=1)
def _reference(folder, spec, recipe, *, label, keep, neighbour, batch_size):
  data_prepare.ensure(spec)
  train, held_out = distributed.in_all(
    lambda: [sources.load(spec, split) for split in ("train", "heldout")]
  )
  trained = feature_training.ensure(folder, train, held_out, recipe)
  return Reference(
    extract=functools.partial(
      extract.extract, trained.network, trained.params, batch_size=batch_size
    ),
    source=train,
    train=image_sets.SourceImages(train),
    held_out=image_sets.SourceImages(held_out),
    label=label,
    about={
      "feature_network": f"{label}-{trained.digest}",
      "feature_network_accuracy": trained.about["heldout_accuracy"],
      "dead_features": trained.about["dead_features"],
      "num_features": trained.about["num_features"],
    },
    keep=keep,
    neighbour=neighbour,
  )


@dataclasses.dataclass(eq=False, kw_only=True)
class Reference:
  """A data set and the classifier that was trained on it.

  Attributes:
    extract: [N, H, W, C] uint8 -> (features [N, F], probabilities [N, K]).
    source: the training images, see data.sources.
    train: the same as SourceImages.
    held_out: SourceImages.
    label: suffix of the metrics' names.
    about: facts about the classifier: "feature_network", see `name`,
      "feature_network_accuracy" (on held-out images), "dead_features" of
      "num_features".
    keep: most training images that precision and recall compare with.
    neighbour: whose distance is the radius of precision and recall.
  """

  extract: Any
  source: Any
  train: image_sets.SourceImages
  held_out: image_sets.SourceImages
  label: str
  about: dict
  keep: int
  neighbour: int

  @property
  def name(self):
    """The classifier's name, with the hash of its weights.

    Numbers from different ones are not comparable.
    """
    return self.about["feature_network"]

  @functools.cached_property
  def _features(self):
    return self.extract(self.train)[0]

  @functools.cached_property
  def rows(self):
    """Features [K, F] of the training images of precision and recall."""
    return self._features[image_sets.draw(len(self.train), self.keep)]

  @functools.cached_property
  def histograms(self):
    """Histograms of the training images by class, see `contrast`."""
    return contrast.histograms(self.source)

  @functools.cached_property
  def radii(self):
    """Squared distance [K] of each row to its neighbour."""
    return manifold.neighbour_radii(self.rows, self.neighbour)

  @functools.cached_property
  def statistics(self):
    """(Mean, covariance) of the features of all training images."""
    return _statistics(self._features)

  @functools.cached_property
  def held_out_statistics(self):
    """(Mean, covariance) of the features of all held-out images."""
    return _statistics(self.extract(self.held_out)[0])


def _statistics(features):
  return scores.mean_and_covariance(scores.moments(features))


def _score(metrics, real, images):
  features, probabilities = real.extract(images)
  precision, recall = manifold.precision_recall(
    real.rows, features, metrics.neighbours, real_radii=real.radii
  )
  distance = functools.partial(scores.frechet_distance, *_statistics(features))
  edges = splits.edges(len(images), metrics.num_splits)
  values = {
    f"fd_{real.label}": distance(*real.statistics),
    f"fd_{real.label}_heldout": distance(*real.held_out_statistics),
    **splits.inception_score(f"is_{real.label}", probabilities, edges),
    "precision": precision,
    "recall": recall,
  }
  return {name: float(value) for name, value in values.items()}


def _matched(real, images, labels):
  """Return {} or the distance after matching histograms, if labels fit."""
  if labels is None or not contrast.fits(images, labels, len(real.histograms)):
    return {}
  features, _ = real.extract(contrast.match(images, labels, real.histograms))
  distance = scores.frechet_distance(*_statistics(features), *real.statistics)
  return {f"fd_{real.label}_matched": float(distance)}
