"""Nearest images, against distances computed one by one."""

import numpy as np
import pytest

from cfgd.metrics import neighbours


def draw(seed, count):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, 5, 4, 2)).astype(np.uint8)


def test_nearest_is_what_a_loop_finds():
  images, others = draw(0, 17), draw(1, 23)
  index, distance = neighbours.nearest(images, others, block_rows=5)
  assert index.max() > 5
  for image, i, d in zip(images, index, distance, strict=True):
    all_distances = [
      np.sum((image.astype(int) - other.astype(int)) ** 2) for other in others
    ]
    assert i == np.argmin(all_distances)
    assert d == min(all_distances)


def copied(images, train, held_out):
  found = [neighbours.nearest(images, part)[1] for part in (train, held_out)]
  return neighbours.copied_share(*found, len(train), len(held_out))


def test_copies_are_counted_and_others_are_not():
  train, held_out, fresh = draw(2, 600), draw(3, 200), draw(4, 4000)
  assert copied(train, train, held_out) == 1
  # The standard error of the estimate is sqrt(3 / 4000) = 0.027.
  assert abs(copied(fresh, train, held_out)) < 0.1
  mixed = np.concatenate([np.repeat(train[:10], 100, axis=0), fresh[:1000]])
  assert copied(mixed, train, held_out) == pytest.approx(0.5, abs=0.1)
  # Equal distances are divided as chance would.
  assert copied(fresh, train, train) == pytest.approx(0)
