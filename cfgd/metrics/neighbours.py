"""Nearest real images of samples: would memorised images be seen?"""

import numpy as np


def nearest(images, others, block_rows=500):
  """Find the nearest of other images, by the sum of squared pixel differences.

  Args:
    images: [N, H, W, C] uint8.
    others: [M, H, W, C] uint8.
    block_rows: images at a time; memory grows with block_rows * M.

  Returns:
    (index [N] of the nearest, the first of equals; squared distance [N] float).
  """
  # Sums of integers up to 2^24 are exact in float32, more are not: 64 bits.
  rows = images.reshape(len(images), -1).astype(np.float64)
  points = others.reshape(len(others), -1).astype(np.float64)
  norms = np.square(points).sum(axis=1)
  index = np.empty(len(rows), np.int64)
  distance = np.empty(len(rows))
  for start in range(0, len(rows), block_rows):
    part = rows[start : start + block_rows]
    squared = norms - 2 * (part @ points.T)
    best = squared.argmin(axis=1)
    index[start : start + len(part)] = best
    distance[start : start + len(part)] = np.square(part).sum(
      axis=1
    ) + np.take_along_axis(squared, best[:, None], axis=1).squeeze(1)
  return index, distance


def nearer_share(images, some, others):
  """Return the share of images that are nearer to some than to others.

  A test of copying: with equally many training and held-out images of one
  source, a model that learned the distribution and no image by heart gives one
  half, one that copies gives 1.

  Args:
    images: [N, H, W, C] uint8.
    some: [M, H, W, C] uint8.
    others: [M, H, W, C] uint8.

  Returns:
    Number in [0, 1]; equal distances count half.

  Raises:
    ValueError: the two sets are not of one size, which alone would decide.
  """
  if len(some) != len(others):
    raise ValueError(
      f"{len(some)} and {len(others)} images: must be equally many"
    )
  _, near = nearest(images, some)
  _, far = nearest(images, others)
  return float(np.mean(near < far) + np.mean(near == far) / 2)
