"""Prepare a data set once: crop, area downsampling, raw pixels on disk.

  python -m experiments.prepare_data --dataset=imagenet64 --manual_dir=ARCHIVES
  python -m experiments.prepare_data --dataset=tfds:cifar10 --image_size=32

ImageNet needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or their
contents as train/SYNSET/*.JPEG and val/SYNSET/*.JPEG, in --manual_dir. Uses all
cores; the same command again goes on after a kill. Prints where the set is.
"""

from absl import flags

from cfgd.data import prepare
from experiments import launcher

_DATASET = flags.DEFINE_string(
  "dataset",
  None,
  "imagenet64, imagenet128 (any size), tfds:NAME, folder:PATH or idx:PATH.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "", "Where to write; default: TFDS's own. In training: data.dir."
)
_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir", "", "Where ImageNet's archives are, or TFDS's manual downloads."
)
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size", 0, "Pixels per side; needed where --dataset does not say it."
)
_CROP = flags.DEFINE_integer(
  "crop", 0, "Side of the central square kept; 0: the shorter side."
)
_WORKERS = flags.DEFINE_integer(
  "workers", 0, "Processes; 0: one for each core."
)
_ALLOW_OTHER = flags.DEFINE_boolean(
  "allow_other_archives",
  False,
  "Take archives of ImageNet's structure that are not the official ones: no "
  "check of size, md5 and number of images; the set's name says so.",
)
flags.mark_flag_as_required("dataset")


def main():
  """Prepare what is missing and say where it is."""
  path = prepare.prepare(
    _DATASET.value,
    image_size=_IMAGE_SIZE.value,
    crop=_CROP.value,
    data_dir=_DATA_DIR.value,
    manual_dir=_MANUAL_DIR.value,
    workers=_WORKERS.value,
    allow_other=_ALLOW_OTHER.value,
  )
  print(path)


if __name__ == "__main__":
  launcher.run(main)
