"""Precision and recall by brute force in float64."""

import numpy as np

from cfgd.metrics import manifold


def neighbour_radii(features, k):
  features = np.asarray(features, np.float64)
  distances = manifold.squared_distances(features, features)
  return np.partition(distances, k, axis=1)[:, k]


def precision_recall(real, fake, k):
  real, fake = (np.asarray(rows, np.float64) for rows in (real, fake))
  distances = manifold.squared_distances(fake, real)
  precise = (distances <= neighbour_radii(real, k)).any(axis=1)
  covered = (distances <= neighbour_radii(fake, k)[:, None]).any(axis=0)
  return float(precise.mean()), float(covered.mean())
