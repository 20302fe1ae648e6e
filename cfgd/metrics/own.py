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
from cfgd.metrics import scores
from cfgd.metrics import splits
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files

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
  return distributed.by_lead(lambda: _evaluate(config, samples, images, real))


def _evaluate(config, samples, images, real):
  provenance = {
    "samples_sha256": images.fingerprint,
    **_how(config, real, len(images)),
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
  metrics |= _matched(real, images[:], contrast.sample_labels(samples))
  metrics["copied"] = neighbours.copied_share(
    *(distance for _, distance in found), len(real.train), len(real.held_out)
  )
  report = {
    "metrics": metrics,
    "num_samples": len(images),
    "provenance": provenance,
  }
  rows = [images[:_SHOWN]]
  for part, (index, _) in zip((real.train, real.held_out), found, strict=True):
    rows += [part[i : i + 1] for i in index[:_SHOWN]]
  picture = image_ops.grid(np.concatenate(rows), len(rows[0]))
  files.write_atomic(
    samples.with_name(f"{stem}.neighbours.png"), image_ops.png(picture)
  )
  files.write_atomic(result, json.dumps(report, indent=2) + "\n")
  logging.info(
    "%s (IS splits: %d)",
    ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()),
    provenance["num_splits"],
  )
  return report


def _how(config, real, count):
  """Return what the scores of `count` images depend on besides them."""
  return {
    "feature_network": real.name,
    "reference": real.train.preprocessing,
    **splits.about(_edges(config.metrics, count)),
    "neighbours": config.metrics.neighbours,
    "reference_features": real.kept,
  }


def held_out(config, workdir, path):
  """Score real images that no network has seen, as if they were samples.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: see `reference`.
    path: of the result; one that is there is kept if it is of the same network.

  Returns:
    Dict with "metrics", "num_samples" and "about"; None where there are too few
    such images. See `evaluate.held_out`.
  """
  real = reference(config, workdir)
  count = min(config.sampling.num_samples, len(real.held_out))
  if count < max(config.metrics.num_splits, config.metrics.neighbours + 1):
    return None
  about = _how(config, real, count) | real.about
  return distributed.by_lead(
    lambda: _held_out(config.metrics, real, count, about, path)
  )


def _held_out(metrics, real, count, about, path):
  if path.exists():
    recorded = json.loads(path.read_text())
    if recorded["about"] == about:
      return recorded
  images = real.held_out[:][image_sets.draw(len(real.held_out), count)]
  scored = _score(metrics, real, images)
  del scored[f"fd_{real.label}_heldout"]  # of images against themselves
  report = {"metrics": scored, "num_samples": count, "about": about}
  files.write_atomic(path, json.dumps(report, indent=2) + "\n")
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
    workdir: the classifier is kept in its feature_net/ unless
      metrics.feature_dir names another place, there in a folder that is named
      by a hash of how it is trained.

  Returns:
    Reference.

  Raises:
    errors.UserError: the data is missing.
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
  trained = feature_training.ensure(folder, train, held_out, **dict(training))
  return Reference(
    functools.partial(
      extract.extract, trained.network, trained.params, batch_size=batch_size
    ),
    image_sets.SourceImages(train),
    image_sets.SourceImages(held_out),
    source=train,
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


class Reference:
  """A data set and the classifier that was trained on it.

  Attributes:
    extract: [N, H, W, C] uint8 -> (features [N, F], probabilities [N, K]).
    train: SourceImages.
    held_out: SourceImages.
    label: what its metrics are called after.
    about: dict of what is known of the classifier: "feature_network_accuracy"
      (on held-out images), "dead_features" of "num_features", and
      "feature_network", see `name`.
  """

  def __init__(
    self, extract, train, held_out, *, source, label, about, keep, neighbour
  ):
    self.extract, self.label, self.about = extract, label, about
    self.train, self.held_out, self._source = train, held_out, source
    self._keep, self._neighbour = keep, neighbour

  @property
  def name(self):
    """The classifier's, with the hash of its weights.

    Numbers from different ones are not comparable.
    """
    return self.about["feature_network"]

  @property
  def kept(self):
    """Number of the training images that precision and recall are against."""
    return min(self._keep, len(self.train))

  @functools.cached_property
  def _features(self):
    return self.extract(self.train)[0]

  @functools.cached_property
  def rows(self):
    """Features of a part of the training images, [K, F]."""
    return self._features[image_sets.draw(len(self.train), self._keep)]

  @functools.cached_property
  def histograms(self):
    """Histograms of the training images by class, see `contrast`."""
    return contrast.histograms(self._source)

  @functools.cached_property
  def radii(self):
    """Squared distance of each row to its neighbour, for precision, [K]."""
    return manifold.neighbour_radii(self.rows, self._neighbour)

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


def _edges(metrics, count):
  return splits.edges(count, metrics.num_splits)


def _score(metrics, real, images):
  features, probabilities = real.extract(images)
  statistics = _statistics(features)
  precision, recall = manifold.precision_recall(
    real.rows, features, metrics.neighbours, real_radii=real.radii
  )
  distance = functools.partial(scores.frechet_distance, *statistics)
  values = {
    f"fd_{real.label}": distance(*real.statistics),
    f"fd_{real.label}_heldout": distance(*real.held_out_statistics),
    **splits.inception_score(
      f"is_{real.label}", probabilities, _edges(metrics, len(images))
    ),
    "precision": precision,
    "recall": recall,
  }
  return {name: float(value) for name, value in values.items()}


def _matched(real, images, labels):
  """Return the distance of samples with the real images' histograms, if any."""
  if labels is None:
    return {}
  if not contrast.fits(images, labels, len(real.histograms)):
    return {}
  features, _ = real.extract(contrast.match(images, labels, real.histograms))
  distance = scores.frechet_distance(*_statistics(features), *real.statistics)
  return {f"fd_{real.label}_matched": float(distance)}
