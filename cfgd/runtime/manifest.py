"""A manifest: the size and CRC-32 of each file in a folder.

It detects truncated, lost or accidentally changed files at the speed of reading
them. It is no protection against tampering.
"""

from concurrent import futures
import functools
import json
import os
import zlib

from etils import epath

from cfgd.runtime import files

NAME = "manifest.json"
_CHUNK = 1 << 22
_THREADS = 4  # CRC-32 of large chunks releases the GIL.


def write(folder, under):
  """Read back all files in the subfolders `under` and write their manifest."""
  folder = epath.Path(folder)
  names = sorted(
    name for part in under for name in _names(folder / part, f"{part}/")
  )
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    entries = pool.map(lambda name: _measure(folder / name), names)
    contents = dict(zip(names, entries, strict=True))
  files.write_atomic(
    folder / NAME, json.dumps({"files": contents}, indent=1) + "\n"
  )


def fault(folder, under=()):
  """Return a few words about the first damaged file, None if there is none.

  Verifies only the subfolders `under` if they are given.
  """
  folder = epath.Path(folder)
  try:
    contents = json.loads((folder / NAME).read_text())["files"]
    contents = {name: tuple(entry) for name, entry in contents.items()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return f"{NAME} cannot be read"
  chosen = [
    item
    for item in contents.items()
    if not under or item[0].split("/")[0] in under
  ]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    faults = pool.map(lambda item: _fault_of(folder, *item), chosen)
    return next(filter(None, faults), None)


def size(folder):
  """Return the total bytes of the files in a folder's manifest."""
  contents = json.loads((epath.Path(folder) / NAME).read_text())["files"]
  return sum(length for length, _ in contents.values())


def _names(folder, prefix):
  for path in folder.iterdir():
    if path.is_dir():
      yield from _names(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name


def _measure(path):
  """Return (length, CRC-32), read once while a file stays as it is."""
  return _read(os.fspath(path), os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _read(path, written):
  del written  # part of the key
  length, crc = 0, 0
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      length += len(chunk)
      crc = zlib.crc32(chunk, crc)
  return length, f"{crc:08x}"


def _fault_of(folder, name, entry):
  try:
    length, crc = _measure(folder / name)
  except OSError as error:
    return f"{name} cannot be read ({type(error).__name__})"
  if length != entry[0]:
    return f"{name} has {length} bytes of {entry[0]}"
  return None if crc == entry[1] else f"{name} has changed"
