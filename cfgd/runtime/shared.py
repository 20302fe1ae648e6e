"""A folder that all processes must see: on a shared disk, or a bucket."""

import time
import uuid

from etils import epath
import jax

from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files

# Network file systems may show what another machine wrote only after a while.
_TRIES = 5
_PAUSE_SECONDS = 1.0


def check(folder):
  """Refuse a folder that is another one in another process.

  Process 0 writes a file of a new name, which the others must find. All
  processes call this; it raises errors.RunError in all.
  """
  if jax.process_count() == 1:
    return
  name = distributed.by_lead(lambda: f".tmp-{uuid.uuid4().hex[:8]}-seen")
  token = epath.Path(folder) / name
  distributed.by_lead(lambda: files.write_atomic(token, ""))
  try:
    distributed.in_all(lambda: _find(token))
  finally:
    if distributed.is_lead():
      token.unlink(missing_ok=True)


def _find(token):
  for _ in range(_TRIES):
    if token.exists():
      return
    time.sleep(_PAUSE_SECONDS)
  raise errors.RunError(
    f"{token.parent}: process {jax.process_index()} of {jax.process_count()} "
    "does not find there what process 0 writes: put it on a disk that all "
    "share, or in a bucket (gs://)"
  )
