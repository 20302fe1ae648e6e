"""Area-downsampled ImageNet as a TFDS builder.

  import cfgd.data.imagenet
  tfds.data_source("imagenet_area/64x64", split="train", data_dir=...)

Importing this module registers the set with TFDS. `data.prepare` does the
preparation, with its checks and its resuming.
"""

import dataclasses

import tensorflow_datasets as tfds

from cfgd.data import imagenet_archives
from cfgd.data import images
from cfgd.data import prepare
from cfgd.data import prepared
from cfgd.data import spec


@dataclasses.dataclass
class AreaConfig(tfds.core.BuilderConfig):
  """Side of the images, and `data.random_crop`."""

  image_size: int = 0
  random_crop: float = 0.0


class ImagenetArea(tfds.core.GeneratorBasedBuilder):
  """ImageNet, central square, area downsampled; parts train and heldout."""

  VERSION = tfds.core.Version(prepared.VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "manual_dir: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
    "https://image-net.org/download-images"
  )
  BUILDER_CONFIGS = tuple(
    AreaConfig(
      name=f"{size}x{size}" + (f"_whole{whole}" if whole else ""),
      image_size=size,
      random_crop=random_crop,
    )
    for size in (64, 128)
    for random_crop in (0.0, 0.8)
    for whole in (images.whole_side(size, random_crop),)
  )

  def __init__(self, *, file_format="array_record", **arguments):
    super().__init__(file_format=file_format, **arguments)

  def _info(self):
    config = self.builder_config
    side = None if config.random_crop else config.image_size
    return tfds.core.DatasetInfo(
      builder=self,
      features=prepared.features(side, 3, imagenet_archives.synsets()),
      supervised_keys=("image", "label"),
    )

  def download_and_prepare(
    self, *, download_dir=None, download_config=None, **unused
  ):
    """Prepare the set on all cores, or resume after a kill."""
    del download_dir, unused
    if self.is_prepared():
      return
    size = self.builder_config.image_size
    wanted = spec.Spec(
      f"imagenet{size}",
      image_size=size,
      random_crop=self.builder_config.random_crop,
      data_dir=self._data_dir_root,
    )
    manual_dir = download_config.manual_dir if download_config else ""
    prepare.prepare(wanted, manual_dir=manual_dir)
    self.info.read_from_directory(self.data_dir)

  def _split_generators(self, dl_manager):
    raise AssertionError("see download_and_prepare")

  def _generate_examples(self):
    raise AssertionError("see download_and_prepare")
