"""Random crops of whole images, as ADM trains its classifiers.

As guided-diffusion's random_crop_arr: resize the shorter side to a size drawn
from [size, size / random_crop], then cut out a square of `size` anywhere.
"""

import numpy as np

from cfgd.data import images

DRAWS = 3  # uniform numbers per crop: size, top, left


class RandomCrops:
  """A training set that returns another crop at every read.

  Attributes:
    image_shape: (H, W, C) of the crops.
    num_classes: number of classes.
    preprocessing: id of the preprocessing.
  """

  def __init__(self, source, size):
    """Crop squares of `size` out of a source that has `read_whole`."""
    self._source, self._size = source, size
    self.image_shape = (size, size, source.image_shape[-1])
    self.num_classes = source.num_classes
    self.preprocessing = source.preprocessing

  def __len__(self):
    return len(self._source)

  def __repr__(self):
    return f"RandomCrops({self.preprocessing}, {len(self)} images)"

  def read(self, indices, draws=None):
    """Return a batch of crops.

    Args:
      indices: [n] indices of the images.
      draws: [n, DRAWS] uniform in [0, 1); the default crops the middle at a
        medium size.

    Returns:
      {"image": [n, H, W, C] uint8, "label": [n] int32}.
    """
    whole, labels = self._source.read_whole(indices)
    if draws is None:
      draws = np.full((len(whole), DRAWS), 0.5)
    batch = np.empty((len(whole), *self.image_shape), np.uint8)
    for row, image in enumerate(whole):
      batch[row] = images.random_crop(image, self._size, draws[row])
    return {"image": batch, "label": labels}
