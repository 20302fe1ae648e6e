"""Crop, area downsampling, flip, grids."""

import io

import numpy as np
import PIL.Image
import pytest

from cfgd.data import images


def weights(source, target):
  """Return the [target, source] matrix of exact box averages, float64."""
  scale = source / target
  edges = np.arange(target + 1) * scale
  pixels = np.arange(source)
  overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(
    edges[:-1, None], pixels
  )
  return np.clip(overlap, 0, None) / scale


@pytest.mark.parametrize(
  ("source", "target"), [(24, 12), (28, 12), (500, 64), (333, 128), (64, 64)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_area_is_the_mean_over_each_box(source, target, channels):
  rng = np.random.default_rng(source)
  image = rng.integers(0, 256, (source, source, channels)).astype(np.uint8)
  matrix = weights(source, target)
  desired = np.einsum("ai,bj,ijc->abc", matrix, matrix, image, optimize=True)
  small = images.area_downsample(image, target)
  assert small.shape == (target, target, channels)
  assert small.dtype == np.uint8
  assert np.abs(small - desired).max() <= 0.5 + 1e-2  # rounding


def test_center_crop():
  image = np.arange(5 * 8).reshape(5, 8, 1)
  np.testing.assert_array_equal(images.center_crop(image), image[:, 1:6])
  np.testing.assert_array_equal(images.center_crop(image, 3), image[1:4, 2:5])


def test_flip_is_even_and_mirrors():
  image = np.arange(12).reshape(2, 3, 2)
  rng = np.random.default_rng(0)
  flipped = [images.random_flip(image, rng)[0, 0, 0] == 4 for _ in range(2000)]
  assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_grid_is_row_by_row_and_a_png():
  tiles = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones(
    (1, 2, 2, 1), np.uint8
  )
  picture = images.grid(tiles, 3)
  assert picture.shape == (5, 8, 3)
  np.testing.assert_array_equal(picture[0, ::3, 0], [0, 1, 2])
  np.testing.assert_array_equal(picture[3, ::3, 0], [3, 4, 255])
  assert (picture[2] == 255).all()
  decoded = np.array(PIL.Image.open(io.BytesIO(images.png(picture))))
  np.testing.assert_array_equal(decoded, picture)
