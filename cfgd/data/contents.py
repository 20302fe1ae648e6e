"""What the files of a folder hold: one hash, and whether any is transparent.

All bytes have to be read for that, 150 GB of ImageNet at the disk's speed. The
answer is kept beside the sets: while names, sizes and times of the files are
the same, no file is opened. Other times alone, of a copy or after `touch`,
lead to the same hash.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import time

from absl import logging
from etils import epath
import numpy as np

from cfgd.data import images
from cfgd.runtime import files

_THREADS = 8
_FILES_AT_ONCE = 4096
_PROGRESS_SECONDS = 15.0
# File systems' clocks are as coarse as this: a younger file may change again
# and keep its time.
_SETTLED_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Contents:
  """What is known of the files.

  Attributes:
    fingerprint: 8 hexadecimal digits for names and bytes of all files.
    transparent: an image among them has pixels that are not opaque.
  """

  fingerprint: str
  transparent: bool


def read(folder, parts, *, remember):
  """Return the contents of a folder's files, reading them if need be.

  Args:
    folder: path, under whose name the answer is kept.
    parts: part -> originals.Members, files all of them.
    remember: folder in which it is kept; where that cannot be written, the
      files are read each time.

  Returns:
    Contents.
  """
  place = os.path.abspath(folder)
  name = hashlib.sha256(place.encode()).hexdigest()[:16]
  path = epath.Path(remember) / f"{name}.json"
  key, newest = _key(parts)
  try:
    known = json.loads(path.read_text())
    if known["key"] == key:
      return Contents(known["fingerprint"], known["transparent"])
  except (OSError, ValueError, KeyError, TypeError):
    pass  # never read, or damaged: read the files
  started = time.time()
  found = _read(folder, parts)
  if started - newest > _SETTLED_SECONDS:
    _remember(path, {"folder": place, "key": key} | dataclasses.asdict(found))
  return found


def _remember(path, known):
  try:
    files.write_atomic(path, json.dumps(known, indent=2) + "\n")
  except OSError as error:
    logging.info("The files will be read at every start: %s", error)


def _key(parts):
  """Return (hash of names, sizes and times, the newest time in seconds)."""
  digest, newest = hashlib.sha256(), 0.0
  for part, listed in sorted(parts.items()):
    times = np.empty((len(listed), 2), np.int64)
    for row, path in enumerate(_paths(listed)):
      stat = os.stat(path)
      # Programs can set the first and not the second.
      times[row] = stat.st_mtime_ns, stat.st_ctime_ns
    digest.update(f"{part} {len(listed)}".encode())
    digest.update(b"\n".join(listed.names.tolist()))
    digest.update(listed.sizes.tobytes())
    digest.update(times.tobytes())
    newest = max(newest, times.max(initial=0) / 1e9)
  return digest.hexdigest(), newest


def _read(folder, parts):
  digest, transparent = hashlib.sha256(), False
  progress = _Progress(folder, parts)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for part, listed in sorted(parts.items()):
      digest.update(f"{part} {len(listed)}".encode())
      digest.update(b"\n".join(listed.names.tolist()))
      paths, sizes = _paths(listed), iter(listed.sizes.tolist())
      while some := list(itertools.islice(paths, _FILES_AT_ONCE)):
        for held, is_transparent in pool.map(_read_file, some):
          digest.update(held)
          transparent |= is_transparent
          progress(next(sizes))
  return Contents(digest.hexdigest()[:8], transparent)


def _paths(listed):
  return (os.path.join(listed.root, os.fsdecode(n)) for n in listed.names)


def _read_file(path):
  data = epath.Path(path).read_bytes()
  return hashlib.sha256(data).digest(), images.is_transparent(data)


class _Progress:
  """Log bytes, rate and time to go, where there is much to read."""

  def __init__(self, folder, parts):
    self._folder, self._done = folder, 0
    self._total = sum(int(listed.sizes.sum()) for listed in parts.values())
    self._start = self._said = time.monotonic()

  def __call__(self, size):
    self._done += size
    now = time.monotonic()
    if now - self._said > _PROGRESS_SECONDS:
      self._said = now
      rate = self._done / (now - self._start)
      logging.info(
        "Reading the files of %s: %.1f of %.1f GB, %.0f MB/s, %.0f s to go.",
        *(self._folder, self._done / 1e9, self._total / 1e9, rate / 1e6),
        (self._total - self._done) / rate,
      )
