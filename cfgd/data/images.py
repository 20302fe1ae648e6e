"""Images as arrays: crop, exact area downsampling, flip, grids.

NumPy and OpenCV on the host; every data set goes through the same functions, so
that what is true of the embedded images is true of ImageNet.
"""

import io

import cv2
import numpy as np
import PIL.Image


def center_crop(image, size=0):
  """Cut the central square out of an image.

  Args:
    image: [H, W, C].
    size: side of the square; 0 is the shorter side.

  Returns:
    [size, size, C].
  """
  height, width = image.shape[:2]
  size = size or min(height, width)
  assert size <= min(height, width), (image.shape, size)
  top, left = (height - size) // 2, (width - size) // 2
  return image[top : top + size, left : left + size]


def area_downsample(image, size):
  """Average over the source box of each pixel, with fractional borders.

  This is tf.image's "area" and cv2's INTER_AREA; PIL's BOX rounds the borders
  of its boxes and is another data set.

  Args:
    image: [S, S, C] uint8 with S >= size.
    size: side of the result.

  Returns:
    [size, size, C] uint8, rounded.
  """
  assert image.dtype == np.uint8, image.dtype
  assert image.shape[0] == image.shape[1] >= size, (image.shape, size)
  small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
  return small.reshape(size, size, image.shape[-1])  # cv2 drops a channel of 1


def preprocess(image, *, crop, size):
  """Crop and downsample one uint8 image; see `preprocessing_id`."""
  return area_downsample(center_crop(image, crop), size)


def preprocessing_id(source, *, crop, size):
  """Name what was done to the images, for data sets, statistics and results."""
  return f"{source}-crop{crop or 'short'}-area{size}"


def random_flip(image, rng):
  """Mirror an image left to right with probability 1/2."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def grid(images, columns):
  """Lay images out row by row with a one pixel gap.

  Args:
    images: [N, H, W, C] uint8, C of 1 or 3.
    columns: images per row; the last row is filled up with white.

  Returns:
    [rows (H + 1) - 1, columns (W + 1) - 1, 3] uint8.
  """
  number, height, width, channels = images.shape
  rows = -(-number // columns)
  tiles = np.full(
    (rows * columns, height + 1, width + 1, channels), 255, np.uint8
  )
  tiles[:number, :height, :width] = images
  tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels)
  picture = tiles.transpose(0, 2, 1, 3, 4).reshape(
    rows * (height + 1), columns * (width + 1), channels
  )[:-1, :-1]
  return np.broadcast_to(picture, (*picture.shape[:2], 3))


def png(picture):
  """Encode [H, W, 3] uint8 as the bytes of a PNG file."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
  return buffer.getvalue()
