"""What the files of a folder hold: one hash, and whether any is transparent.

That takes reading every byte, 150 GB for ImageNet. The answer is kept beside
the prepared sets, and as long as names, sizes and times of the files are the
same, no file is opened. If only the times differ, as after a copy or `touch`,
the files are read again and the hash comes out the same.
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
from cfgd.runtime import progress

_THREADS = 8
_FILES_AT_ONCE = 4096
# A younger file may change again within its time stamp's resolution.
_SETTLED_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Contents:
  """A hash of names and bytes, and whether any image is not opaque."""

  fingerprint: str
  transparent: bool


def read(folder, parts, *, remember):
  """Return the Contents of a folder's files, reading them if need be.

  Args:
    folder: path, under whose name the answer is kept.
    parts: part -> originals.Members, all of them files.
    remember: folder to keep the answer in, if it can be written.
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


def hash_names(digest, part, listed):
  """Add the names of a part's `originals.Members` to a hash."""
  digest.update(f"{part} {len(listed)}".encode())
  digest.update(b"\n".join(listed.names.tolist()))


def _key(parts):
  """Return (hash of names, sizes and times, the newest time in seconds)."""
  digest, newest = hashlib.sha256(), 0.0
  for part, listed in sorted(parts.items()):
    times = np.empty((len(listed), 2), np.int64)
    for row, path in enumerate(_paths(listed)):
      stat = os.stat(path)
      # Programs can set the first and not the second.
      times[row] = stat.st_mtime_ns, stat.st_ctime_ns
    hash_names(digest, part, listed)
    digest.update(listed.sizes.tobytes())
    digest.update(times.tobytes())
    newest = max(newest, times.max(initial=0) / 1e9)
  return digest.hexdigest(), newest


def _read(folder, parts):
  digest, transparent = hashlib.sha256(), False
  total = sum(int(listed.sizes.sum()) for listed in parts.values())
  reading = progress.Progress(
    f"Reading the files of {folder}", total, "GB", 1e9
  )
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for part, listed in sorted(parts.items()):
      hash_names(digest, part, listed)
      paths, sizes = _paths(listed), iter(listed.sizes.tolist())
      while some := list(itertools.islice(paths, _FILES_AT_ONCE)):
        for held, is_transparent in pool.map(_read_file, some):
          digest.update(held)
          transparent |= is_transparent
          reading.add(next(sizes))
  return Contents(digest.hexdigest()[:8], transparent)


def _paths(listed):
  return (os.path.join(listed.root, os.fsdecode(n)) for n in listed.names)


def _read_file(path):
  data = epath.Path(path).read_bytes()
  return hashlib.sha256(data).digest(), images.is_transparent(data)
