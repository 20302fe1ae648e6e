"""Data sets by name, as random-access sources of small uint8 images.

A source has `len`, `[i] -> {"image", "label"}`, `read(indices)` for a batch of
the same, `image_shape`, `num_classes` and `preprocessing`. The embedded data is
in memory, everything else is prepared once and read from disk.
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

  def read(self, indices):
    """Return {"image": [n, size, size, C] uint8, "label": [n] int32}."""
    return self[np.asarray(indices)]

  def read_whole(self, indices):
    """Return (images [n, size, size, C] uint8, labels [n] int32)."""
    indices = np.asarray(indices)
    return self.images[indices], self.labels[indices]

  @property
  def image_shape(self):
    """Return (H, W, C)."""
    return self.images.shape[1:]

  def __repr__(self):
    return f"Source({self.preprocessing}, {len(self)} images)"


def _embedded(split, crop, size, whole):
  images, labels = embedded.load(split)
  if max(crop, size) > images.shape[1]:
    raise errors.UserError(
      f"data.image_size={size}, data.crop={crop}: the embedded images are "
      f"{images.shape[1]} pixels wide; choose at most that"
    )
  side = whole or size
  small = [image_ops.preprocess(k, crop=crop, size=side) for k in images]
  return Source(
    images=np.stack(small),
    labels=labels,
    num_classes=embedded.NUM_CLASSES,
    preprocessing=image_ops.preprocessing_id(
      "mnist5k", crop=crop, size=size, whole=whole
    ),
  )


def load(
  name,
  split,
  *,
  crop,
  image_size,
  channels,
  num_classes,
  data_dir="",
  background="white",
  random_crop=0.0,
):
  """Open a data set.

  Args:
    name: "embedded", or one of a prepared set, see data.catalog.
    split: "train" or "heldout".
    crop: side of the central square that is kept; 0 is the shorter side.
    image_size: side of the images after area downsampling.
    channels: what the config says that the images have.
    num_classes: what the config says that the labels have.
    data_dir: folder of prepared sets; "" is TFDS's own.
    background: colour behind what is transparent.
    random_crop: not 0: the training images are random crops, held-out ones the
      central squares; see `images.whole_side`.

  Returns:
    A source, or crops.RandomCrops.

  Raises:
    errors.UserError: unknown name, a set that is not prepared, or images unlike
      what the config says.
  """
  if name == "embedded":
    whole = image_ops.whole_side(image_size, random_crop)
    whole = whole if split == "train" else 0
    source = _embedded(split, crop, image_size, whole)
  else:
    source = catalog.open_part(
      name,
      split,
      crop=crop,
      image_size=image_size,
      data_dir=data_dir,
      background=background,
      random_crop=random_crop,
    )
  if random_crop and split == "train":
    source = crops.RandomCrops(source, image_size)
  found = {
    "channels": source.image_shape[-1],
    "num_classes": source.num_classes,
  }
  said = {"channels": channels, "num_classes": num_classes}
  for field, value in found.items():
    if said[field] != value:
      raise errors.UserError(
        f"data.{field}={said[field]}: data.source='{name}' has {value}"
      )
  return source
