"""The log and the TensorBoard events of a run."""

import os
import tempfile

from clu import metric_writers
from etils import epath

from cfgd.runtime import distributed
from cfgd.runtime import files


def writer(workdir):
  """Return the writer of a run's log and, in process 0, TensorBoard events.

  Those of a bucket are copied there by its `flush`.
  """
  if not distributed.is_lead():
    return metric_writers.LoggingWriter()
  if files.in_bucket(workdir):
    return _BucketWriter(workdir)
  return metric_writers.create_default_writer(os.fspath(workdir))


class _BucketWriter(metric_writers.MultiWriter):
  """Events in a local folder, copied to a bucket.

  TensorFlow writes events to Google's buckets alone, and not to one elsewhere
  that speaks the same protocol.
  """

  def __init__(self, bucket):
    self._bucket = epath.Path(bucket)
    self._local = tempfile.TemporaryDirectory()
    super().__init__([metric_writers.create_default_writer(self._local.name)])

  def flush(self):
    super().flush()
    for path in epath.Path(self._local.name).iterdir():
      files.write_atomic(self._bucket / path.name, path.read_bytes())

  def close(self):
    self.flush()
    super().close()
    self._local.cleanup()
