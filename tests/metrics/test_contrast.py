"""Histogram matching, on images whose histograms are known."""

import numpy as np
import pytest

from cfgd.data import sources
from cfgd.data import spec
from cfgd.metrics import contrast
from cfgd.metrics import evaluate
from cfgd.sampling import store


def make_source(images, labels, num_classes):
  return sources.Source(
    images=images, labels=labels, num_classes=num_classes, preprocessing=""
  )


@pytest.fixture
def real():
  """Two classes of colour images, one dark and one bright."""
  rng = np.random.default_rng(0)
  labels = np.arange(40) % 2
  images = (
    rng.integers(0, 100, (40, 6, 5, 3)) + 120 * labels[:, None, None, None]
  )
  return images.astype(np.uint8), labels.astype(np.int32)


def test_histograms_count_every_pixel_of_each_class(real, monkeypatch):
  monkeypatch.setattr(contrast, "_BLOCK_ROWS", 7)
  images, labels = real
  found = contrast.histograms(make_source(images, labels, 3))
  assert found.shape == (3, 3, 256)
  for label, channel in np.ndindex(3, 3):
    pixels = images[labels == label][..., channel]
    expected = np.histogram(pixels, np.arange(257))[0]
    np.testing.assert_array_equal(found[label, channel], expected)


def test_equal_histograms_change_nothing(real):
  images, labels = real
  target = contrast.histograms(make_source(images, labels, 2))
  shuffled = images.copy()
  for label in (0, 1):
    rows = shuffled[labels == label].reshape(-1, 3)
    shuffled[labels == label] = (
      np.random.default_rng(1).permutation(rows).reshape(-1, 6, 5, 3)
    )
  found = contrast.match(shuffled, labels, target)
  np.testing.assert_array_equal(found, shuffled)
  # Half of the images, twice as often each: the same shares.
  some = np.concatenate([images[:20], images[:20], images[:20]])
  target = contrast.histograms(make_source(images[:20], labels[:20], 2))
  found = contrast.match(some, np.tile(labels[:20], 3), target)
  np.testing.assert_array_equal(found, some)


def test_a_change_of_contrast_is_undone(real):
  """A curve of its own for each class, which keeps the order of values."""
  images, labels = real
  target = contrast.histograms(make_source(images, labels, 2))
  values = np.arange(256.0)
  curves = {
    0: np.round(2.5 * values),  # for values below 100
    1: np.round(255 * np.clip((values - 100) / 120, 0, 1)),
  }
  changed = images.copy()
  for label, curve in curves.items():
    used = curve[np.unique(images[labels == label])]
    assert (np.diff(used) > 0).all()
    rows = labels == label
    changed[rows] = curve[images[rows]].astype(np.uint8)
  assert (changed != images).mean() > 0.9
  found = contrast.match(changed, labels, target)
  np.testing.assert_array_equal(found, images)


def test_gamma_on_all_levels_is_undone_as_far_as_levels_stay_apart():
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  labels = np.zeros(1, np.int32)
  target = contrast.histograms(make_source(images, labels, 1))
  for gamma in (0.5, 2.0):
    changed = np.round(255 * (images / 255.0) ** gamma).astype(np.uint8)
    found = contrast.match(changed, labels, target)
    alone = np.bincount(changed.ravel(), minlength=256)[changed] == 1
    assert alone.mean() > 0.3
    np.testing.assert_array_equal(found[alone], images[alone])
    # Levels that have become one are put in their middle.
    merged = [
      images[changed == value].astype(float) for value in np.unique(changed)
    ]
    assert all(
      abs(found[changed == value][0] - levels.mean()) <= 0.5
      for value, levels in zip(np.unique(changed), merged, strict=True)
    )


def test_a_class_without_real_images_keeps_its_pixels(real):
  images, labels = real
  target = contrast.histograms(make_source(images, labels, 3))
  found = contrast.match(images, np.full(40, 2), target)
  np.testing.assert_array_equal(found, images)


def test_labels_are_read_from_archives_and_chunks(tmp_path):
  images = np.zeros((5, 2, 2, 1), np.uint8)
  labels = np.array([3, 1, 2, 0, 3])
  np.savez(tmp_path / "both.npz", images, labels)
  np.savez(tmp_path / "images.npz", images)
  for start, stop in ((0, 3), (3, 5)):
    store.write(
      tmp_path / "chunks", start, images[start:stop], labels[start:stop]
    )
  (tmp_path / "pictures").mkdir()
  for name, expected in (
    ("both.npz", labels),
    ("chunks", labels),
    ("images.npz", None),
    ("pictures", None),
  ):
    found = contrast.sample_labels(tmp_path / name)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("labels", "good"),
  [
    (np.array([0, 3, 1]), True),
    (np.array([0, 4, 1]), False),
    (np.array([0, -1, 1]), False),
    (np.array([0, 1]), False),
    (np.array([0.0, 1.0, 2.0]), False),
  ],
)
def test_labels_that_are_not_the_images_are_not_used(labels, good):
  images = np.zeros((3, 2, 2, 1), np.uint8)
  assert contrast.fits(images, labels, num_classes=4) == good


def test_samples_of_another_contrast_are_at_distance_zero_once_matched(
  tiny, tmp_path
):
  train = sources.load(spec.Spec("embedded", 4, crop=24), "train")
  # The same images at half the contrast, and what is left of their levels.
  darker = (train.images // 2).astype(np.uint8)
  even = train.images // 2 * 2
  metrics = {}
  for name, images, labels in (
    ("even", even, [train.labels]),
    ("darker", darker, [train.labels]),
    ("alone", darker, []),
  ):
    path = tmp_path / f"{name}.npz"
    np.savez(path, images, *labels)
    metrics[name] = evaluate.evaluate(tiny, tmp_path, path)["metrics"]
  assert "fd_embedded_matched" not in metrics["alone"]
  assert metrics["darker"]["fd_embedded"] == metrics["alone"]["fd_embedded"]
  even, darker = metrics["even"], metrics["darker"]
  assert darker["fd_embedded"] > 10 * even["fd_embedded"]
  assert darker["fd_embedded_matched"] == even["fd_embedded_matched"]
  assert darker["fd_embedded_matched"] < 0.01 * darker["fd_embedded"]
