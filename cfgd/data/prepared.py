"""Prepared data sets on disk: raw pixels in ArrayRecord, as TFDS stores them.

A record is a tf.train.Example with an uncompressed image, which training copies
without decoding. A set is written to a folder whose name ends in `.incomplete`
and is renamed when it is complete. TFDS can open it, too, with
`tfds.data_source`, or `tfds.builder_from_directory` and `as_data_source`.
"""

import contextlib
import functools
import json
import os

from etils import epath
import numpy as np

from cfgd.runtime import errors
from cfgd.runtime import files

VERSION = "1.0.0"
_METADATA = "metadata.json"
_CONTENTS = "contents.json"


def data_home(data_dir):
  """Return the folder of data sets; "" means TFDS's own default."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return epath.Path(data_dir or default).expanduser()


def folder(name, spec):
  """Return the path of a prepared set of the originals called `name`."""
  # There is one set of ImageNet, made from the official archives or others.
  dataset = name.split(".")[0] if name.startswith("imagenet") else name
  config = f"{spec.image_size}x{spec.image_size}"
  config += f"_crop{spec.crop}" if spec.crop else ""
  config += f"_whole{spec.whole}" if spec.whole else ""
  parent = data_home(spec.data_dir) / f"{dataset.replace('.', '_')}_area"
  return parent / config / VERSION


def incomplete(path):
  """Return the path of a set while it is being prepared."""
  return path.with_name(path.name + ".incomplete")


def shard_paths(path, part, number):
  """Return the files of a part, named as TFDS does."""
  stem = f"{path.parent.parent.name}-{part}.array_record"
  return [path / f"{stem}-{i:05d}-of-{number:05d}" for i in range(number)]


def features(image_size, channels, class_names):
  """Return the TFDS features of the records.

  `image_size` is None if each image has its own shape.
  """
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Tensor(
        shape=(image_size, image_size, channels),
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

  The record has the shape, too, in a set of images of many shapes.
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


def _parse(record, shape=None):
  """Return (image [H, W, C], label); without a shape, the record has it."""
  feature = _example().FromString(record).features.feature
  pixels = "image"
  if shape is None:
    pixels = "image/value"
    shape = feature["image/shape"].int64_list.value
  image = np.frombuffer(feature[pixels].bytes_list.value[0], np.uint8)
  return image.reshape(shape), feature["label"].int64_list.value[0]


def _library():
  """Import ArrayRecord when needed: networks run where it is missing."""
  from array_record.python import array_record_module

  return array_record_module


def write_shard(path, records):
  """Write byte strings as records; the file appears once it is complete."""
  temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
  # group_size:1 for random access; pixels hardly compress, and reading
  # uncompressed records is twice as fast.
  writer = _library().ArrayRecordWriter(
    os.fspath(temporary), "group_size:1,uncompressed"
  )
  try:
    with contextlib.closing(writer):
      for record in records:
        writer.write(record)
    temporary.replace(path)
  except RuntimeError as error:  # what the library raises on a full disk
    raise errors.RunError(
      f"{path}: cannot be written ({error}); fix that and run the same command "
      "again to resume"
    ) from error
  finally:
    temporary.unlink(missing_ok=True)


def count(path):
  """Return the number of records in a shard; 0 if it cannot be read."""
  try:
    return _reader(path).num_records()
  except (ValueError, RuntimeError, OSError):
    return 0


def _reader(path):
  # The buffer is for sequential reading, which training never does.
  return _library().ArrayRecordReader(
    os.fspath(path), "readahead_buffer_size:0"
  )


def write_metadata(path, *, feature_dict, lengths, metadata):
  """Write what TFDS and `Prepared` need to read the shards of a set.

  Args:
    path: final path of the set; its shards are in `incomplete(path)`.
    feature_dict: see `features`.
    lengths: part -> number of examples of each shard.
    metadata: JSON-like facts about the set.
  """
  import tensorflow_datasets as tfds

  half = incomplete(path)
  shards = {}
  for part, numbers in lengths.items():
    names = [shard.name for shard in shard_paths(path, part, len(numbers))]
    sizes = [(half / name).stat().length for name in names]
    shards[part] = list(zip(numbers, sizes, strict=True))
  template = tfds.core.ShardedFileTemplate(
    data_dir=half,
    dataset_name=path.parent.parent.name,
    filetype_suffix="array_record",
  )
  tfds.folder_dataset.write_metadata(
    data_dir=half,
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
  """Record the contents of a set's originals, if its name does not."""
  files.write_atomic(path / _CONTENTS, json.dumps({"originals": fingerprint}))


def read_contents(path):
  """Return what `write_contents` recorded, or ""."""
  note = path / _CONTENTS
  return json.loads(note.read_text())["originals"] if note.exists() else ""


class Prepared:
  """A source of one part of a prepared set; nothing is kept in memory."""

  def __init__(self, path, part, metadata):
    """Open a part of `path`, whose metadata is `read_metadata`'s."""
    lengths = [length for length, _ in metadata["shards"][part]]
    self._paths = shard_paths(path, part, len(lengths))
    self._starts = np.concatenate([[0], np.cumsum(lengths)])
    self._readers = {}
    self.image_shape = tuple(metadata["image_shape"])
    self.num_classes = len(metadata["class_names"])
    self.preprocessing = metadata["preprocessing"]
    with_shape = metadata.get("with_shape", False)
    self._stored_shape = None if with_shape else self.image_shape

  def __len__(self):
    return int(self._starts[-1])

  def __getitem__(self, index):
    """Return {"image": [H, W, C] uint8, "label": int32}."""
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    batch = self.read(np.array([index % len(self)]))
    return {key: rows[0] for key, rows in batch.items()}

  def read(self, indices):
    """Return {"image": [n, H, W, C] uint8, "label": [n] int32} of n indices."""
    images = np.empty((len(indices), *self.image_shape), np.uint8)
    return {"image": images, "label": self._read_into(images, indices)}

  def read_whole(self, indices):
    """Return ([H, W, C] uint8 of each, [n] int32) of a set of many shapes."""
    images = [None] * len(indices)
    return images, self._read_into(images, indices)

  def _read_into(self, images, indices):
    """Fill in the images, shard by shard; return the labels [n] int32."""
    indices = np.asarray(indices)
    labels = np.empty(len(indices), np.int32)
    shards = np.searchsorted(self._starts, indices, side="right") - 1
    for shard in np.unique(shards):
      rows = np.flatnonzero(shards == shard)
      places = indices[rows] - self._starts[shard]
      records = self._records(int(shard), places.tolist())
      for row, record in zip(rows, records, strict=True):
        images[row], labels[row] = _parse(record, self._stored_shape)
    return labels

  def _records(self, shard, places):
    path = self._paths[shard]
    try:
      if shard not in self._readers:
        # Threads share readers; if two open one at once, the first stays.
        self._readers.setdefault(shard, _reader(path))
      return self._readers[shard].read(places)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
      raise errors.RunError(
        f"{path}: cannot be read ({error}); if it is damaged, remove the set "
        "and prepare it again"
      ) from error


def read_metadata(path, *, command):
  """Return the metadata of a prepared set, None if there is no such set.

  `command` prepares it, for messages about missing or truncated files.
  """
  if not path.exists():
    return None
  again = f"remove {path} and prepare it again: {command}"
  try:
    metadata = json.loads((path / _METADATA).read_text())
    shards = metadata["shards"]
  except (OSError, ValueError, KeyError) as error:
    raise errors.UserError(
      f"{path / _METADATA}: missing or not written by cfgd ({error}); {again}"
    ) from error
  for part, sizes in shards.items():
    names = shard_paths(path, part, len(sizes))
    for shard, (_, size) in zip(names, sizes, strict=True):
      if not shard.exists() or shard.stat().length != size:
        raise errors.UserError(f"{shard}: missing or truncated; {again}")
  return metadata
