"""Training batches whose order is a function of (seed, step) alone.

Grain shuffles anew each epoch and draws flips from (seed, position) before the
stream is dealt to the hosts, so the union of the hosts' batches at a step is
the same for any number of hosts, and step k is reached by indexing.
"""

import grain
import jax
import numpy as np

from cfgd import distributed
from cfgd.data import images


class _Flip(grain.transforms.RandomMap):
  def random_map(self, element, rng):
    return element | {"image": images.random_flip(element["image"], rng)}


def stream(source, *, seed, batch_size, flip, process_index, process_count):
  """Return this host's endless sequence of batches, indexed by step.

  Args:
    source: random access, `[i] -> {"image", "label"}`.
    seed: of the order and the flips.
    batch_size: over all hosts.
    flip: mirror images left to right at random.
    process_index: this host's rows are process_index::process_count.
    process_count: number of hosts.

  Returns:
    A grain.MapDataset of {"image": [b, H, W, C] uint8, "label": [b] int32,
    "row": [b] int32 place in the global batch}, b = batch_size /
    process_count.
  """
  dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  if flip:
    dataset = dataset.random_map(_Flip())
  dataset = dataset.map_with_index(
    lambda i, element: element | {"row": np.int32(i % batch_size)}
  )
  dataset = dataset[process_index::process_count]
  return dataset.batch(batch_size // process_count, drop_remainder=True)


def batches(
  source, *, seed, batch_size, flip, first_step, num_threads, prefetch
):
  """Iterate over batches from `first_step` on, split over local devices.

  Args:
    source: see `stream`.
    seed: see `stream`.
    batch_size: over all devices of all hosts.
    flip: see `stream`.
    first_step: 0, or the step at which a run resumes.
    num_threads: host threads that read ahead.
    prefetch: batches that are kept ready.

  Yields:
    `stream`'s batches with leaves [local devices, per device, ...].
  """
  dataset = stream(
    source,
    seed=seed,
    batch_size=batch_size,
    flip=flip,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=prefetch
  )
  for batch in dataset[first_step:].to_iter_dataset(options):
    yield distributed.split(batch, jax.local_device_count())
