"""Samples on disk: chunks of consecutive image indices, written atomically."""

import io
import re
import time
import zipfile

from etils import epath
import numpy as np

from cfgd.runtime import errors
from cfgd.runtime import files

# Images that were drawn are written after so long at the latest.
_SECONDS = 300.0


class Writer:
  """Collects drawn images and writes them as chunks."""

  def __init__(self, folder, chunk_size):
    """Write to a folder, whenever there are `chunk_size` images."""
    self._folder, self._chunk_size = folder, chunk_size
    self._parts = []
    self._written = time.monotonic()

  def add(self, index, images, labels):
    """Add images.

    Args:
      index: [n] int, larger than all before.
      images: [n, H, W, C] uint8.
      labels: [n] int.
    """
    self._parts.append((index, images, labels))
    count = sum(len(index) for index, *_ in self._parts)
    late = time.monotonic() - self._written > _SECONDS
    if count >= self._chunk_size or late:
      self.flush()

  def flush(self):
    """Write all that was added, a chunk for each run of indices."""
    if self._parts:
      arrays = map(np.concatenate, zip(*self._parts, strict=True))
      index, images, labels = arrays
      ends = np.flatnonzero(np.diff(index) != 1) + 1
      for run in np.split(np.arange(len(index)), ends):
        write(self._folder, index[run[0]], images[run], labels[run])
    self._parts, self._written = [], time.monotonic()


def write(folder, start, images, labels):
  """Write the chunk that starts at image `start`.

  Args:
    folder: of the store.
    start: index of the first image.
    images: [n, H, W, C] uint8.
    labels: [n] int.
  """
  assert images.dtype == np.uint8, images.dtype
  with files.open_atomic(_path(folder, start, start + len(images))) as file:
    np.savez(file, images=images, labels=labels)


def _path(folder, start, stop):
  return epath.Path(folder) / f"chunk_{start:07d}_{stop:07d}.npz"


def _chunks(folder):
  """Return the (start, stop) of each chunk in a folder, increasing."""
  folder = epath.Path(folder)
  if not folder.exists():
    return []
  names = [path.name for path in folder.iterdir()]
  found = (re.fullmatch(r"chunk_(\d{7,})_(\d{7,})\.npz", k) for k in names)
  return sorted(tuple(map(int, match.groups())) for match in found if match)


def missing(folder, num_samples):
  """Return the (start, stop) of each range of 0 .. num_samples in no chunk."""
  gaps, position = [], 0
  for start, stop in [*_chunks(folder), (num_samples, num_samples)]:
    start = min(start, num_samples)
    if start > position:
      gaps.append((position, start))
    position = max(position, stop)
  return gaps


def complete(folder):
  """Return disjoint ranges (start, stop) of chunks that cover 0 .. N.

  Returns:
    List of ranges, as far as they reach without a gap; [] if it is no store.
  """
  ranges, position = [], 0
  for start, stop in _chunks(folder):
    if start > position:
      break
    if stop > position:
      ranges.append((position, stop))
      position = stop
  return ranges


def assemble(folder, result, num_samples):
  """Write the first samples as one .npz, the result; return its images."""
  gaps = missing(folder, num_samples)
  if gaps:
    raise errors.RunError(
      f"{folder}: no chunk has images {gaps[0][0]} to {gaps[0][1]}; all "
      "processes must write to one folder; run the same command again"
    )
  images, labels = (
    np.concatenate(
      [_read_array(name, folder, *span) for span in complete(folder)]
    )[:num_samples]
    for name in ("images", "labels")
  )
  with files.open_atomic(result) as file:
    np.savez(file, images, labels)
  return images


def read_images(folder, start, stop):
  """Return the images [n, H, W, C] uint8 of a range of `complete`."""
  return _read_array("images", folder, start, stop)


def read_labels(folder, start, stop):
  """Return the labels [n] of a range of `complete`."""
  return _read_array("labels", folder, start, stop)


def _read_array(name, folder, start, stop):
  first, last = next(
    (first, last)
    for first, last in _chunks(folder)
    if first <= start and stop <= last
  )
  path = _path(folder, first, last)
  try:
    with np.load(io.BytesIO(path.read_bytes())) as chunk:
      return chunk[name][start - first : stop - first]
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f"{path}: damaged ({error}): delete it and sample again"
    ) from error
