"""Nearest real images of samples: would memorised images be seen?"""

import numpy as np


def nearest(images, others, block_rows=10_000):
  """Find the nearest of other images, by the sum of squared pixel differences.

  Args:
    images: [N, H, W, C] uint8.
    others: [M, H, W, C] uint8, or anything with `len` and slices like it.
    block_rows: of the others at a time; memory grows with N * block_rows.

  Returns:
    (index [N] of the nearest, the first of equals; squared distance [N] float).
  """
  # Sums of integers above 2^24 are not exact in float32.
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

  If none is, and training and held-out images come from one source, each real
  image is as likely as any other to be the nearest: a share N / (N + M) of the
  samples is nearest to one of the N training images. Copies always are.

  Args:
    to_train: [K] distance of samples to the nearest training image.
    to_held_out: [K] the same to the nearest held-out image.
    num_train: N.
    num_held_out: M.

  Returns:
    By how much the share is above chance, as a part of what it can be above it:
    about 0 where nothing is copied, 1 where all is. It may be below 0.
  """
  # Of equal distances, N / (N + M) are counted, as chance would.
  chance = num_train / (num_train + num_held_out)
  share = np.mean(to_train < to_held_out)
  share += chance * np.mean(to_train == to_held_out)
  return float((share - chance) / (1 - chance))
