"""Decode, crop, area resizing, flip, grids."""

import io

import numpy as np
import PIL.Image
import pytest

from cfgd.data import images
from tests.data import imagenet_like


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
  ("source", "target"),
  [
    *((24, 12), (28, 12), (500, 64), (333, 128), (64, 64), (65, 64)),
    *((1920, 128), (127, 128), (50, 64), (22, 64), (1, 4)),  # and enlarged
  ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_area_is_the_mean_over_each_box(source, target, channels):
  rng = np.random.default_rng(source)
  image = rng.integers(0, 256, (source, source, channels)).astype(np.uint8)
  matrix = weights(source, target)
  desired = np.einsum("ai,bj,ijc->abc", matrix, matrix, image, optimize=True)
  small = images.area_resize(image, target)
  assert small.shape == (target, target, channels)
  assert small.dtype == np.uint8
  assert np.abs(small - desired).max() <= 0.5 + 1e-2  # rounding


def test_center_crop():
  image = np.arange(5 * 8).reshape(5, 8, 1)
  np.testing.assert_array_equal(images.center_crop(image), image[:, 1:6])
  np.testing.assert_array_equal(images.center_crop(image, 3), image[1:4, 2:5])


def test_a_crop_larger_than_the_image_is_filled_up_with_zeros():
  image = np.arange(1, 16, dtype=np.uint8).reshape(3, 5, 1)
  padded = np.pad(image, ((1, 1), (0, 0), (0, 0)))
  np.testing.assert_array_equal(images.center_crop(image, 5), padded)
  fashion = np.full((28, 28, 1), 7, np.uint8)
  padded = np.pad(fashion, ((2, 2), (2, 2), (0, 0)))
  np.testing.assert_array_equal(images.center_crop(fashion, 32), padded)


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_mirrors_what_is_chosen(channels):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (3, 4, 5, channels)).astype(np.uint8)
  desired = np.stack([pixels[0, :, ::-1], pixels[1], pixels[2, :, ::-1]])
  flipped = images.flip(pixels.copy(), np.array([True, False, True]))
  np.testing.assert_array_equal(flipped, desired)


def encoded(mode, kind, **options):
  buffer = io.BytesIO()
  image = PIL.Image.fromarray(imagenet_like.picture(0)).convert(mode)
  image.save(buffer, kind, **options)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("mode", "kind"),
  [("L", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG")],
)
def test_decode_makes_three_channels(mode, kind):
  desired = PIL.Image.fromarray(imagenet_like.picture(0)).convert(mode)
  desired = np.asarray(desired.convert("RGB"))
  error = images.decode(encoded(mode, kind)).astype(int) - desired
  assert np.abs(error).mean() <= (2 if kind == "JPEG" else 0)


def test_decode_undoes_the_inverted_cmyk_of_adobe():
  bright = np.full((16, 16, 3), (250, 180, 20), np.uint8)
  buffer = io.BytesIO()
  PIL.Image.fromarray(bright).convert("CMYK").save(buffer, "JPEG", quality=95)
  assert np.abs(images.decode(buffer.getvalue()).astype(int) - bright).max() < 8


def test_decode_ignores_the_orientation():
  exif = PIL.Image.Exif()
  exif[imagenet_like.ORIENTATION] = 6  # a quarter turn
  pixels = images.decode(encoded("RGB", "JPEG", exif=exif))
  assert pixels.shape == imagenet_like.picture(0).shape
  np.testing.assert_array_equal(pixels, images.decode(encoded("RGB", "JPEG")))


@pytest.mark.parametrize(
  "data", [b"", b"no image", encoded("RGB", "JPEG")[:-300]]
)
def test_what_cannot_be_decoded_is_an_error(data):
  with pytest.raises(ValueError, match=r"\w"):
    images.decode(data)


def test_images_of_16_bits_are_refused():
  with pytest.raises(ValueError, match="more than 8 bits"):
    images.decode(encoded("I;16", "PNG"))


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
