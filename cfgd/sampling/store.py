"""Samples on disk: chunks of consecutive image indices, written atomically."""

import io
import re

from etils import epath
import numpy as np

from cfgd.runtime import files


def ranges(num_samples, chunk_size):
  """Return the (start, stop) of each chunk of 0 .. num_samples."""
  return [
    (start, min(start + chunk_size, num_samples))
    for start in range(0, num_samples, chunk_size)
  ]


def _path(folder, start, stop):
  return epath.Path(folder) / f"chunk_{start:07d}_{stop:07d}.npz"


def missing(folder, num_samples, chunk_size):
  """Return the (start, stop) of the chunks that are not there yet."""
  return [
    chunk
    for chunk in ranges(num_samples, chunk_size)
    if not _path(folder, *chunk).exists()
  ]


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


def assemble(folder, result, chunk_size):
  """Write samples_N.npz, the result, of all chunks; return its images."""
  num_samples = int(re.fullmatch(r"samples_(\d+)\.npz", result.name)[1])
  chunks = ranges(num_samples, chunk_size)
  images, labels = (
    np.concatenate([_read_array(name, folder, *chunk) for chunk in chunks])
    for name in ("images", "labels")
  )
  with files.open_atomic(result) as file:
    np.savez(file, images, labels)
  return images


def complete(folder):
  """Return the (start, stop) of chunks that cover 0 .. N without a gap.

  Args:
    folder: of the store.

  Returns:
    List of ranges, as far as they reach; [] if it is no store. Where chunks of
    several sizes start at one image, the longest is taken.
  """
  longest = {}
  for path in epath.Path(folder).iterdir():
    found = re.fullmatch(r"chunk_(\d{7,})_(\d{7,})\.npz", path.name)
    if found:
      start, stop = map(int, found.groups())
      longest[start] = max(stop, longest.get(start, 0))
  chunks, start = [], 0
  while start in longest:
    chunks.append((start, longest[start]))
    start = longest[start]
  return chunks


def read_images(folder, start, stop):
  """Return the images [n, H, W, C] uint8 of one chunk."""
  return _read_array("images", folder, start, stop)


def read_labels(folder, start, stop):
  """Return the labels [n] of one chunk."""
  return _read_array("labels", folder, start, stop)


def _read_array(name, folder, start, stop):
  with np.load(io.BytesIO(_path(folder, start, stop).read_bytes())) as chunk:
    return chunk[name]
