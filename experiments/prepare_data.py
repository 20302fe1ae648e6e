"""Prepare a data set once: crop, area downsampling, raw pixels on disk.

  python -m experiments.prepare_data --dataset=imagenet64 --manual_dir=ARCHIVES
  python -m experiments.prepare_data --dataset=tfds:cifar10 --image_size=32

ImageNet needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or their
contents as train/SYNSET/*.JPEG and val/SYNSET/*.JPEG, in --manual_dir. Uses all
cores; run it again to resume after a kill. Prints the path of the set.
"""

from absl import flags

from cfgd.data import prepare
from cfgd.data import spec
from experiments import launcher

flags.DEFINE_string(
  "dataset",
  None,
  "imagenet64, imagenet128 (any size), tfds:NAME, folder:PATH or idx:PATH.",
)
flags.DEFINE_string(
  "data_dir", "", "Where to write: data.dir in training; ~/tensorflow_datasets."
)
flags.DEFINE_string(
  "manual_dir", "", "Where ImageNet's archives are, or TFDS's manual downloads."
)
flags.DEFINE_integer(
  "image_size", 0, "Pixels per side; needed where --dataset does not say it."
)
flags.DEFINE_integer(
  "crop", 0, "Side of the central square; 0: the shorter side.", lower_bound=0
)
flags.DEFINE_float("random_crop", 0.0, "Keep what data.random_crop needs.")
flags.DEFINE_string(
  "background", "white", "Behind transparent images: white, black or #rrggbb."
)
flags.DEFINE_integer("workers", 0, "Processes; 0: one for each core.")
flags.DEFINE_boolean(
  "allow_other_archives",
  False,
  "Take archives of ImageNet's structure that are not the official ones: no "
  "check of size, md5 and number of images; the set's name says so.",
)
flags.mark_flag_as_required("dataset")

_SPEC = ("image_size", "crop", "random_crop", "background", "data_dir")


def main():
  """Prepare what is missing and print the path of the set."""
  given = flags.FLAGS
  wanted = spec.Spec(given.dataset, **{k: given[k].value for k in _SPEC})
  how = {"manual_dir": given.manual_dir, "workers": given.workers}
  print(prepare.prepare(wanted, allow_other=given.allow_other_archives, **how))


if __name__ == "__main__":
  launcher.run(main)
