"""Histogram matching, a control for brightness and contrast.

Guidance saturates colours, and small models blur them. To see how much of a
distance is due to that, the pixel values of the samples are mapped so that each
class has the histogram of its real images, and the distance is measured again.
"""

from absl import logging
from etils import epath
import numpy as np

from cfgd.sampling import store

_LEVELS = 256
_BLOCK_ROWS = 10_000


def sample_labels(path):
  """Return the labels [N] of a set of samples, or None if it has none.

  Labels are in the sampler's chunks, or `arr_1` of an .npz.
  """
  path = epath.Path(path)
  if path.is_dir():
    chunks = [store.read_labels(path, *chunk) for chunk in store.complete(path)]
    return np.concatenate(chunks) if chunks else None
  with path.open("rb") as file, np.load(file) as arrays:
    return arrays.get("arr_1")


def histograms(source):
  """Return [num_classes, C, 256] pixel counts of a source's images."""
  channels = source.image_shape[-1]
  counts = np.zeros((source.num_classes, channels, _LEVELS), np.int64)
  for start in range(0, len(source), _BLOCK_ROWS):
    rows = np.arange(start, min(start + _BLOCK_ROWS, len(source)))
    part = source.read(rows)
    for label in np.unique(part["label"]):
      counts[label] += _counts(part["image"][part["label"] == label])
  return counts


def match(images, labels, target):
  """Map the pixel values of each class to a histogram.

  Each value is mapped to the target's value at the same quantile, that of the
  middle of its pixels. Images that have the target's histogram do not change,
  and any strictly increasing change of contrast is undone.

  Args:
    images: [N, H, W, C] uint8.
    labels: [N] int, below the number of classes.
    target: [num_classes, C, 256], see `histograms`. Samples of a class without
      real images stay as they are.
  """
  matched = images.copy()
  for label in np.unique(labels):
    rows = labels == label
    if not target[label].any():
      continue
    counts = _counts(images[rows])
    for channel in range(images.shape[-1]):
      table = _table(counts[channel], target[label, channel])
      matched[rows, ..., channel] = table[images[rows, ..., channel]]
  return matched


def fits(images, labels, num_classes):
  """Return whether labels fit the images; warn if they do not."""
  good = (
    np.shape(labels) == (len(images),)
    and np.issubdtype(labels.dtype, np.integer)
    and 0 <= labels.min() <= labels.max() < num_classes
  )
  if not good:
    logging.warning(
      "The samples' labels are not %d numbers below %d: no distance with "
      "matched histograms.",
      *(len(images), num_classes),
    )
  return good


def _counts(images):
  """Return the pixel counts [C, 256] by value of images [n, H, W, C]."""
  return np.stack(
    [
      np.bincount(images[..., channel].ravel(), minlength=_LEVELS)
      for channel in range(images.shape[-1])
    ]
  )


def _table(counts, target):
  """Return the [256] uint8 map from one histogram to the other."""
  total, below = counts.sum(), target.cumsum()
  # Quantiles as integers, so that equal histograms map to equal values.
  middle = (2 * counts.cumsum() - counts) * below[-1]
  return np.searchsorted(2 * below * total, middle).astype(np.uint8)
