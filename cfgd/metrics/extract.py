"""Features and class probabilities of images, over this process's devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfgd import distributed


@functools.cache
def make_extractor(network):
  """Compile a network (x in [-1, 1]) -> (features, logits); cached.

  Returns:
    pmapped (params, images [D, B, H, W, C] uint8) -> (features [D, B, F],
    probabilities [D, B, K]) float32.
  """

  def run(params, images):
    x = images.astype(jnp.float32) / 127.5 - 1.0
    features, logits = network.apply({"params": params}, x)
    return features, jax.nn.softmax(logits)

  return jax.pmap(run, in_axes=(None, 0), devices=jax.local_devices())


def extract(network, params, images, *, batch_size):
  """Run all images through a feature network.

  Args:
    network: Flax module, see `make_extractor`.
    params: its parameters.
    images: [N, H, W, C] uint8.
    batch_size: images per device and call; the last call is filled up.

  Returns:
    (features [N, F], probabilities [N, K]) float32.
  """
  assert images.dtype == np.uint8, images.dtype
  run = make_extractor(network)
  devices = jax.local_device_count()
  rows = batch_size * devices
  parts = []
  for start in range(0, len(images), rows):
    batch = images[start : start + rows]
    padded = distributed.split(distributed.pad(batch, rows), devices)
    outputs = run(params, padded)
    parts.append([distributed.merge(out)[: len(batch)] for out in outputs])
  return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
