"""Samples on disk: chunks of consecutive image indices, written atomically."""

import io

from etils import epath
import numpy as np

from cfgd import files


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


def read(folder, num_samples, chunk_size):
  """Return (images [N, H, W, C] uint8, labels [N]) of a complete store."""
  chunks = [
    np.load(io.BytesIO(_path(folder, start, stop).read_bytes()))
    for start, stop in ranges(num_samples, chunk_size)
  ]
  return tuple(
    np.concatenate([chunk[name] for chunk in chunks])
    for name in ("images", "labels")
  )
