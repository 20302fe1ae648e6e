"""Data sets by name, as random-access sources of small uint8 images."""

import dataclasses

import numpy as np

from cfgd import errors
from cfgd.data import embedded
from cfgd.data import images as image_ops


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set in memory.

  Attributes:
    images: [N, size, size, C] uint8.
    labels: [N] int32.
    num_classes: number of classes.
    preprocessing: id of what was done to the images.
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int
  preprocessing: str

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    """Return {"image": [size, size, C] uint8, "label": int32}."""
    return {"image": self.images[index], "label": self.labels[index]}

  def __repr__(self):
    return f"Source({self.preprocessing}, {len(self)} images)"


def _embedded(split, crop, size):
  images, labels = embedded.load(split)
  if max(crop, size) > images.shape[1]:
    raise errors.UserError(
      f"data.image_size={size}, data.crop={crop}: the embedded images are "
      f"{images.shape[1]} pixels wide; choose at most that"
    )
  how = {"crop": crop, "size": size}
  small = [image_ops.preprocess(image, **how) for image in images]
  return Source(
    images=np.stack(small),
    labels=labels,
    num_classes=embedded.NUM_CLASSES,
    preprocessing=image_ops.preprocessing_id("mnist5k", **how),
  )


_LOADERS = {"embedded": _embedded}


def load(name, split, *, crop, image_size, channels, num_classes):
  """Open a data set.

  Args:
    name: "embedded".
    split: "train" or "heldout".
    crop: side of the central square that is kept; 0 is the shorter side.
    image_size: side of the images after area downsampling.
    channels: what the config says that the images have.
    num_classes: what the config says that the labels have.

  Returns:
    A source: `len`, `[i] -> {"image", "label"}`, `num_classes`,
    `preprocessing`.

  Raises:
    errors.UserError: unknown name, or images unlike what the config says.
  """
  if name not in _LOADERS:
    raise errors.UserError(
      f"data.source='{name}': no such data set here; known: "
      f"{', '.join(sorted(_LOADERS))}"
    )
  source = _LOADERS[name](split, crop, image_size)
  found = {
    "channels": source.images.shape[-1],
    "num_classes": source.num_classes,
  }
  said = {"channels": channels, "num_classes": num_classes}
  for field, value in found.items():
    if said[field] != value:
      raise errors.UserError(
        f"data.{field}={said[field]}: data.source='{name}' has {value}"
      )
  return source
