"""Prepared data sets on disk: raw pixels in ArrayRecord, as TFDS stores them.

A record is a tf.train.Example whose image is uncompressed: what is read in
training is copied, not decoded. A set is written into a folder whose name ends
in `.incomplete` and gets its own name when it is whole; TFDS opens it, too:
`tfds.data_source`, or `tfds.builder_from_directory` and `as_data_source`.
"""

import contextlib
import functools
import json
import math
import os

from array_record.python import array_record_module
from etils import epath
import numpy as np

from cfgd.runtime import errors
from cfgd.runtime import files

VERSION = "1.0.0"
_METADATA = "metadata.json"
_CONTENTS = "contents.json"


def data_home(data_dir):
  """Return the folder of data sets, "" being TFDS's own default."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return epath.Path(data_dir or default).expanduser()


def folder(name, *, image_size, crop, data_dir, whole=0):
  """Return where a prepared set is.

  Args:
    name: of the originals.
    image_size: side of the images.
    crop: side of the central square; 0 is the shorter side.
    data_dir: folder of data sets, see `data_home`.
    whole: shorter side of whole images for random crops; 0: squares.
  """
  # Of ImageNet there is one, whether from the official archives or others.
  dataset = name.split(".")[0] if name.startswith("imagenet") else name
  config = f"{image_size}x{image_size}" + (f"_crop{crop}" if crop else "")
  config += f"_whole{whole}" if whole else ""
  parent = data_home(data_dir) / f"{dataset.replace('.', '_')}_area"
  return parent / config / VERSION


def incomplete(path):
  """Return where a set is while it is being prepared."""
  return path.with_name(path.name + ".incomplete")


def shard_paths(path, part, number):
  """Return the files of a part, named as TFDS does."""
  stem = f"{path.parent.parent.name}-{part}.array_record"
  return [path / f"{stem}-{i:05d}-of-{number:05d}" for i in range(number)]


def features(image_size, channels, class_names):
  """Return what TFDS calls the features of the records.

  Args:
    image_size: side of the images; None: each has its own height and width.
    channels: of the images.
    class_names: in the order of the labels.
  """
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Tensor(
        shape=(image_size, image_size, channels),  # None: stored with each
        dtype=np.uint8,
        encoding=tfds.features.Encoding.BYTES,
      ),
      "label": tfds.features.ClassLabel(names=list(map(str, class_names))),
    }
  )


@functools.cache
def _example():
  """Return the message tf.train.Example, which TFDS has without TensorFlow."""
  from tensorflow_datasets.proto import tf_example_pb2

  return tf_example_pb2.Example


def serialize(image, label, *, with_shape=False):
  """Return the record of an image [H, W, C] uint8 and its label.

  Args:
    image: see above.
    label: see above.
    with_shape: the set has images of many shapes.
  """
  example = _example()()
  feature = example.features.feature
  pixels = "image"
  if with_shape:  # these are TFDS's names
    pixels = "image/value"
    feature["image/shape"].int64_list.value.extend(image.shape)
  feature[pixels].bytes_list.value.append(image.tobytes())
  feature["label"].int64_list.value.append(label)
  return example.SerializeToString()


def _parse(record):
  """Return (pixels, one after the other, and the label) of a record."""
  feature = _example().FromString(record).features.feature
  pixels = np.frombuffer(feature["image"].bytes_list.value[0], np.uint8)
  return pixels, feature["label"].int64_list.value[0]


def _parse_with_shape(record):
  """Return (image [H, W, C], label) of a record that has the shape."""
  feature = _example().FromString(record).features.feature
  pixels = np.frombuffer(feature["image/value"].bytes_list.value[0], np.uint8)
  shape = feature["image/shape"].int64_list.value
  return pixels.reshape(shape), feature["label"].int64_list.value[0]


def write_shard(path, records):
  """Write bytes, one record each; the file appears when it is whole."""
  temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
  # group_size:1 for random access; pixels hardly compress, and reading
  # uncompressed records is twice as fast.
  writer = array_record_module.ArrayRecordWriter(
    os.fspath(temporary), "group_size:1,uncompressed"
  )
  try:
    with contextlib.closing(writer):
      for record in records:
        writer.write(record)
    temporary.replace(path)
  except RuntimeError as error:  # the library's word for a full disk
    raise errors.RunError(
      f"{path}: cannot be written ({error}); the same command goes on when "
      "that is mended"
    ) from error
  finally:
    temporary.unlink(missing_ok=True)


def count(path):
  """Return the number of records in a shard; 0 where it cannot be read."""
  try:
    return _reader(path).num_records()
  except (ValueError, RuntimeError, OSError):
    return 0


def _reader(path):
  # The buffer is for sequential reading, which training never does.
  return array_record_module.ArrayRecordReader(
    os.fspath(path), "readahead_buffer_size:0"
  )


def write_metadata(path, *, feature_dict, lengths, metadata):
  """Write what TFDS and `Prepared` need to read the shards in a folder.

  Args:
    path: where the set will be; its shards are in `incomplete(path)`.
    feature_dict: see `features`.
    lengths: part -> number of examples of each shard.
    metadata: what is known of the set, as JSON has it.
  """
  import tensorflow_datasets as tfds

  shards = {
    part: [
      (length, (incomplete(path) / shard.name).stat().length)
      for length, shard in zip(
        numbers, shard_paths(path, part, len(numbers)), strict=True
      )
    ]
    for part, numbers in lengths.items()
  }
  template = tfds.core.ShardedFileTemplate(
    data_dir=incomplete(path),
    dataset_name=path.parent.parent.name,
    filetype_suffix="array_record",
  )
  tfds.folder_dataset.write_metadata(
    data_dir=incomplete(path),
    features=feature_dict,
    split_infos=[
      tfds.core.SplitInfo(
        name=part,
        shard_lengths=lengths[part],
        num_bytes=sum(size for _, size in sizes),
        filename_template=template,
      )
      for part, sizes in shards.items()
    ],
    version=VERSION,
    check_data=False,
    supervised_keys=("image", "label"),
    metadata=tfds.core.MetadataDict(metadata | {"shards": shards}),
  )


def write_contents(path, fingerprint):
  """Note what the originals of a set hold, whose name does not say it."""
  files.write_atomic(path / _CONTENTS, json.dumps({"originals": fingerprint}))


def read_contents(path):
  """Return what `write_contents` noted, or ""."""
  note = path / _CONTENTS
  return json.loads(note.read_text())["originals"] if note.exists() else ""


class Prepared:
  """One part of a prepared set, by random access; nothing is kept in memory.

  Attributes:
    num_classes: number of classes.
    preprocessing: id of what was done to the images.
    image_shape: (H, W, C).
  """

  def __init__(self, path, part, metadata):
    """Open `path` as `read_metadata` found it; `part` must be one of its."""
    lengths = [length for length, _ in metadata["shards"][part]]
    self._paths = shard_paths(path, part, len(lengths))
    self._starts = np.concatenate([[0], np.cumsum(lengths)])
    self._readers = {}
    self.image_shape = tuple(metadata["image_shape"])
    self.num_classes = len(metadata["class_names"])
    self.preprocessing = metadata["preprocessing"]
    self._with_shape = metadata.get("with_shape", False)

  def __len__(self):
    return int(self._starts[-1])

  def __repr__(self):
    return f"Prepared({self.preprocessing}, {len(self)} images)"

  def __getitem__(self, index):
    """Return {"image": [H, W, C] uint8, "label": int32}."""
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    batch = self.read(np.array([index % len(self)]))
    return {key: rows[0] for key, rows in batch.items()}

  def read(self, indices):
    """Return {"image": [n, H, W, C] uint8, "label": [n] int32} of n indices."""
    if self._with_shape:
      images, labels = self.read_whole(indices)
      return {"image": np.stack(images), "label": labels}
    images = np.empty((len(indices), *self.image_shape), np.uint8)
    flat = images.reshape(len(indices), math.prod(self.image_shape))
    labels = np.empty(len(indices), np.int32)
    for row, record in self._read(indices):
      flat[row], labels[row] = _parse(record)
    return {"image": images, "label": labels}

  def read_whole(self, indices):
    """Return ([H, W, C] uint8 of each, [n] int32) of a set of many shapes."""
    images, labels = [None] * len(indices), np.empty(len(indices), np.int32)
    for row, record in self._read(indices):
      images[row], labels[row] = _parse_with_shape(record)
    return images, labels

  def _read(self, indices):
    """Yield (place in `indices`, record), shard by shard."""
    indices = np.asarray(indices)
    shards = np.searchsorted(self._starts, indices, side="right") - 1
    for shard in np.unique(shards):
      rows = np.flatnonzero(shards == shard)
      places = indices[rows] - self._starts[shard]
      records = self._records(int(shard), places.tolist())
      yield from zip(rows, records, strict=True)

  def _records(self, shard, places):
    # Readers are safe to share between threads; of two opened at once, one
    # stays.
    path = self._paths[shard]
    try:
      if shard not in self._readers:
        self._readers.setdefault(shard, _reader(path))
      return self._readers[shard].read(places)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
      raise errors.RunError(
        f"{path}: cannot be read ({error}); if it is damaged, remove the set "
        "and prepare it again"
      ) from error


def read_metadata(path, *, command):
  """Read and check the metadata of a prepared set.

  Args:
    path: see `folder`.
    command: that prepares it, for messages.

  Returns:
    The metadata, or None if there is no such set.

  Raises:
    errors.UserError: files of it are missing or cut short.
  """
  if not path.exists():
    return None
  again = f"remove {path} and prepare it again: {command}"
  try:
    metadata = json.loads((path / _METADATA).read_text())
    shards = metadata["shards"]
  except (OSError, ValueError, KeyError) as error:
    raise errors.UserError(
      f"{path / _METADATA}: missing or not of cfgd ({error}); {again}"
    ) from error
  for part, sizes in shards.items():
    names = shard_paths(path, part, len(sizes))
    for shard, (_, size) in zip(names, sizes, strict=True):
      if not shard.exists() or shard.stat().length != size:
        raise errors.UserError(f"{shard}: missing or cut short; {again}")
  return metadata
