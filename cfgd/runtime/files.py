"""Files that appear whole or not at all."""

import contextlib
import uuid

from etils import epath


@contextlib.contextmanager
def open_atomic(path):
  """Open a file for writing bytes that gets its name when it is complete.

  A killed process leaves a `.tmp-...` file behind, never half a result; that is
  what lets every front treat "the file exists" as "the work is done".

  Args:
    path: where to write; local or a bucket, missing folders are made.

  Yields:
    A binary file.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".tmp-{uuid.uuid4().hex[:8]}-{path.name}"
  try:
    with temporary.open("wb") as file:
      yield file
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_atomic(path, data):
  """Write bytes or str (as UTF-8) with `open_atomic`."""
  with open_atomic(path) as file:
    file.write(data.encode() if isinstance(data, str) else data)
