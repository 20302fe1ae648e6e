"""Data sets as random-access sources of small uint8 images.

A source has `len`, `[i] -> {"image", "label"}`, `read(indices)` for a batch of
the same, `image_shape`, `num_classes` and `preprocessing`. The embedded digits
are held in memory; every other set is prepared once and read from disk.
"""

import dataclasses

import numpy as np

from cfgd.data import catalog
from cfgd.data import crops
from cfgd.data import embedded
from cfgd.data import images as image_ops
from cfgd.runtime import errors


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set in memory: images [N, size, size, C] uint8, labels [N] int32."""

  images: np.ndarray
  labels: np.ndarray
  num_classes: int
  preprocessing: str

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    """Return {"image": [size, size, C] uint8, "label": int32}."""
    return {"image": self.images[index], "label": self.labels[index]}

  def read(self, indices):
    """Return {"image": [n, size, size, C] uint8, "label": [n] int32}."""
    return self[np.asarray(indices)]

  def read_whole(self, indices):
    """Return (images [n, size, size, C] uint8, labels [n] int32)."""
    indices = np.asarray(indices)
    return self.images[indices], self.labels[indices]

  @property
  def image_shape(self):
    """(H, W, C)."""
    return self.images.shape[1:]


def _embedded(spec, split):
  images, labels = embedded.load(split)
  size, crop = spec.image_size, spec.crop
  if max(crop, size) > images.shape[1]:
    raise errors.UserError(
      f"data.image_size={size}, data.crop={crop}: the embedded images are "
      f"{images.shape[1]} pixels wide; choose at most that"
    )
  if split != "train":
    spec = dataclasses.replace(spec, random_crop=0.0)
  side = spec.whole or size
  small = [image_ops.preprocess(k, crop=crop, size=side) for k in images]
  return Source(
    images=np.stack(small),
    labels=labels,
    num_classes=embedded.NUM_CLASSES,
    preprocessing=spec.preprocessing("mnist5k"),
  )


def load(spec, split):
  """Return the source of "train" or "heldout" of a spec.Spec.

  Only training images are ever random crops. Raises errors.UserError if the
  name is unknown, the set is not prepared, or its channels or classes are not
  those of `spec`.
  """
  open_part = _embedded if spec.source == "embedded" else catalog.open_part
  source = open_part(spec, split)
  if spec.random_crop and split == "train":
    source = crops.RandomCrops(source, spec.image_size)
  found = {
    "channels": source.image_shape[-1],
    "num_classes": source.num_classes,
  }
  for field, value in found.items():
    wanted = getattr(spec, field)
    if wanted not in (0, value):
      raise errors.UserError(
        f"data.{field}={wanted}: data.source='{spec.source}' has {value}"
      )
  return source
