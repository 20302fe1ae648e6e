"""Files that appear whole or not at all, on disks and in buckets."""

import contextlib
import functools
import os
import re
import tempfile
import uuid

from etils import epath
import fsspec

from cfgd.runtime import errors

# Buckets are reached by fsspec (gcsfs, s3fs): TensorFlow's file system writes
# no file that can be sought in, and knows no object store but Google's.
os.environ.setdefault("EPATH_USE_TF", "false")
# Whose errors are those of a connection.
_NETWORK = ("aiohttp", "gcsfs", "s3fs", "botocore")
# What to do where one of them is missing.
STORES = "in the repository, pip install -e '.[gcs]' or '.[s3]'"
for _protocol in ("gs", "gcs", "s3"):
  # Other jobs write there, too.
  fsspec.config.conf.setdefault(_protocol, {})["use_listings_cache"] = False


def in_bucket(path):
  """Return whether a path is in an object store, such as gs://bucket/x."""
  return "://" in str(path)


@functools.lru_cache
def check_place(folder):
  """Refuse a folder that cannot be reached, or in which Orbax loses files.

  Raises:
    errors.UserError: a wrong name, no such bucket, no library for its store.
  """
  folder = os.fspath(folder)
  if re.search(r"[][*?]", folder):
    raise errors.UserError(
      f"{folder}: must contain none of [ ] * ?, which checkpoints take for "
      "patterns"
    )
  if not in_bucket(folder):
    return
  try:
    store, path = fsspec.url_to_fs(folder)
  except ImportError as error:
    raise errors.UserError(f"{folder}: {error}: {STORES}") from error
  except ValueError as error:
    raise errors.UserError(f"{folder}: {error}") from error
  bucket = path.partition("/")[0]
  try:
    found = bool(bucket) and store.exists(bucket)
  except OSError as error:
    raise errors.UserError(f"{folder}: {error}") from error
  if not found:
    raise errors.UserError(
      f"{folder}: no such bucket, or no right to look into it"
    )


def is_outage(error):
  """Return whether an error is about a store that does not answer."""
  if isinstance(error, BrokenPipeError):  # whoever read our output has left
    return False
  library = type(error).__module__.partition(".")[0]
  return isinstance(error, ConnectionError | TimeoutError) or (
    library in _NETWORK
  )


@contextlib.contextmanager
def open_atomic(path):
  """Open a binary file for writing that gets its name once it is complete.

  A killed process leaves at most a `.tmp-...` file and never half a result, so
  "the file exists" means "the work is done". Missing folders are created.
  """
  path = epath.Path(path)
  if in_bucket(path):
    # An object appears when its upload ends, and one that fails must not end.
    with tempfile.NamedTemporaryFile() as file:
      yield file
      file.flush()
      store, name = fsspec.url_to_fs(str(path))
      store.put_file(file.name, name)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".tmp-{uuid.uuid4().hex[:8]}-{path.name}"
  try:
    with temporary.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # a crash must not leave the name without data
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_atomic(path, data):
  """Write bytes or str (as UTF-8) with `open_atomic`."""
  with open_atomic(path) as file:
    file.write(data.encode() if isinstance(data, str) else data)
