"""Random crops of whole images, as ADM trains its classifiers.

As guided-diffusion's random_crop_arr: resize the shorter side to a size drawn
from [size, size / random_crop], then cut out a square of `size` anywhere.
"""

import numpy as np

from cfgd.data import images

DRAWS = 3  # uniform numbers per crop: size, top, left


class RandomCrops:
  """A source that returns another crop of its images at every read."""

  def __init__(self, source, size):
    """Crop squares of `size` out of a source that has `read_whole`."""
    self._source, self._size = source, size
    self.image_shape = (size, size, source.image_shape[-1])
    self.num_classes = source.num_classes
    self.preprocessing = source.preprocessing

  def __len__(self):
    return len(self._source)

  def read(self, indices, draws=None):
    """Return {"image": [n, H, W, C] uint8, "label": [n] int32}.

    Args:
      indices: [n] indices of the images.
      draws: [n, DRAWS] uniform in [0, 1); None crops the middle, medium-sized.
    """
    whole, labels = self._source.read_whole(indices)
    if draws is None:
      draws = np.full((len(whole), DRAWS), 0.5)
    batch = np.empty((len(whole), *self.image_shape), np.uint8)
    for row, image in enumerate(whole):
      batch[row] = images.random_crop(image, self._size, draws[row])
    return {"image": batch, "label": labels}
