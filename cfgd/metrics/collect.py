"""Collect what FID, sFID, IS and the rest need of a set of images.

Moments of all images and the features of some of them are saved to a folder
chunk by chunk, so that the same call resumes after a crash.
"""

import functools
import io
from typing import NamedTuple

from etils import epath
import jax
import numpy as np

from cfgd.metrics import extract
from cfgd.metrics import image_sets
from cfgd.metrics import scores
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import preemption
from cfgd.runtime import progress
from cfgd.runtime import shared


class Collected(NamedTuple):
  """Sums over a set of images, and some of its rows.

  Attributes:
    features: moments of the features.
    spatial: moments of the spatial features.
    rows: [K, F] float32 features of the kept images.
    probabilities: [K, C] float32 class probabilities of the same.
  """

  features: scores.Moments
  spatial: scores.Moments
  rows: np.ndarray
  probabilities: np.ndarray


def collect(folder, scorer, params, images, *, kept, chunk_size, batch_size):
  """Run a set of images through a network, each process its chunks.

  Args:
    folder: for the parts, which `assemble` reads; all processes must see it. It
      belongs to these images and this network; the caller deletes it once its
      result exists.
    scorer: see `inception.scorer`.
    params: its parameters.
    images: see `image_sets`.
    kept: [N] bool, whose features to keep. The others use memory of one chunk.
    chunk_size: images per part.
    batch_size: images per device and call.

  Raises:
    errors.NonFiniteError: a feature is not finite.
    errors.RunError: a process does not see the folder.
    errors.Preempted: ended by a signal, after a chunk.
  """
  folder = epath.Path(folder)
  shared.check(folder)
  starts = range(0, len(images), chunk_size)
  mine = starts[jax.process_index() :: jax.process_count()]
  part = folder / _part(jax.process_index())

  def begin():
    done, sums = _read_sums(part)
    if done == len(mine):
      return done, sums, None
    image_sets.check_pixels(images[:chunk_size], images.name)
    return done, sums, distributed.replicate_locally(params)

  done, sums, placed = distributed.in_all(begin)
  spans = [_Span(images, start, chunk_size) for start in mine]
  scoring = progress.Progress(
    f"Features of {images.name}", sum(map(len, spans[done:]))
  )

  def work(number, sums):
    for span in spans[max(number, done) : number + 1]:
      outputs = _run(scorer, placed, span, batch_size, scoring)
      sums = _keep(folder, span, kept, outputs, sums)
      _write_sums(part, number + 1, sums)
    return sums

  with preemption.deferred():
    # All processes take equally many rounds, some maybe empty ones.
    for number in range(-(-len(starts) // jax.process_count())):
      sums = distributed.in_all(functools.partial(work, number, sums))
      there = min(max(number + 1, done), len(mine))
      preemption.check(
        f"{there} of {len(mine)} chunks of features are in {folder}; run the "
        "same command again to resume"
      )


def _keep(folder, span, kept, outputs, sums):
  """Write the rows of a chunk that are kept; return the sums with all."""
  features, probabilities, spatial = outputs
  chosen = kept[span.start : span.stop]
  _save(
    folder / _rows_name(span.start),
    rows=features[chosen],
    probabilities=probabilities[chosen],
  )
  return _plus(sums, [scores.moments(features), scores.moments(spatial)])


def assemble(folder, count, chunk_size):
  """Return Collected of the parts that `collect` made of `count` images."""
  folder = epath.Path(folder)
  sums = None
  for process in range(jax.process_count()):
    done, more = _read_sums(folder / _part(process))
    if done:
      sums = _plus(sums, more)
  chunks = [
    _load(folder / _rows_name(start)) for start in range(0, count, chunk_size)
  ]
  rows, probabilities = (
    np.concatenate([chunk[name] for chunk in chunks])
    for name in ("rows", "probabilities")
  )
  return Collected(*sums, rows, probabilities)


class _Span:
  """A slice of a set of images, read on demand."""

  def __init__(self, images, start, size):
    self._images, self.start = images, start
    self.stop = min(start + size, len(images))
    self.name = images.name

  def __len__(self):
    return self.stop - self.start

  def __getitem__(self, rows):
    return self._images[self.start + rows.start : self.start + rows.stop]


def _run(scorer, params, span, batch_size, scoring):
  parts = []
  for outputs in extract.batches(scorer, params, span, batch_size=batch_size):
    parts.append(outputs)
    scoring.add(len(outputs[0]))
  outputs = [np.concatenate(column) for column in zip(*parts, strict=True)]
  finite = np.all([np.isfinite(out).all(axis=1) for out in outputs], axis=0)
  if not finite.all():
    raise errors.NonFiniteError(
      f"the features of {(~finite).sum()} of {len(finite)} images are not "
      f"finite (first: image {span.start + int(np.argmin(finite))} of "
      f"{span.name}); check the network's weights"
    )
  return outputs


def _plus(sums, more):
  if not sums:
    return more
  return [scores.merge(a, b) for a, b in zip(sums, more, strict=True)]


# Files: the sums of a process, and the rows of a chunk, written first.


def _part(process):
  return f"sums_{process}_of_{jax.process_count()}.npz"


def _rows_name(start):
  return f"rows_{start:07d}.npz"


def _save(path, **arrays):
  with files.open_atomic(path) as file:
    np.savez(file, **arrays)


def _load(path):
  with np.load(io.BytesIO(path.read_bytes())) as arrays:
    return dict(arrays)


def _write_sums(path, done, sums):
  arrays = {"done": done}
  for index, moments in enumerate(sums):
    for field, value in moments._asdict().items():
      arrays[f"{field}_{index}"] = value
  _save(path, **arrays)


def _read_sums(path):
  """Return (chunks done, [moments of features, of spatial features])."""
  if not path.exists():
    return 0, None
  arrays = _load(path)
  sums = [
    scores.Moments(
      int(arrays[f"count_{index}"]),
      arrays[f"mean_{index}"],
      arrays[f"scatter_{index}"],
    )
    for index in range(2)
  ]
  return int(arrays["done"]), sums
