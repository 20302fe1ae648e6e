"""FID, sFID, IS, precision, recall and KID of sets of images, by Inception."""

import functools
import json

from absl import logging
from etils import epath
import numpy as np

from cfgd import config as config_lib
from cfgd import validation
from cfgd.convert import inception as inception_weights
from cfgd.data import sources
from cfgd.metrics import collect
from cfgd.metrics import image_sets
from cfgd.metrics import manifold
from cfgd.metrics import references
from cfgd.metrics import scores
from cfgd.metrics import splits
from cfgd.models import inception
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files

FULL = 50_000


def suffix(count):
  """Return what follows a metric's name: nothing at the full protocol alone."""
  if count == FULL:
    return ""
  return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def evaluate(config, samples, reference, preprocessing=""):
  """Score a set of samples and write the result beside it.

  Args:
    config: ConfigDict of configs/base.py's fields.
    samples: see `image_sets.open_images`.
    reference: what to compare with: statistics, a set of images, or the
      config's data.source.
    preprocessing: id that the reference must have; "" takes any.

  Returns:
    Dict with "protocol", "metrics" (name -> float), "num_samples" and
    "provenance"; read from where it was written if it was computed before.

  Raises:
    errors.UserError: bad input; nothing is written.
    errors.NonFiniteError: features that are not finite.
  """
  validation.validate_sampling(config)
  images = _open_samples(config, samples)
  wanted = {"image_size": list(images.shape[:2])}
  if preprocessing:
    wanted["preprocessing"] = preprocessing
  network, reference = prepare(config, reference, wanted)
  result, about = _plan(config, images, network, reference)
  report = _score_once(
    config,
    images,
    network,
    reference,
    result,
    {"protocol": config.metrics.protocol, "provenance": about},
  )
  logging.info("%s", line(report))
  return report


def _score_once(config, images, network, reference, path, about):
  """Return the report at a path, scored and written if it is not of `about`."""

  def recorded():
    report = json.loads(path.read_text()) if path.exists() else {}
    return report if report.items() >= about.items() else None

  report = distributed.by_lead(recorded)
  if report:
    logging.info("Metrics are there: %s", path)
    return report
  folder = _scratch(path, about)
  collected = _collect(config, network, images, len(images), folder)

  def finish():
    report = about | {
      "metrics": _score(config.metrics, collected, reference),
      "num_samples": len(images),
    }
    files.write_atomic(path, json.dumps(report, indent=2) + "\n")
    folder.rmtree(missing_ok=True)
    return report

  return distributed.by_lead(finish)


def held_out(config, reference, preprocessing, source, path):
  """Score real images that no network has seen, as if they were samples.

  Args:
    config: see `evaluate`.
    reference: see `evaluate`.
    preprocessing: see `evaluate`.
    source: of the images, see `data.sources`.
    path: of the result; one that is there is kept if it is of the same images,
      network and reference.

  Returns:
    Dict with "metrics", "num_samples" and "about"; None where there are fewer
    than metrics.min_images. See `evaluate.held_out`.
  """
  metrics = config.metrics
  count = min(config.sampling.num_samples, len(source))
  least = max(metrics.min_images, metrics.num_splits, metrics.neighbours + 1)
  if count < least or source.image_shape[2] != 3:
    return None
  chosen = image_sets.draw(len(source), count)
  images = image_sets.SourceImages(source, chosen)
  wanted = {"image_size": list(images.shape[:2])}
  if preprocessing:
    wanted["preprocessing"] = preprocessing
  network, reference = prepare(config, reference, wanted)
  about = {"images": images.fingerprint}
  about |= _how(metrics, images, network, reference)
  return _score_once(config, images, network, reference, path, {"about": about})


def evaluate_blocks(config, samples, reference):
  """Score several sets of samples, as of several seeds.

  Args:
    config: see `evaluate`.
    samples: list of at least one set.
    reference: see `evaluate`.

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


def line(report):
  """Return a result as one line."""
  metrics = ", ".join(f"{k} {v:.4g}" for k, v in report["metrics"].items())
  num_splits = report["provenance"]["num_splits"]
  return f"{report['protocol']}: {metrics} (IS splits: {num_splits})"


def _plan(config, images, network, reference):
  """Return (path of the result, what it depends on)."""
  metrics = config.metrics
  path = epath.Path(images.name)
  stem = path.name.removesuffix(".npz")
  about = {"samples_sha256": images.fingerprint}
  about |= _how(metrics, images, network, reference)
  return path.with_name(f"{stem}.{metrics.protocol}.metrics.json"), about


def _how(metrics, images, network, reference):
  """Return what the scores of images depend on besides them."""
  return {
    "feature_network": network.name,
    "protocol": metrics.protocol,
    "reference": reference.about,
    **splits.about(_edges(metrics, len(images))),
    "neighbours": metrics.neighbours,
  }


def _edges(metrics, count):
  return splits.edges(count, metrics.num_splits, metrics.protocol)


def _scratch(result, about):
  digest = config_lib.digest(about)
  return result.with_name(result.name.removesuffix(".json") + f"-{digest}.part")


class Network:
  """Inception by one protocol.

  Attributes:
    scorer: see `inception.scorer`.
    params: its parameters.
    name: with the hash of the weights.
  """

  def __init__(self, protocol, path, cache_dir):
    self.scorer = inception.scorer(protocol)
    self.params, self.name = inception_weights.load(path, cache_dir)


@functools.lru_cache(maxsize=1)
def _load_network(protocol, path, cache_dir):
  return Network(protocol, path, cache_dir)


def _network(config):
  metrics = config.metrics
  return _load_network(metrics.protocol, metrics.inception, metrics.cache_dir)


def _open_samples(config, samples):
  images = image_sets.open_images(samples)
  metrics = config.metrics
  _check_images(images, metrics.min_images)
  for field, needed in (
    ("num_splits", metrics.num_splits),
    ("neighbours", metrics.neighbours + 1),
  ):
    if len(images) < needed:
      raise errors.UserError(
        f"metrics.{field}={metrics[field]}: {samples} has only {len(images)} "
        "images; lower it or sample more"
      )
  return images


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


def _collect(config, network, images, keep, folder):
  """Return Collected, with the features of `keep` images kept."""
  count = len(images)
  kept = np.zeros(count, bool)
  kept[np.random.default_rng(0).permutation(count)[:keep]] = True
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
  """Compute statistics of a data set or a set of images, and write them.

  Args:
    config: ConfigDict of configs/base.py's fields.
    reference: the config's data.source, or see `image_sets.open_images`.
    path: of the .npz; one that is there is checked and kept.

  Returns:
    What the statistics are of, as a dict.
  """
  validation.validate_sampling(config)
  images = _reference_images(config, reference)
  network = _network(config)
  about = _about(config, network, images)
  path = epath.Path(path)
  if path.exists():
    references.check(references.read(path).about, about, path)
    logging.info("Statistics are there: %s", path)
  else:
    _make(config, network, images, about, path)
  return about


def prepare(config, reference, wanted):
  """Open a reference, making its statistics where they are missing.

  Args:
    config: ConfigDict of configs/base.py's fields.
    reference: see `evaluate`.
    wanted: what its `about` has to say besides protocol and network.

  Returns:
    (Network, Reference).

  Raises:
    errors.UserError: reference or weights are missing or do not fit.
  """
  if references.has_statistics(reference):
    found = references.read(reference)
    references.check_form(found, config.metrics.protocol, reference)
    references.check(found.about, wanted, reference)
    network = _network(config)
    by = {
      "protocol": config.metrics.protocol,
      "feature_network": network.name,
    }
    references.check(found.about, by, reference)
    if found.rows is None and found.has_images:
      images = image_sets.NpzImages(reference)
      found.rows = _cached(config, network, images).rows
    return network, found
  images = _reference_images(config, reference)
  about = {
    "image_size": list(images.shape[:2]),
    "preprocessing": images.preprocessing,
  }
  references.check(about, wanted, reference)
  network = _network(config)
  return network, _cached(config, network, images)


def _cached(config, network, images):
  """Return the Reference of a set of images, kept in the cache folder."""
  about = _about(config, network, images)
  name = f"reference-{config_lib.digest(about)}.npz"
  path = epath.Path(config.metrics.cache_dir).expanduser() / name
  if not path.exists():
    _make(config, network, images, about, path)
  return references.read(path)


def _reference_images(config, reference):
  if epath.Path(reference).exists():
    images = image_sets.open_images(reference)
  elif reference == config.data.source:
    arguments = config_lib.source_arguments(config)
    source = sources.load(reference, "train", **arguments)
    images = image_sets.SourceImages(source)
  else:
    raise errors.UserError(
      f"reference {reference}: no such file, and not the data.source of "
      f"--config, '{config.data.source}' (for a data set add its --config)"
    )
  metrics = config.metrics
  _check_images(images, max(metrics.min_images, metrics.neighbours + 1))
  return images


def _about(config, network, images):
  return {
    "images": images.fingerprint,
    "preprocessing": images.preprocessing,
    "image_size": list(images.shape[:2]),
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


# Scores.


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
