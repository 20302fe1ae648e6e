"""Images as arrays: decode, composite, crop, exact area resizing, flip, grids.

NumPy, Pillow and OpenCV on the host; every data set goes through the same
functions, so that what is true of the embedded images is true of ImageNet.
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
_PNG_DEPTH = len(_PNG) + 16  # where the header has the bits per channel


def rgb(color):
  """Return the (R, G, B) of a colour's name, such as "white" or "#ff8000".

  Raises:
    errors.UserError: not a colour that Pillow knows, or a transparent one.
  """
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
  """Decode a file's bytes, whatever it calls itself, as it is stored.

  Grayscale, palette and CMYK become RGB, what is transparent is composited
  onto the background, and a camera's orientation tag is ignored. The discrete
  cosine transform is the accurate one: the pixels of TensorFlow's decoder with
  INTEGER_ACCURATE.

  Args:
    data: bytes of a JPEG, PNG or other file that Pillow reads.
    background: (R, G, B); None drops the alpha channel, as TensorFlow does.
    channels: 3, or 1 for the luminance.

  Returns:
    [H, W, channels] uint8.

  Raises:
    ValueError: not an image, cut short, or grey of more than 8 bits.
  """
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}, more than 8 bits")
      if image.has_transparency_data:
        pixels = _rgba(image, data)
        if background is None:
          pixels = pixels[..., :3]
        else:
          pixels = _composite(pixels, background)
      else:
        pixels = np.asarray(image.convert("RGB"))
  except Exception as error:  # Pillow's readers let many kinds through
    raise ValueError(" ".join(str(error).split())) from error
  if channels == 1:
    pixels = np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None]
  return pixels


def is_transparent(data):
  """Say whether a file's bytes are an image with a pixel that is not opaque.

  False for what is no image: `decode` says what is wrong with it.
  """
  if data.startswith(_JPEG):
    return False
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      if not image.has_transparency_data:
        return False
      return bool((_rgba(image, data)[..., 3] < 255).any())
  except Exception:  # Pillow's readers let many kinds through
    return False


def _rgba(image, data):
  """Return [H, W, 4] uint8 of an image with an alpha channel or key colour."""
  key = image.info.get("transparency")
  if data.startswith(_PNG) and image.mode in ("L", "RGB") and key is not None:
    # Pillow scales pixels of 2, 4 and 16 bits to 8, but not the colour that
    # tRNS makes transparent.
    depth = data[_PNG_DEPTH]
    if depth == 16:
      image.info["transparency"] = tuple(value >> 8 for value in key)
    elif depth < 8 and key < 1 << depth:
      image.info["transparency"] = key * 255 // ((1 << depth) - 1)
  return np.asarray(image.convert("RGBA"))


def _composite(rgba, background):
  """Return alpha x + (1 - alpha) background, [H, W, 3] uint8, rounded.

  Args:
    rgba: [H, W, 4] uint8; where alpha is 0 the colour does not matter.
    background: (R, G, B).
  """
  alpha = rgba[..., 3:].astype(np.uint16)
  mixed = alpha * rgba[..., :3] + (255 - alpha) * np.array(
    background, np.uint16
  )
  return ((mixed + 127) // 255).astype(np.uint8)


def center_crop(image, size=0):
  """Cut the central square out of an image.

  Args:
    image: [H, W, C].
    size: side of the square; 0 is the shorter side. Where the image does not
      fill it, it is surrounded by zeros.

  Returns:
    [size, size, C].
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


def area_resize(image, size):
  """Average over the source box of each pixel, with fractional borders.

  This is tf.image's "area" and cv2's INTER_AREA; PIL's BOX rounds the borders
  of its boxes and is another data set. An image smaller than the result is
  averaged over boxes smaller than its pixels.

  Args:
    image: [S, S, C] uint8.
    size: side of the result.

  Returns:
    [size, size, C] uint8, rounded.
  """
  assert image.shape[0] == image.shape[1], image.shape
  return resize_shorter_side(image, size)


def resize_shorter_side(image, side):
  """Resize like `area_resize`, keeping the aspect ratio.

  Args:
    image: [H, W, C] uint8.
    side: of the result's shorter side; the longer one is rounded.

  Returns:
    [h, w, C] uint8, min(h, w) = side.
  """
  assert image.dtype == np.uint8, image.dtype
  short = min(image.shape[:2])
  # Sides are both enlarged or both reduced: OpenCV averages only then.
  height, width = ((n * side + short // 2) // short for n in image.shape[:2])
  if short < side:
    # OpenCV enlarges uint8 with weights of 11 bits: up to 0.8 off.
    image = image.astype(np.float32)
  small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  if small.dtype != np.uint8:
    small = np.rint(small).astype(np.uint8)
  return small.reshape(height, width, -1)  # cv2 drops a channel of 1


def preprocess(image, *, crop, size):
  """Crop and resize one uint8 image; see `preprocessing_id`."""
  return area_resize(center_crop(image, crop), size)


def preprocess_whole(image, *, crop, side):
  """Resize one uint8 image for random crops, cut only where `crop` is not 0."""
  return resize_shorter_side(center_crop(image, crop) if crop else image, side)


def whole_side(size, random_crop):
  """Return the shorter side of images that are kept for random crops.

  Args:
    size: side of a crop.
    random_crop: smallest share of the shorter side that a crop has; 0: none.
  """
  if not 0 <= random_crop <= 1:
    raise errors.UserError(
      f"data.random_crop={random_crop}: must be 0, or a share of the shorter "
      "side in (0, 1]"
    )
  # 28 / 0.7 is 40 and a little more in float64.
  return math.ceil(size / random_crop - 1e-9) if random_crop else 0


def random_crop(image, size, draws):
  """Resize so that the shorter side is random, and cut out a random square.

  Args:
    image: [H, W, C] uint8, of `preprocess_whole`.
    size: side of the square, and the least shorter side.
    draws: (size, top, left), uniform in [0, 1).

  Returns:
    [size, size, C] uint8.
  """
  most = min(image.shape[:2])
  side, top, left = map(float, draws)
  side = size + int(side * (most - size + 1))
  if side < most:
    image = resize_shorter_side(image, side)
  top = int(top * (image.shape[0] - size + 1))
  left = int(left * (image.shape[1] - size + 1))
  return image[top : top + size, left : left + size]


def preprocessing_id(source, *, crop, size, whole=0):
  """Name what was done to the images, for data sets, statistics and results.

  Args:
    source: name of the originals.
    crop: side of the central square; 0 is the shorter side.
    size: side of the images.
    whole: see `whole_side`.
  """
  if whole:
    cut = f"crop{crop}-" if crop else ""
    return f"{source}-{cut}whole{whole}-randomcrop{size}"
  return f"{source}-crop{crop or 'short'}-area{size}"


def flip(images, chosen):
  """Mirror some of the images left to right, in place.

  Args:
    images: [N, H, W, C].
    chosen: [N] bool.

  Returns:
    `images`.
  """
  for row in np.flatnonzero(chosen):
    # Ten times as fast as reversed indexing.
    images[row] = cv2.flip(images[row], 1).reshape(images.shape[1:])
  return images


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
