"""Features and class probabilities of images, over this process's devices."""

import functools

import jax
import numpy as np

from cfgd.data import pixels
from cfgd.runtime import distributed


@functools.cache
def _pmapped(scorer):
  """Return a scorer pmapped over a leading axis of devices; cached."""
  return jax.pmap(scorer, in_axes=(None, 0), devices=jax.local_devices())


@functools.cache
def classifier(network):
  """Return a Flax module, x in [-1, 1] -> (features, logits), as a scorer.

  Returns:
    (params, images [B, H, W, C] uint8) -> (features [B, F], probabilities
    [B, K]) float32.
  """

  def run(params, images):
    x = pixels.to_x(images)
    features, logits = network.apply({"params": params}, x)
    return features, jax.nn.softmax(logits)

  return run


def batches(scorer, params, images, *, batch_size):
  """Yield a scorer's outputs [n, ...] by batches, dispatching one batch ahead.

  Args:
    scorer: (params, images [B, H, W, C] uint8) -> arrays [B, ...]; the same
      object shares one compilation.
    params: its parameters, on the devices if there are many batches.
    images: [N, H, W, C] uint8, or anything with `len` and slices like it.
    batch_size: images per device and call; the last call is padded.
  """
  run = _pmapped(scorer)
  devices = jax.local_device_count()
  rows = batch_size * devices
  ahead = None
  for start in range(0, len(images), rows):
    batch = images[start : min(start + rows, len(images))]
    assert batch.dtype == np.uint8, batch.dtype
    padded = distributed.split(distributed.pad(batch, rows), devices)
    outputs = run(params, padded)
    if ahead:
      yield _to_host(*ahead)
    ahead = outputs, len(batch)
  if ahead:
    yield _to_host(*ahead)


def _to_host(outputs, count):
  return tuple(distributed.merge(out)[:count] for out in outputs)


def extract(network, params, images, *, batch_size):
  """Return (features [N, F], probabilities [N, K]) float32 of all images.

  The network is a Flax module, see `classifier`; the rest as in `batches`.
  """
  parts = batches(classifier(network), params, images, batch_size=batch_size)
  return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
