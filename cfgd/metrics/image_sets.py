"""Sets of uint8 images to score, read a batch at a time.

A set has `len`, slices [n, H, W, C] uint8, the `shape` (H, W, C) of its images,
a `name` for messages, a `fingerprint` of its contents and an id of its
`preprocessing` (None if unknown). Bad files are refused when the set is opened,
as far as that is possible without decoding all images.
"""

import concurrent.futures
import functools
import hashlib
import io
import os
import weakref
import zipfile
import zlib

from etils import epath
import numpy as np
import PIL.Image

from cfgd.data import images as image_ops
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.sampling import store

_SUFFIXES = (".png", ".jpg", ".jpeg")
# Images that are RGB or displayed as such, with or without an alpha channel.
_MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "PA")
_THREADS = 8
_BLOCK_BYTES = 2**24


def open_images(path, *, verify=True):
  """Open a set of images.

  Args:
    path: an .npz with `arr_0`, a folder with the sampler's chunks, or a folder
      of PNG and JPEG files (and subfolders), in the order of their names.
    verify: read all of an .npz once, to find damage now and not after hours.
  """
  path = epath.Path(path)
  if not path.exists():
    raise errors.UserError(f"{path}: no such file; sample first")
  if not path.is_dir():
    return NpzImages(path, verify=verify)
  chunks = store.complete(path)
  if chunks:
    return ChunkImages(path, chunks)
  return FileImages(path)


def check_count(images, metrics):
  """Refuse fewer images than metrics.num_splits and metrics.neighbours need."""
  for field, least in (
    ("num_splits", metrics.num_splits),
    ("neighbours", metrics.neighbours + 1),
  ):
    if len(images) < least:
      raise errors.UserError(
        f"metrics.{field}={metrics[field]}: {images.name} has only "
        f"{len(images)} images; lower it or sample more"
      )


def check_pixels(images, name):
  """Refuse images [n, H, W, C] uint8 that were cast from [0, 1]."""
  if images.max() <= 1:
    raise errors.UserError(
      f"{name}: the first {len(images)} images have no pixel above 1; needed "
      "0 to 255 (scale images in [0, 1] before casting them to uint8)"
    )


def _unreadable(path, error):
  return errors.UserError(f"{path}: not an .npz with images as arr_0 ({error})")


class NpzImages:
  """Images in `arr_0` of an .npz, read from disk as needed."""

  preprocessing = None

  def __init__(self, path, *, verify=True):
    self._path = epath.Path(path)
    self.name = str(path)
    try:
      self._open()
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      raise _unreadable(path, error) from error
    if self._dtype != np.uint8 or len(self._whole) != 4 or self._fortran:
      raise errors.UserError(
        f"{path}: arr_0 is {self._dtype} {list(self._whole)}"
        f"{self._values()}; needed: uint8 [N, H, W, C] from 0 to 255"
      )
    if not self._whole[0]:
      raise errors.UserError(f"{path}: arr_0 has no images")
    self.shape = self._whole[1:]
    if verify:
      self._check_sum()

  def _check_sum(self):
    try:
      while self._file.read(_BLOCK_BYTES):
        pass
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
      raise _unreadable(self._path, error) from error

  def _open(self):
    """Open the archive at the first image."""
    file = self._path.open("rb")
    weakref.finalize(self, file.close)
    archive = zipfile.ZipFile(file)
    self._file = archive.open("arr_0.npy")
    version = np.lib.format.read_magic(self._file)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    self._whole, self._fortran, self._dtype = read_header(self._file)
    self._first = self._file.tell()

  def _values(self):
    """Return the range of an array of another type, for the message."""
    if self._dtype.hasobject or 0 in self._whole:
      return ""
    count = min(_BLOCK_BYTES // self._dtype.itemsize, np.prod(self._whole))
    data = self._file.read(int(count) * self._dtype.itemsize)
    values = np.frombuffer(data, self._dtype)
    if not len(values) or values.dtype.kind not in "iuf":
      return ""
    return f" with values from {values.min():.4g} to {values.max():.4g}"

  def __len__(self):
    return self._whole[0]

  def __getitem__(self, rows):
    start, stop, _ = rows.indices(len(self))
    size = int(np.prod(self.shape))
    try:
      self._file.seek(self._first + start * size)
      data = self._file.read((stop - start) * size)
      if len(data) != (stop - start) * size:
        raise EOFError("arr_0 ends early")
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
      raise _unreadable(self._path, error) from error
    return np.frombuffer(data, np.uint8).reshape(-1, *self.shape)

  @functools.cached_property
  def fingerprint(self):
    """SHA-256 of the file, its first 16 digits."""
    return _sha256(self._path, stamp(self._path))[:16]


def stamp(path):
  """Return what changes when a file is replaced, as the key of a cache."""
  if files.in_bucket(path):
    status = path.stat()
    return status.mtime, status.length
  status = os.stat(path)  # epath rounds times to seconds
  return status.st_mtime_ns, status.st_size, status.st_ino


@functools.lru_cache(maxsize=16)
def _sha256(path, key):
  del key
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


class ChunkImages:
  """Images of the sampler's chunk store."""

  preprocessing = None

  def __init__(self, folder, chunks):
    self._folder, self._chunks = epath.Path(folder), chunks
    self.name = str(folder)
    self._load = functools.lru_cache(maxsize=2)(self._chunk)
    self.shape = self._chunk(*chunks[0]).shape[1:]

  def _chunk(self, start, stop):
    images = store.read_images(self._folder, start, stop)
    if images.dtype != np.uint8 or len(images) != stop - start:
      raise errors.UserError(
        f"{self.name}: the chunk of images {start} to {stop} has "
        f"{images.dtype} {list(images.shape)}; delete it and sample again"
      )
    return images

  def __len__(self):
    return self._chunks[-1][1]

  def __getitem__(self, rows):
    start, stop, _ = rows.indices(len(self))
    parts = [
      self._load(first, last)[max(start - first, 0) : stop - first]
      for first, last in self._chunks
      if first < stop and last > start
    ]
    return np.concatenate(parts)

  @functools.cached_property
  def fingerprint(self):
    """SHA-256 over the pixels, its first 16 digits."""
    digest = hashlib.sha256()
    for start, stop in self._chunks:
      digest.update(self._chunk(start, stop).tobytes())
    return digest.hexdigest()[:16]


class FileImages:
  """Images in PNG and JPEG files of one size; grey ones become RGB.

  An opaque alpha channel is dropped. Transparent pixels are refused, since the
  score would depend on the background.
  """

  preprocessing = None

  def __init__(self, folder):
    self.name = str(folder)
    self._paths = sorted(
      path
      for path in _walk(epath.Path(folder))
      if path.suffix.lower() in _SUFFIXES
    )
    if not self._paths:
      raise errors.UserError(
        f"{folder}: neither chunk_*.npz from image 0 on nor images "
        f"({', '.join(_SUFFIXES)}) in this folder"
      )
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      sizes = pool.map(_size_of, self._paths)
      first = next(sizes)
      for path, size in zip(self._paths[1:], sizes, strict=True):
        if size != first:
          raise errors.UserError(
            f"{path}: {size[0]}x{size[1]} pixels, but {self._paths[0]} has "
            f"{first[0]}x{first[1]}; all images must have one size"
          )
    width, height = first
    self.shape = (height, width, 3)

  def __len__(self):
    return len(self._paths)

  def __getitem__(self, rows):
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      return np.stack(list(pool.map(_decode, self._paths[rows])))

  @functools.cached_property
  def fingerprint(self):
    """SHA-256 over the files in order, its first 16 digits."""
    digest = hashlib.sha256()
    for path in self._paths:
      digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _walk(folder):
  for path in folder.iterdir():
    if path.is_dir():
      yield from _walk(path)
    else:
      yield path


def _opened(path, file):
  try:
    image = PIL.Image.open(file)
  except (OSError, ValueError, SyntaxError) as error:
    raise errors.UserError(f"{path}: not an image ({error})") from error
  if image.mode not in _MODES:
    raise errors.UserError(
      f"{path}: an image of mode {image.mode}; needed: RGB or grey, 8 bits"
    )
  return image


def _size_of(path):
  with path.open("rb") as file:
    image = _opened(path, file)
    if not image.has_transparency_data:
      return image.size
  if image_ops.is_transparent(path.read_bytes()):
    raise errors.UserError(
      f"{path}: has transparent pixels; composite the images onto a "
      "background before scoring them"
    )
  return image.size


def _decode(path):
  data = path.read_bytes()
  image = _opened(path, io.BytesIO(data))
  try:
    if image.has_transparency_data:  # opaque, see _size_of
      return image_ops.decode(data)
    return np.asarray(image.convert("RGB"))
  except (OSError, ValueError, SyntaxError) as error:
    raise errors.UserError(f"{path}: a damaged image ({error})") from error


class SourceImages:
  """Images of a data source, or those at the indices `chosen`."""

  def __init__(self, source, chosen=None):
    self._source = source
    self._chosen = np.arange(len(source)) if chosen is None else chosen
    self.name = self.fingerprint = self.preprocessing = source.preprocessing
    self.shape = source.image_shape

  def __len__(self):
    return len(self._chosen)

  def __getitem__(self, rows):
    return self._source.read(self._chosen[rows])["image"]


def draw(count, number):
  """Return min(number, count) of `count` indices, sorted, always the same."""
  order = np.random.default_rng(0).permutation(count)
  return np.sort(order[:number])
