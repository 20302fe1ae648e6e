"""Files that appear whole or not at all."""

import contextlib
import uuid

from etils import epath


@contextlib.contextmanager
def open_atomic(path):
  """Open a binary file for writing that gets its name once it is complete.

  A killed process leaves a `.tmp-...` file and never half a result, so "the
  file exists" means "the work is done". Works on buckets too; missing folders
  are created.
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
