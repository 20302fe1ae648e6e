"""FID, sFID, IS, precision, recall and KID of sets of images, by Inception."""

import functools
from typing import Any
from typing import NamedTuple

from absl import logging
from etils import epath
import numpy as np

from cfgd import build
from cfgd import identity
from cfgd import validation
from cfgd.convert import inception as inception_weights
from cfgd.metrics import collect
from cfgd.metrics import image_sets
from cfgd.metrics import manifold
from cfgd.metrics import references
from cfgd.metrics import reports
from cfgd.metrics import scores
from cfgd.metrics import splits
from cfgd.models import inception
from cfgd.runtime import distributed
from cfgd.runtime import errors

_FULL = 50_000


def suffix(count):
  """Return the suffix of a metric's name, "" for exactly 50,000 samples."""
  if count == _FULL:
    return ""
  return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def evaluate(config, samples, reference, preprocessing=""):
  """Score a set of samples and write the result beside it.

  Args:
    config: ConfigDict.
    samples: see `image_sets.open_images`.
    reference: statistics, a set of images, or the config's data.source.
    preprocessing: id that the reference must have; "" accepts any.

  Returns:
    Dict with "protocol", "metrics" (name -> float), "num_samples" and
    "provenance"; an existing result is read.
  """
  validation.validate_sampling(config)
  metrics = config.metrics
  images = image_sets.open_images(samples)
  _check_images(images, metrics.min_images)
  image_sets.check_count(images, metrics)
  network, reference = prepare(config, reference, preprocessing, images)
  about = {
    "protocol": metrics.protocol,
    "provenance": {
      "samples_sha256": images.fingerprint,
      **_settings(metrics, images, network, reference),
    },
  }
  path = epath.Path(images.name)
  stem = path.name.removesuffix(".npz")
  result = path.with_name(f"{stem}.{metrics.protocol}.metrics.json")
  report = _score_once(config, images, network, reference, result, about)
  logging.info("%s", reports.line(report))
  return report


def evaluate_blocks(config, samples, reference):
  """Score a list of sets of samples, as of several seeds.

  Returns:
    The report of a single set; of several, "blocks" (their reports), and
    "mean", "std" (ddof 0) and "min" of each metric.
  """
  blocks = [evaluate(config, one, reference) for one in samples]
  if len(blocks) == 1:
    return blocks[0]
  names = [sorted(block["metrics"]) for block in blocks]
  if any(other != names[0] for other in names):
    raise errors.UserError(
      f"samples: blocks of {[b['num_samples'] for b in blocks]} images; their "
      "scores are comparable only at one number"
    )
  report = {"protocol": config.metrics.protocol, "blocks": blocks}
  for kind, reduce in (("mean", np.mean), ("std", np.std), ("min", np.min)):
    report[kind] = {
      name: float(reduce([block["metrics"][name] for block in blocks]))
      for name in blocks[0]["metrics"]
    }
  return report


def held_out(config, reference, preprocessing, source, path):
  """Score real images of a source as if they were samples, see `evaluate`.

  An existing result at `path` is kept if it is of the same images, network and
  reference. Returns None if there are fewer than metrics.min_images.
  """
  metrics = config.metrics
  count = min(config.sampling.num_samples, len(source))
  least = max(metrics.min_images, metrics.num_splits, metrics.neighbours + 1)
  if count < least or source.image_shape[2] != 3:
    return None
  chosen = image_sets.draw(len(source), count)
  images = image_sets.SourceImages(source, chosen)
  network, reference = prepare(config, reference, preprocessing, images)
  about = {"images": images.fingerprint}
  about |= _settings(metrics, images, network, reference)
  return _score_once(config, images, network, reference, path, {"about": about})


def _settings(metrics, images, network, reference):
  """Return what the scores of a set of images depend on besides the images."""
  return {
    "feature_network": network.name,
    "protocol": metrics.protocol,
    "reference": reference.about,
    **splits.about(_edges(metrics, len(images))),
    "neighbours": metrics.neighbours,
  }


def _edges(metrics, count):
  return splits.edges(count, metrics.num_splits, metrics.protocol)


def _score_once(config, images, network, reference, path, about):
  """Return the report of `about` at a path, computing it if it is missing."""
  report = distributed.by_lead(lambda: reports.read(path, about))
  if report:
    return report
  name = path.name.removesuffix(".json")
  folder = path.with_name(f"{name}-{identity.digest(about)}.part")
  collected = _collect(config, network, images, len(images), folder)

  def finish():
    scored = _score(config.metrics, collected, reference)
    numbers = {"metrics": scored, "num_samples": len(images)}
    report = reports.write(path, about | numbers)
    folder.rmtree(missing_ok=True)
    return report

  return distributed.by_lead(finish)


def _score(metrics, collected, reference):
  count = collected.features.count
  values = {
    "fid": scores.frechet_distance(
      *reference.statistics,
      *scores.mean_and_covariance(collected.features),
      root_1=reference.root,
    ),
    **splits.inception_score(
      "is", collected.probabilities, _edges(metrics, count)
    ),
  }
  if reference.spatial:
    values["sfid"] = scores.frechet_distance(
      *reference.spatial,
      *scores.mean_and_covariance(collected.spatial),
      root_1=reference.spatial_root,
    )
  if reference.rows is not None:
    values["precision"], values["recall"] = manifold.precision_recall(
      reference.rows, collected.rows, metrics.neighbours
    )
    values["kid"] = scores.kernel_distance(reference.rows, collected.rows)
  return {name + suffix(count): float(v) for name, v in values.items()}


class Network(NamedTuple):
  """Inception by one protocol; the name has the hash of the weights."""

  scorer: Any
  params: Any
  name: str


@functools.lru_cache(maxsize=1)
def _load_network(protocol, path, cache_dir):
  weights = inception_weights.load(path, cache_dir)
  return Network(inception.scorer(protocol), *weights)


def _network(config):
  metrics = config.metrics
  return _load_network(metrics.protocol, metrics.inception, metrics.cache_dir)


def _check_images(images, at_least):
  if images.shape[2] != 3:
    raise errors.UserError(
      f"{images.name}: {images.shape[2]} channels; Inception needs 3"
    )
  if len(images) < at_least:
    raise errors.UserError(
      f"{images.name}: {len(images)} images; a covariance of "
      f"{inception.NUM_FEATURES} features needs at least {at_least} (lower "
      "--config.metrics.min_images to try things out)"
    )


def _collect(config, network, images, num_kept, folder):
  """Return Collected, with the features of `num_kept` images kept."""
  count = len(images)
  kept = np.zeros(count, bool)
  kept[np.random.default_rng(0).permutation(count)[:num_kept]] = True
  return collect.collect(
    folder,
    network.scorer,
    network.params,
    images,
    kept=kept,
    chunk_size=config.metrics.chunk_size,
    batch_size=config.metrics.inception_batch_size,
  )


# References.


def make_reference(config, reference, path):
  """Write the statistics of the config's data.source or a set of images.

  An existing .npz is checked and kept. Returns its description, a dict.
  """
  validation.validate_sampling(config)
  images = _reference_images(config, reference)
  network = _network(config)
  about = _about(config, network, images)
  path = epath.Path(path)
  if path.exists():
    references.check(references.read(path).about, about, path)
    logging.info("Statistics exist already: %s", path)
  else:
    _make(config, network, images, about, path)
  return about


def prepare(config, reference, preprocessing="", samples=None):
  """Return (Network, references.Reference), computing missing statistics.

  Args:
    config: ConfigDict.
    reference: see `evaluate`.
    preprocessing: id that the reference must have; "" accepts any.
    samples: set of images whose size the reference must have.
  """
  wanted = {}
  if samples is not None:
    wanted["image_size"] = list(samples.shape[:2])
  if preprocessing:
    wanted["preprocessing"] = preprocessing
  if not references.has_statistics(reference):
    images = _reference_images(config, reference)
    references.check(_description(images), wanted, reference)
    network = _network(config)
    return network, _cached(config, network, images)
  found = references.read(reference)
  protocol = config.metrics.protocol
  references.check_form(found, protocol, reference)
  references.check(found.about, wanted, reference)
  network = _network(config)
  wanted = {"protocol": protocol, "feature_network": network.name}
  references.check(found.about, wanted, reference)
  if found.rows is None and found.has_images:
    images = image_sets.NpzImages(reference)
    found.rows = _cached(config, network, images).rows
  return network, found


def _cached(config, network, images):
  """Return the Reference of a set of images, kept in the cache folder."""
  about = _about(config, network, images)
  name = f"reference-{identity.digest(about)}.npz"
  path = epath.Path(config.metrics.cache_dir).expanduser() / name
  if not path.exists():
    _make(config, network, images, about, path)
  return references.read(path)


def _reference_images(config, reference):
  if epath.Path(reference).exists():
    images = image_sets.open_images(reference)
  elif reference == config.data.source:
    source = build.source(config, "train")
    images = image_sets.SourceImages(source)
  else:
    raise errors.UserError(
      f"reference {reference}: no such file, and not the data.source of "
      f"--config, '{config.data.source}' (for a data set add its --config)"
    )
  metrics = config.metrics
  _check_images(images, max(metrics.min_images, metrics.neighbours + 1))
  return images


def _description(images):
  return {
    "preprocessing": images.preprocessing,
    "image_size": list(images.shape[:2]),
  }


def _about(config, network, images):
  return {
    "images": images.fingerprint,
    **_description(images),
    "count": len(images),
    "protocol": config.metrics.protocol,
    "feature_network": network.name,
    "features": min(config.metrics.reference_features, len(images)),
  }


def _make(config, network, images, about, path):
  folder = path.with_name(path.name.removesuffix(".npz") + ".part")
  collected = _collect(config, network, images, about["features"], folder)

  def finish():
    references.write(path, references.from_collected(collected, about))
    folder.rmtree(missing_ok=True)

  distributed.by_lead(finish)
  logging.info("Statistics of %d images: %s", len(images), path)
