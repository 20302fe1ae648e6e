"""Decode, composite, crop, area resizing, flip, grids."""

import io
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest

from cfgd.data import images
from cfgd.runtime import errors
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


@pytest.mark.parametrize(
  ("shape", "side", "desired"),
  [
    ((500, 375), 80, (107, 80)),
    ((375, 500), 160, (160, 213)),
    ((64, 64), 15, (15, 15)),
    ((50, 70), 80, (80, 112)),
    ((20, 301), 20, (20, 301)),
  ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_images_keep_their_aspect_ratio(shape, side, desired, channels):
  image = np.random.default_rng(side).integers(0, 256, (*shape, channels))
  image = image.astype(np.uint8)
  matrices = [weights(*pair) for pair in zip(shape, desired, strict=True)]
  wanted = np.einsum("ai,bj,ijc->abc", *matrices, image, optimize=True)
  whole = images.preprocess_whole(image, crop=0, side=side)
  assert whole.shape == (*desired, channels)
  assert np.abs(whole - wanted).max() <= 0.5 + 1e-2  # rounding
  square = images.preprocess_whole(image, crop=14, side=7)
  middle = images.preprocess(image, crop=14, size=7)
  np.testing.assert_array_equal(square, middle)


def test_random_crops_are_cut_out_of_the_resized_image():
  image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
  # Sizes 16 to 20, of equal share; 18 of 20 pixels here: 28 wide.
  crop = images.random_crop(image, 16, np.float32([0.5, 0.99, 0.4]))
  matrices = weights(20, 18), weights(31, 28)
  resized = np.einsum("ai,bj,ijc->abc", *matrices, image)
  assert np.abs(crop - resized[2:18, 5:21]).max() <= 0.5 + 1e-2
  almost_1 = np.nextafter(np.float32(1), np.float32(0))
  corner = images.random_crop(image, 16, np.full(3, almost_1))
  np.testing.assert_array_equal(corner, image[4:, 15:])
  corner = images.random_crop(image, 20, np.zeros(3, np.float32))
  np.testing.assert_array_equal(corner, image[:, :20])


def test_shorter_side_of_whole_images():
  sides = {(64, 0.8): 80, (128, 0.8): 160, (12, 0.8): 15, (28, 0.7): 40}
  sides |= {(64, 1.0): 64, (64, 0.0): 0, (10, 0.75): 14}
  for (size, random_crop), side in sides.items():
    assert images.whole_side(size, random_crop) == side


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


def blend(rgba, background):
  """Return alpha x + (1 - alpha) background in float64, [H, W, 3]."""
  alpha = rgba[..., 3:] / 255
  return alpha * rgba[..., :3] + (1 - alpha) * np.array(background)


BACKGROUNDS = [(255, 255, 255), (0, 0, 0), (18, 52, 200)]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composited_onto_the_background(background, kind):
  # Every alpha with every one of 256 values behind it.
  rgba = np.empty((256, 256, 4), np.uint8)
  rgba[..., 3] = np.arange(256)[:, None]
  rgba[..., 0], rgba[..., 1] = np.arange(256), np.arange(256)[::-1]
  rgba[..., 2] = np.arange(256) * 7 % 256
  buffer = io.BytesIO()
  options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
  PIL.Image.fromarray(rgba).save(buffer, kind, **options)
  decoded = images.decode(buffer.getvalue(), background)
  np.testing.assert_array_equal(decoded, np.rint(blend(rgba, background)))
  assert images.is_transparent(buffer.getvalue())


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_grey_with_alpha_is_composited(background):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 2), np.uint8)
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "PNG")
  desired = np.rint(blend(pixels[..., [0, 0, 0, 1]], background))
  decoded = images.decode(buffer.getvalue(), background)
  np.testing.assert_array_equal(decoded, desired)
  grey = images.decode(buffer.getvalue(), background, channels=1)
  luminance = desired @ (0.299, 0.587, 0.114)
  assert grey.shape == (9, 7, 1)
  assert np.abs(grey[..., 0] - luminance).max() <= 0.5 + 1e-3


def chunk(name, data):
  check = struct.pack(">I", zlib.crc32(name + data))
  return struct.pack(">I", len(data)) + name + data + check


def raw_png(row, *, width, depth, kind, trns, palette=b""):
  """Return a PNG of one row from the bytes of its chunks."""
  header = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
  return b"".join(
    (
      b"\x89PNG\r\n\x1a\n",
      chunk(b"IHDR", header),
      chunk(b"PLTE", palette) if palette else b"",
      chunk(b"tRNS", trns),
      chunk(b"IDAT", zlib.compress(b"\0" + row)),
      chunk(b"IEND", b""),
    )
  )


GREY, RGB, PALETTE = 0, 2, 3  # PNG's colour types
BEHIND = (10, 20, 30)
COLOURS = bytes(range(100, 109))
P0, P1, P2 = (100, 101, 102), (103, 104, 105), (106, 107, 108)
HALF_P1 = (57, 62, 68)  # P1 128 / 255 + BEHIND 127 / 255, rounded


@pytest.mark.parametrize(
  ("kind", "depth", "row", "width", "trns", "desired"),
  [
    # One entry of the palette, and one alpha for each of its first entries.
    (PALETTE, 8, b"\0\1\2", 3, b"\xff\0", [P0, BEHIND, P2]),
    (PALETTE, 8, b"\0\1\2", 3, b"\0\x80", [BEHIND, HALF_P1, P2]),
    (PALETTE, 2, b"\x18", 3, b"\0\x80", [BEHIND, HALF_P1, P2]),
    (RGB, 8, b"\1\2\3\4\5\6", 2, b"\0\4\0\5\0\6", [(1, 2, 3), BEHIND]),
    (
      *(RGB, 16, b"\1\x11\2\x11\3\x11\4\x22\5\x22\6\x22", 2),
      *(b"\4\x22\5\x22\6\x22", [(1, 2, 3), BEHIND]),
    ),
    (GREY, 8, b"\5\x0a", 2, b"\0\x0a", [(5, 5, 5), BEHIND]),
    (GREY, 4, b"\x5a", 2, b"\0\x0a", [(85, 85, 85), BEHIND]),
    (GREY, 2, b"\x1b", 4, b"\0\2", [(0,) * 3, (85,) * 3, BEHIND, (255,) * 3]),
    (GREY, 1, b"\x40", 2, b"\0\1", [(0, 0, 0), BEHIND]),
  ],
)
def test_transparent_colours_of_png(kind, depth, row, width, trns, desired):
  data = raw_png(
    row,
    width=width,
    depth=depth,
    kind=kind,
    trns=trns,
    palette=COLOURS if kind == PALETTE else b"",
  )
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    np.testing.assert_array_equal(images.decode(data, BEHIND)[0], desired)
    assert images.is_transparent(data)
    images.decode(data, None)


def test_16_bits_with_alpha_are_composited_from_the_upper_8():
  row = b"\xc8\1\x64\1\x32\1\x80\1"
  header = struct.pack(">IIBBBBB", 1, 1, 16, 6, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
  data += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
  desired = np.rint(blend(np.array([[200, 100, 50, 128]]), BEHIND))
  np.testing.assert_array_equal(images.decode(data, BEHIND)[0], desired)


def test_a_transparent_gif_is_composited():
  image = PIL.Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
  image.putpalette(COLOURS)
  buffer = io.BytesIO()
  image.save(buffer, "GIF", transparency=1)
  decoded = images.decode(buffer.getvalue(), BEHIND)[0]
  np.testing.assert_array_equal(decoded, [P0, BEHIND, P2])


def test_what_is_behind_alpha_0_has_no_influence_on_its_neighbours():
  """Disc with an antialiased edge: no fringe in the downsampled image."""
  y, x = np.mgrid[:64, :64] - 31.5
  rgba = np.empty((64, 64, 4), np.uint8)
  rgba[..., :3] = (220, 160, 40)
  rgba[..., 3] = np.clip(25.5 - np.hypot(y, x), 0, 1) * 255
  small = []
  for garbage in ((0, 0, 0), (255, 0, 255)):
    rgba[rgba[..., 3] == 0, :3] = garbage
    buffer = io.BytesIO()
    PIL.Image.fromarray(rgba).save(buffer, "PNG")
    full = images.decode(buffer.getvalue(), (255, 255, 255))
    small.append(images.area_resize(full, 9))
  np.testing.assert_array_equal(*small)
  matrix = weights(64, 9)
  desired = np.einsum(
    "ai,bj,ijc->abc", matrix, matrix, blend(rgba, (255, 255, 255))
  )
  assert np.abs(small[0] - desired).max() <= 1  # rounded twice


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_is_not_transparency(mode):
  data = encoded(mode, "PNG")
  assert not images.is_transparent(data)
  for background in (*BACKGROUNDS, None):
    np.testing.assert_array_equal(
      images.decode(data, background), images.decode(data)
    )
  assert not images.is_transparent(encoded("RGB", "JPEG"))
  assert not images.is_transparent(b"no image")


def test_colours_by_name_and_number():
  assert images.rgb("white") == images.WHITE
  assert images.rgb("#0a141e") == BEHIND
  for color in ("whitish", "#12", "#11223344", "rgba(1,2,3,4)", "", None, 3):
    with pytest.raises(
      errors.UserError, match=r"data.background=.*opaque colour"
    ):
      images.rgb(color)


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
