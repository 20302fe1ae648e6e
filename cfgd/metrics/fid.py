"""FID, sFID, IS, precision, recall and KID of sets of images, by Inception."""

import functools
from typing import Any
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
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


def evaluate(config, samples, reference, preprocessing="", *, shared=None):
  """Score a set of samples and write the result beside it.

  Args:
    config: ConfigDict.
    samples: see `image_sets.open_images`.
    reference: statistics, a set of images, or the config's data.source.
    preprocessing: id that the reference must have; "" accepts any.
    shared: folder that all processes see, for statistics that several make; by
      default that of the samples.

  Returns:
    Dict with "protocol", "metrics" (name -> float), "num_samples" and
    "provenance"; an existing result is read.
  """
  validation.validate_sampling(config)
  metrics = config.metrics
  images = _open(samples)
  _check_images(images, metrics.min_images)
  image_sets.check_count(images, metrics)
  path = epath.Path(images.name)
  network, reference = prepare(
    config, reference, preprocessing, images, shared=shared or path.parent
  )
  about = {
    "protocol": metrics.protocol,
    "provenance": {
      "samples_sha256": _fingerprint(images),
      **_settings(metrics, images, network, reference),
    },
  }
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


def _open(path):
  """Open a set of images in every process; the first one verifies it."""
  return distributed.in_all(
    lambda: image_sets.open_images(path, verify=distributed.is_lead())
  )


def _fingerprint(images):
  return distributed.by_lead(lambda: images.fingerprint)


def held_out(config, reference, preprocessing, source, path, *, shared):
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
  network, reference = prepare(
    config, reference, preprocessing, images, shared=shared
  )
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
  _collect(config, network, images, len(images), folder)

  def finish():
    collected = _assemble(config, images, folder)
    scored = _score(config.metrics, collected, reference.read())
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
  """Return the Network, the same in every process."""
  metrics = config.metrics
  load = functools.partial(
    _load_network, metrics.protocol, metrics.inception, metrics.cache_dir
  )
  # The first process fills the cache, which others may share.
  name = distributed.by_lead(lambda: load().name)

  def same():
    if load().name != name:
      raise errors.UserError(
        f"metrics.inception={metrics.inception!r}: {load().name} in process "
        f"{jax.process_index()}, {name} in process 0; give all the same file"
      )
    return load()

  return distributed.in_all(same)


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
  """Collect parts in a folder, with the features of `num_kept` images kept."""
  count = len(images)
  kept = np.zeros(count, bool)
  kept[np.random.default_rng(0).permutation(count)[:num_kept]] = True
  collect.collect(
    folder,
    network.scorer,
    network.params,
    images,
    kept=kept,
    chunk_size=config.metrics.chunk_size,
    batch_size=config.metrics.inception_batch_size,
  )


def _assemble(config, images, folder):
  return collect.assemble(folder, len(images), config.metrics.chunk_size)


# References.


class Statistics(NamedTuple):
  """Files of what samples are compared with; the first process reads them.

  Attributes:
    path: of the statistics.
    about: their description.
    rows: of other statistics that have the rows, or "".
  """

  path: str
  about: dict
  rows: str = ""

  def read(self):
    """Return the references.Reference."""
    found = references.read(self.path)
    if self.rows:
      found.rows = references.read(self.rows).rows
    return found


def make_reference(config, reference, path):
  """Write the statistics of the config's data.source or a set of images.

  An existing .npz is checked and kept. Returns its description, a dict.
  """
  validation.validate_sampling(config)
  images = _reference_images(config, reference)
  network = _network(config)
  about = _about(config, network, images)
  path = epath.Path(path)

  def is_there():
    if path.exists():
      references.check(references.read(path).about, about, path)
      logging.info("Statistics exist already: %s", path)
    return path.exists()

  if not distributed.by_lead(is_there):
    _make(config, network, images, about, path)
  return about


def prepare(config, reference, preprocessing="", samples=None, *, shared):
  """Return (Network, Statistics), computing missing statistics.

  Args:
    config: ConfigDict.
    reference: see `evaluate`.
    preprocessing: id that the reference must have; "" accepts any.
    samples: set of images whose size the reference must have.
    shared: see `evaluate`.
  """
  wanted = {}
  if samples is not None:
    wanted["image_size"] = list(samples.shape[:2])
  if preprocessing:
    wanted["preprocessing"] = preprocessing
  if not distributed.by_lead(lambda: references.has_statistics(reference)):
    images = _reference_images(config, reference)
    references.check(_description(images), wanted, reference)
    network = _network(config)
    return network, _kept(config, network, images, shared)

  def read():
    found = references.read(reference)
    references.check_form(found, config.metrics.protocol, reference)
    return found.about, found.rows is None and found.has_images

  about, lacks_rows = distributed.by_lead(read)
  references.check(about, wanted, reference)
  network = _network(config)
  wanted = {
    "protocol": config.metrics.protocol,
    "feature_network": network.name,
  }
  references.check(about, wanted, reference)
  rows = ""
  if lacks_rows:
    images = _open(reference)
    rows = _kept(config, network, images, shared).path
  return network, Statistics(str(reference), about, rows)


def _kept(config, network, images, shared):
  """Return the Statistics of a set of images, which are computed once.

  They are kept in the cache folder, which may be one for each machine, so those
  made by several processes are in the shared folder.
  """
  about = _about(config, network, images)
  name = f"reference-{identity.digest(about)}.npz"
  cached = epath.Path(config.metrics.cache_dir).expanduser() / name
  new = cached if jax.process_count() == 1 else epath.Path(shared) / name
  found = distributed.by_lead(
    lambda: [str(path) for path in (cached, new) if path.exists()]
  )
  if not found:
    _make(config, network, images, about, new)
    found = [str(new)]
  return Statistics(found[0], about)


def _reference_images(config, reference):
  def find():
    if epath.Path(reference).exists():
      return image_sets.open_images(reference, verify=distributed.is_lead())
    if reference == config.data.source:
      return image_sets.SourceImages(build.source(config, "train"))
    raise errors.UserError(
      f"reference {reference}: no such file, and not the data.source of "
      f"--config, '{config.data.source}' (for a data set add its --config)"
    )

  images, metrics = distributed.in_all(find), config.metrics
  _check_images(images, max(metrics.min_images, metrics.neighbours + 1))
  return images


def _description(images):
  return {
    "preprocessing": images.preprocessing,
    "image_size": list(images.shape[:2]),
  }


def _about(config, network, images):
  return {
    "images": _fingerprint(images),
    **_description(images),
    "count": len(images),
    "protocol": config.metrics.protocol,
    "feature_network": network.name,
    "features": min(config.metrics.reference_features, len(images)),
  }


def _make(config, network, images, about, path):
  folder = path.with_name(path.name.removesuffix(".npz") + ".part")
  _collect(config, network, images, about["features"], folder)

  def finish():
    collected = _assemble(config, images, folder)
    references.write(path, references.from_collected(collected, about))
    folder.rmtree(missing_ok=True)

  distributed.by_lead(finish)
  logging.info("Statistics of %d images: %s", len(images), path)
