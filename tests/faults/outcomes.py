"""What a run leaves behind, to be compared with another run's."""

import contextlib
import csv
import dataclasses
import statistics
import sys
import time

import jax
import numpy as np

from cfgd import build
from cfgd.runtime import checkpoint
from cfgd.training import state as state_lib
from tests import tiny


@dataclasses.dataclass
class Tally:
  """What was done, and everything that went wrong."""

  kills: int = 0
  runs: int = 0
  divergences: list = dataclasses.field(default_factory=list)
  lost: int = 0
  doubled: int = 0
  surprises: list = dataclasses.field(default_factory=list)
  seconds_to_step: list = dataclasses.field(default_factory=list)

  def expect(self, condition, what):
    """Record a surprise unless a condition holds."""
    if not condition:
      self.surprises.append(what)

  def compare(self, what, equal):
    """Count a run, and record a divergence unless its outcome is equal."""
    self.runs += 1
    say(f"{what}: {self.kills} kills so far")
    if not equal:
      self.divergences.append(what)

  def add_start(self, job):
    """Record how long a training took to its first step, if it came to one."""
    if job.first_step:
      self.seconds_to_step.append(job.seconds_to_step)

  @property
  def failed(self):
    """Whether anything was not as it should be."""
    return bool(self.divergences or self.lost or self.doubled or self.surprises)

  def report(self):
    """Return the tally as a dict for JSON."""
    plain = dataclasses.asdict(self)
    seconds = plain.pop("seconds_to_step")
    plain["resumes"] = len(seconds)
    plain["median_seconds_to_first_resumed_step"] = (
      round(statistics.median(seconds), 2) if seconds else None
    )
    return plain


def say(what):
  """Print a line of progress."""
  print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def final_state(workdir, overrides):
  """Return (step, skipped, parameters, average, moments) as NumPy leaves."""
  config = tiny.make_config(overrides)
  shapes = build.param_shapes(config)
  like = state_lib.create(
    jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes),
    build.optimizer(config),
  )
  checkpoints = checkpoint.Checkpointer(workdir, keep=9, keep_every=0)
  with contextlib.closing(checkpoints):
    return jax.tree.leaves(checkpoints.restore_newest(like))


def same(one, other):
  """Say whether two states are equal to the last bit."""
  return len(one) == len(other) and all(
    a.dtype == b.dtype and np.array_equal(a, b)
    for a, b in zip(one, other, strict=True)
  )


def losses(workdir):
  """Return the losses of a run's TensorBoard events, by step."""
  # TensorBoard's import takes seconds and is needed here alone.
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  # By default it keeps ten of them.
  events = event_accumulator.EventAccumulator(
    str(workdir), size_guidance={event_accumulator.TENSORS: 0}
  )
  events.Reload()
  scalars = [event.tensor_proto for event in events.Tensors("loss")]
  return np.array([tensor_util.make_ndarray(scalar) for scalar in scalars])


def images(workdir):
  """Return the images of a run's only samples."""
  (path,) = workdir.glob("samples/*/samples_*.npz")
  with np.load(path) as arrays:
    return arrays["arr_0"]


def table(workdir):
  """Return (rows of results.csv by id, number of rows that repeat an id).

  Left out are the row of real images, which is no cell's, and the seconds that
  a cell took, which differ from run to run.
  """
  path = workdir / "results.csv"
  if not path.exists():
    return {}, 0
  with path.open() as file:
    rows = [row for row in csv.DictReader(file) if row["w"]]
  for row in rows:
    del row["seconds"]
  by_id = {row["id"]: row for row in rows}
  return by_id, len(rows) - len(by_id)


def count_rewritten(workdir, written):
  """Count results that changed since the last call.

  Args:
    workdir: of a sweep.
    written: {path: time of its writing} of the last call, which is updated.
  """
  count = 0
  for path in workdir.glob("cells/*/metrics.json"):
    stamp = path.stat().st_mtime_ns
    count += written.get(path, stamp) != stamp
    written[path] = stamp
  return count
