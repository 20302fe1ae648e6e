"""A data set and the preprocessing of its images, as one value."""

import dataclasses

from cfgd.data import images


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a config says about its data.

  Attributes:
    source: name of the data set, see `catalog`.
    image_size: side of the images; 0 where the name says it.
    crop: side of the central square that is kept; 0 is the shorter side.
    random_crop: if not 0, training images are random crops with at least this
      share of the shorter side.
    background: colour behind transparent pixels.
    data_dir: folder of prepared sets; "" is TFDS's default.
    channels: expected channels; 0 accepts any.
    num_classes: expected number of classes; 0 accepts any.
  """

  source: str
  image_size: int
  crop: int = 0
  random_crop: float = 0.0
  background: str = "white"
  data_dir: str = ""
  channels: int = 0
  num_classes: int = 0

  @property
  def whole(self):
    """Shorter side of whole images stored for random crops; 0 for squares."""
    return images.whole_side(self.image_size, self.random_crop)

  @property
  def rgb(self):
    """(R, G, B) of the background."""
    return images.rgb(self.background)

  def preprocessing(self, name):
    """Return the id of this preprocessing of the originals called `name`."""
    if self.whole:
      crop = f"crop{self.crop}-" if self.crop else ""
      return f"{name}-{crop}whole{self.whole}-randomcrop{self.image_size}"
    return f"{name}-crop{self.crop or 'short'}-area{self.image_size}"
