"""Nearest real images of samples, to detect memorised training images."""

import numpy as np


def nearest(images, others, block_rows=10_000):
  """Find the nearest other image by the sum of squared pixel differences.

  Args:
    images: [N, H, W, C] uint8.
    others: [M, H, W, C] uint8, or anything with `len` and slices like it.
    block_rows: others at a time; memory grows with N * block_rows.

  Returns:
    (index [N] of the nearest, the first of equals; squared distance [N] float).
  """
  # float32 sums of integers are not exact above 2^24.
  rows = images.reshape(len(images), -1).astype(np.float64)
  norms = np.square(rows).sum(axis=1)
  index = np.zeros(len(rows), np.int64)
  lowest = np.full(len(rows), np.inf)
  for start in range(0, len(others), block_rows):
    block = others[start : min(start + block_rows, len(others))]
    block = block.reshape(len(block), -1).astype(np.float64)
    squared = np.square(block).sum(axis=1) - 2 * (rows @ block.T)
    best = squared.argmin(axis=1)
    distance = norms + squared[np.arange(len(rows)), best]
    nearer = distance < lowest
    index[nearer] = start + best[nearer]
    lowest[nearer] = distance[nearer]
  return index, lowest


def copied_share(to_train, to_held_out, num_train, num_held_out):
  """Estimate the share of samples that are copies of training images.

  If none is, and training and held-out images come from one source, every real
  image is equally likely to be the nearest, so a share N / (N + M) of the
  samples is nearest to one of the N training images. Copies always are.

  Args:
    to_train: [K] distances of samples to the nearest training image.
    to_held_out: [K] distances to the nearest held-out image.
    num_train: N.
    num_held_out: M.

  Returns:
    The share's excess over chance, relative to the largest possible: about 0 if
    nothing is copied, 1 if everything is. It may be below 0.
  """
  # A share N / (N + M) of equal distances counts, as by chance.
  chance = num_train / (num_train + num_held_out)
  share = np.mean(to_train < to_held_out)
  share += chance * np.mean(to_train == to_held_out)
  return float((share - chance) / (1 - chance))
