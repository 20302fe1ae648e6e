"""Images as arrays: decode, composite, crop, exact area resizing, flip, grids.

NumPy, Pillow and OpenCV on the host, the same functions for every data set.
"""

import io
import math

import cv2
import numpy as np
import PIL.Image
import PIL.ImageColor

from cfgd.runtime import errors

WHITE = (255, 255, 255)
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = len(_PNG) + 16  # offset of the bits per channel in the header


def rgb(color):
  """Return (R, G, B) of an opaque colour's name, such as "white", "#ff8000"."""
  try:
    value = PIL.ImageColor.getrgb(color)
  except (ValueError, AttributeError, TypeError):
    value = ()
  if len(value) != 3:
    raise errors.UserError(
      f"data.background={color!r}: must be an opaque colour: white, black, "
      "#rrggbb or another name that Pillow knows"
    )
  return value


def decode(data, background=WHITE, *, channels=3):
  """Decode an image file, whatever its name says, to [H, W, channels] uint8.

  Grayscale, palette and CMYK become RGB, transparent pixels are composited
  onto the background, and a camera's orientation tag is ignored. JPEGs are
  decoded with the accurate discrete cosine transform, to the pixels of
  TensorFlow's decoder with INTEGER_ACCURATE.

  Args:
    data: bytes of the file.
    background: (R, G, B); None drops the alpha channel, as TensorFlow does.
    channels: 3, or 1 for the luminance.

  Raises:
    ValueError: not an image, truncated, or more than 8 bits of grey.
  """
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}, more than 8 bits")
      if image.has_transparency_data:
        pixels = _composite(_rgba(image, data), background)
      else:
        pixels = np.asarray(image.convert("RGB"))
  except PIL.UnidentifiedImageError as error:
    raise ValueError("of no known format") from error
  except Exception as error:  # Pillow's readers raise many kinds
    raise ValueError(" ".join(str(error).split())) from error
  if channels == 1:
    pixels = np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None]
  return pixels


def is_transparent(data):
  """Return whether an image file has a pixel that is not opaque.

  False if it is not an image: `decode` reports that.
  """
  if data.startswith(_JPEG):
    return False
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      if not image.has_transparency_data:
        return False
      return bool((_rgba(image, data)[..., 3] < 255).any())
  except Exception:  # Pillow's readers raise many kinds
    return False


def _rgba(image, data):
  """Return [H, W, 4] uint8 of an image with an alpha channel or key colour."""
  key = image.info.get("transparency")
  if data.startswith(_PNG) and image.mode in ("L", "RGB") and key is not None:
    # Pillow scales pixels of 2, 4 and 16 bits to 8, but not tRNS's colour.
    depth = data[_PNG_DEPTH]
    if depth == 16:
      image.info["transparency"] = tuple(value >> 8 for value in key)
    elif depth < 8 and key < 1 << depth:
      image.info["transparency"] = key * 255 // ((1 << depth) - 1)
  return np.asarray(image.convert("RGBA"))


def _composite(rgba, background):
  """Return alpha x + (1 - alpha) background, [H, W, 3] uint8, rounded.

  Without a background the alpha channel is dropped.
  """
  if background is None:
    return rgba[..., :3]
  alpha = rgba[..., 3:].astype(np.uint16)
  behind = np.array(background, np.uint16)
  mixed = alpha * rgba[..., :3] + (255 - alpha) * behind
  return ((mixed + 127) // 255).astype(np.uint8)


def center_crop(image, size=0):
  """Cut the central square out of an image [H, W, C], padding with zeros.

  Its side is `size`, or the shorter side for 0.
  """
  height, width, channels = image.shape
  size = size or min(height, width)
  top, left = (height - size) // 2, (width - size) // 2
  kept = image[max(top, 0) : top + size, max(left, 0) : left + size]
  if kept.shape[:2] == (size, size):
    return kept
  square = np.zeros((size, size, channels), image.dtype)
  top, left = max(-top, 0), max(-left, 0)
  square[top : top + kept.shape[0], left : left + kept.shape[1]] = kept
  return square


def area_resize(image, side):
  """Average over the source box of each pixel, with fractional borders.

  This is tf.image's "area" and cv2's INTER_AREA; PIL's BOX rounds the borders
  of its boxes and gives other pixels. An image smaller than the result is
  averaged over boxes smaller than its pixels. The aspect ratio is kept up to
  rounding.

  Args:
    image: [H, W, C] uint8.
    side: the result's shorter side.
  """
  assert image.dtype == np.uint8, image.dtype
  short = min(image.shape[:2])
  # OpenCV averages only where both sides are enlarged or both reduced.
  height, width = ((n * side + short // 2) // short for n in image.shape[:2])
  if short < side:
    # OpenCV enlarges uint8 with weights of 11 bits: up to 0.8 off.
    image = image.astype(np.float32)
  small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  if small.dtype != np.uint8:
    small = np.rint(small).astype(np.uint8)
  return small.reshape(height, width, -1)  # cv2 drops a single channel


def preprocess(image, *, crop, size):
  """Crop the central square of `crop` (0: shorter side) and resize it."""
  return area_resize(center_crop(image, crop), size)


def preprocess_whole(image, *, crop, side):
  """Resize for random crops, cropping first only if `crop` is not 0."""
  return area_resize(center_crop(image, crop) if crop else image, side)


def whole_side(size, random_crop):
  """Return the shorter side of images stored for random crops, 0 for none.

  Crops of `size` have at least a share `random_crop` of it; 0 for no crops.
  """
  if not 0 <= random_crop <= 1:
    raise errors.UserError(
      f"data.random_crop={random_crop}: must be 0, or a share of the shorter "
      "side in (0, 1]"
    )
  # 28 / 0.7 is slightly above 40 in float64.
  return math.ceil(size / random_crop - 1e-9) if random_crop else 0


def random_crop(image, size, draws):
  """Resize to a random shorter side, then cut out a random square of `size`.

  Args:
    image: [H, W, C] uint8, of `preprocess_whole`.
    size: side of the square, and smallest shorter side.
    draws: (shorter side, top, left), uniform in [0, 1).
  """
  most = min(image.shape[:2])
  side, top, left = map(float, draws)
  side = size + int(side * (most - size + 1))
  if side < most:
    image = area_resize(image, side)
  top = int(top * (image.shape[0] - size + 1))
  left = int(left * (image.shape[1] - size + 1))
  return image[top : top + size, left : left + size]


def flip(images, chosen):
  """Mirror images [N, H, W, C] left to right where `chosen` [N], in place."""
  for row in np.flatnonzero(chosen):
    # Ten times faster than reversed indexing.
    images[row] = cv2.flip(images[row], 1).reshape(images.shape[1:])
  return images


def grid(images, columns):
  """Lay images [N, H, W, C] out row by row, with gaps of one white pixel.

  Returns [rows (H + 1) - 1, columns (W + 1) - 1, 3] uint8.
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
