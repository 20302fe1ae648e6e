"""Training batches whose order depends on (seed, step) alone.

The order of an epoch, its crops and its flips are drawn from (seed, epoch); a
step takes the next rows of that order. So the union of the hosts' batches at a
step is the same for any number of hosts, and step k is reached by indexing.
Examples are read, cropped, flipped and stacked by the batch; Grain's threads
read ahead.
"""

import functools
import sys

import jax
import numpy as np

from cfgd.data import crops
from cfgd.data import images
from cfgd.runtime import distributed

_CROPS = 1  # random stream of the crops, beside that of order and flips


def _grain():
  """Import Grain when needed: networks run where it is missing."""
  import grain

  return grain


@functools.lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _epoch(seed, epoch, number):
  """Return (order of the examples, which of them are mirrored)."""
  rng = np.random.default_rng((seed, epoch))
  return rng.permutation(number), rng.random(number) < 0.5


@functools.lru_cache(maxsize=2)
def _epoch_crops(seed, epoch, number):
  """Return the uniform numbers of every example's crop."""
  rng = np.random.default_rng((seed, epoch, _CROPS))
  return rng.random((number, crops.DRAWS), np.float32)


def _draw(positions, seed, number, cropped):
  """Return examples [b], flips [b] and crops [b, DRAWS] of positions [b].

  Crops are None unless they are wanted.
  """
  epochs, places = np.divmod(positions, number)
  examples = np.empty(len(positions), np.int64)
  flips = np.empty(len(positions), bool)
  draws = np.empty((len(positions), crops.DRAWS), np.float32)
  for epoch in np.unique(epochs):
    order, mirrored = _epoch(seed, int(epoch), number)
    rows = epochs == epoch
    examples[rows] = order[places[rows]]
    flips[rows] = mirrored[examples[rows]]
    if cropped:
      draws[rows] = _epoch_crops(seed, int(epoch), number)[examples[rows]]
  return examples, flips, draws if cropped else None


def stream(source, *, seed, batch_size, flip, process_index, process_count):
  """Return this host's endless sequence of batches, indexed by step.

  Args:
    source: see data.sources.
    seed: seed of the order, the crops and the flips.
    batch_size: over all hosts.
    flip: mirror images left to right at random.
    process_index: this host takes rows process_index::process_count.
    process_count: number of hosts.

  Returns:
    A grain.MapDataset of {"image": [b, H, W, C] uint8, "label": [b] int32,
    "row": [b] int32 place in the global batch}.
  """
  rows = np.arange(process_index, batch_size, process_count)
  cropped = isinstance(source, crops.RandomCrops)

  def read(step):
    positions = step * batch_size + rows
    examples, flips, draws = _draw(positions, seed, len(source), cropped)
    batch = source.read(examples, *([draws] if cropped else []))
    batch["row"] = rows.astype(np.int32)
    if flip:
      batch["image"] = images.flip(batch["image"], flips)
    return batch

  return _grain().MapDataset.range(sys.maxsize // batch_size).map(read)


def batches(source, *, first_step, num_threads, prefetch, **order):
  """Yield `stream`'s batches from `first_step` on, split over local devices.

  Args:
    source: see data.sources.
    first_step: 0, or the step at which a run resumes.
    num_threads: host threads that read ahead.
    prefetch: batches that are kept ready.
    **order: seed, batch_size and flip of `stream`.
  """
  dataset = stream(
    source,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **order,
  )
  options = _grain().ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=prefetch
  )
  for batch in dataset[first_step:].to_iter_dataset(options):
    yield distributed.split(batch, jax.local_device_count())
