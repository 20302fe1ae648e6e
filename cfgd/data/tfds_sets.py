"""Sets of TensorFlow Datasets as originals, downloaded if missing.

TFDS and TensorFlow are slow to import, so functions import them when needed.
"""

import dataclasses
import socket
import urllib.parse
import urllib.request

import numpy as np

from cfgd.data import images
from cfgd.data import originals
from cfgd.runtime import errors

_HELD_OUT = ("test", "validation", "heldout")  # the first that a set has


@dataclasses.dataclass(frozen=True)
class _Part(originals.Span):
  """Examples of one split of a prepared TFDS set called "set:version"."""

  name: str
  data_dir: str
  split: str
  background: tuple

  def __iter__(self):
    import tensorflow_datasets as tfds

    builder = tfds.builder(self.name, data_dir=self.data_dir)
    encoded = isinstance(builder.info.features["image"], tfds.features.Image)
    options = {
      "split": f"{self.split}[{self.start}:{self.stop}]",
      "decoders": {"image": tfds.decode.SkipDecoding()} if encoded else None,
    }
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
      examples = builder.as_data_source(**options)
    else:  # the older formats need TensorFlow
      examples = builder.as_dataset(shuffle_files=False, **options)
      examples = tfds.as_numpy(examples)
    channels = builder.info.features["image"].shape[-1]
    for row, example in enumerate(examples):
      image = example["image"]
      if encoded:
        image = self._decode(image, row, channels)
      yield image, int(example["label"])

  def _decode(self, data, row, channels):
    try:
      return images.decode(data, self.background, channels=channels)
    except ValueError as error:
      raise errors.UserError(
        f"tfds:{self.name}: image {self.start + row} of {self.split} is "
        f"damaged or of an unknown format ({error}); remove the set from "
        f"{self.data_dir} and prepare it again"
      ) from error


def find(name, *, data_dir, background, manual_dir):
  """Open a TFDS image classification set, downloading it if need be.

  Args:
    name: TFDS's name, "set/config:version".
    data_dir: TFDS's folder.
    background: (R, G, B) behind transparent pixels.
    manual_dir: folder of its manual downloads, or "".

  Returns:
    originals.Originals; the held-out part is "test", or else "validation".
  """
  builder = _builder(name, data_dir)
  image, label = _check_features(name, builder.info.features)
  _download(name, builder, manual_dir)
  splits = builder.info.splits
  held_out = next((split for split in _HELD_OUT if split in splits), None)
  chosen = {"train": "train"} | ({"heldout": held_out} if held_out else {})
  if "train" not in splits:
    raise errors.UserError(
      f"data.source='tfds:{name}': has no split train, only {sorted(splits)}"
    )
  full_name = f"{name.split(':')[0]}:{builder.version}"
  return originals.Originals(
    name=name_of(name, background),
    class_names=tuple(label.names),
    channels=image.shape[-1],
    parts={
      part: _Part(
        *(full_name, data_dir, split, background),
        start=0,
        stop=splits[split].num_examples,
      )
      for part, split in chosen.items()
    },
    fingerprint=full_name,
  )


def name_of(name, background):
  """Return the name that begins the id of the preprocessing.

  It contains the background unless that is white: only decoding all images
  would tell whether any is transparent.
  """
  white = background == images.WHITE
  behind = "" if white else originals.on_background(background)
  return f"tfds.{originals.word(name)}{behind}"


def _builder(name, data_dir):
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=data_dir)
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise errors.UserError(
      f"data.source='tfds:{name}': no such set in TFDS or in {data_dir} "
      f"({str(error).splitlines()[0]})"
    ) from error


def _check_features(name, features):
  """Return the features "image" and "label"."""
  try:
    image, label = features["image"], features["label"]
    found = image.shape[-1] in (1, 3) and np.dtype(image.np_dtype) == np.uint8
    found = found and bool(label.num_classes)
  except (KeyError, TypeError, AttributeError):
    found = False
  if not found:
    raise errors.UserError(
      f"data.source='tfds:{name}': needs an 8-bit image of 1 or 3 channels and "
      f"a label of known classes; it has {features}"
    )
  return image, label


def _download(name, builder, manual_dir):
  import tensorflow_datasets as tfds

  if builder.is_prepared():
    return
  config = tfds.download.DownloadConfig(manual_dir=manual_dir or None)
  try:
    _check_network(builder)
    builder.download_and_prepare(
      download_config=config, file_format="array_record"
    )
  except Exception as error:  # of the network, of archives, of TFDS itself
    raise errors.RunError(
      f"data.source='tfds:{name}': TFDS cannot download and prepare it in "
      f"{builder.data_path} ({str(error).splitlines()[0][:200]}); prepare it "
      "on a machine with a network and copy it, or use folder:PATH or idx:PATH"
    ) from error


def _check_network(builder):
  """Fail at once where TFDS would retry for minutes."""
  urls = list(builder.url_infos)
  if urls and not urllib.request.getproxies():
    socket.getaddrinfo(urllib.parse.urlsplit(urls[0]).hostname, None)
