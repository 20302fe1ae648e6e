"""Images per second of one core: preparing them, and reading batches.

  python -m benchmarks.data --json=DIR/data.json

Every pipeline gets the same core, the same random images (which do not
compress), the same batch size, shuffling and flips, and nothing to decode:

  cfgd        ArrayRecord by random access, the whole set shuffled anew each
              epoch; data.pipeline as training uses it
  tf.data     TFRecord of the same examples, a shuffle buffer of 2,048, parsed
              and flipped one by one (batched parsing was slower)
  PyTorch     DataLoader without workers over a memory-mapped array

They take turns for several rounds; the medians are printed. Time is the
process's CPU time, all threads included, so that other work on the machine
matters little. The files are in the page cache. No config is involved.
"""

import contextlib
import importlib.metadata
import io
import itertools
import os
import pathlib
import statistics
import tempfile
import time

from absl import flags
import cv2
import numpy as np
import PIL.Image

from benchmarks import machine
from cfgd.data import images
from cfgd.data import pipeline
from cfgd.data import prepared
from cfgd.data import spec
from experiments import launcher

_JPEG = (375, 500)  # the usual size of ImageNet's
_NUM_CLASSES = 1000
_SHARDS = 128  # as data.prepare makes them
_SHUFFLE_BUFFER = 2048
_WRITTEN_AT_ONCE = 512
_PACKAGES = (
  *("array_record", "grain", "numpy", "opencv-python-headless", "pillow"),
  *("tensorflow-cpu", "tensorflow-datasets", "torch"),
)

_SIZES = flags.DEFINE_list("sizes", ["64", "128"], "Pixels per side.")
_IMAGES = flags.DEFINE_integer("images", 16_384, "Images of a set.")
_BATCH = flags.DEFINE_integer("batch", 256, "Images of a batch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Length of a turn.")


def jpegs(number):
  """Return encoded pictures with the detail of photographs."""
  rng = np.random.default_rng(0)
  height, width = _JPEG
  encoded = []
  for _ in range(number):
    picture = np.full((height, width, 3), 127.0)
    for side in (4, 8, 16, 32, 64):
      blobs = rng.normal(0, 22, (side, side, 3))
      picture += cv2.resize(blobs, (width, height))
    picture += rng.normal(0, 4, picture.shape)
    buffer = io.BytesIO()
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    encoded.append(buffer.getvalue())
  return encoded


def prepare_rate(encoded, size, folder):
  """Return images per second from JPEG bytes to a shard on disk."""
  start = time.process_time()
  prepared.write_shard(
    folder / f"rate-{size}",
    (
      prepared.serialize(
        images.preprocess(images.decode(data), crop=0, size=size), label=0
      )
      for data in encoded
    ),
  )
  return len(encoded) / (time.process_time() - start)


def make_set(folder, size, number):
  """Write random images as a prepared set, a TFRecord and an array.

  Returns:
    (path of the set, path of the TFRecord, path of the array).
  """
  rng = np.random.default_rng(0)
  array = np.lib.format.open_memmap(
    folder / f"{size}.npy", "w+", np.uint8, (number, size, size, 3)
  )
  for start in range(0, number, _WRITTEN_AT_ONCE):
    rows = array[start : start + _WRITTEN_AT_ONCE]
    rows[:] = rng.integers(0, 256, rows.shape, np.uint8)
  array.flush()
  tfrecord = folder / f"{size}.tfrecord"
  _write_tfrecord(tfrecord, array)
  return _write_set(folder, array), tfrecord, folder / f"{size}.npy"


def _records(array, start, stop):
  for i in range(start, stop):
    yield prepared.serialize(array[i], i % _NUM_CLASSES)


def _write_tfrecord(path, array):
  import tensorflow as tf

  with tf.io.TFRecordWriter(os.fspath(path)) as writer:
    for record in _records(array, 0, len(array)):
      writer.write(record)


def _write_set(folder, array):
  number, size, _, channels = array.shape
  path = prepared.folder("benchmark", spec.Spec("", size, data_dir=str(folder)))
  half = prepared.incomplete(path)
  half.mkdir(parents=True)
  edges = [number * i // _SHARDS for i in range(_SHARDS + 1)]
  spans = list(itertools.pairwise(edges))
  shards = prepared.shard_paths(path, "train", _SHARDS)
  for shard, span in zip(shards, spans, strict=True):
    prepared.write_shard(half / shard.name, _records(array, *span))
  class_names = list(map(str, range(_NUM_CLASSES)))
  prepared.write_metadata(
    path,
    feature_dict=prepared.features(size, channels, class_names),
    lengths={"train": [stop - start for start, stop in spans]},
    metadata={
      "preprocessing": "benchmark",
      "image_shape": (size, size, channels),
      "class_names": class_names,
    },
  )
  half.rename(path)
  return path


def ours(path, batch_size):
  """Iterate over training's batches."""
  metadata = prepared.read_metadata(path, command="")
  return pipeline.batches(
    prepared.Prepared(path, "train", metadata),
    seed=0,
    batch_size=batch_size,
    flip=True,
    first_step=0,
    num_threads=1,
    prefetch=2,
  )


def tf_data(path, batch_size, size):
  """Iterate over the batches of a plain tf.data pipeline."""
  import tensorflow as tf

  features = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
  }

  def parse(record):
    example = tf.io.parse_single_example(record, features)
    pixels = tf.io.decode_raw(example["image"], tf.uint8)
    pixels = tf.reshape(pixels, (size, size, 3))
    return tf.image.random_flip_left_right(pixels), example["label"]

  dataset = tf.data.TFRecordDataset(os.fspath(path)).repeat()
  dataset = dataset.shuffle(_SHUFFLE_BUFFER).map(parse)
  return dataset.batch(batch_size).prefetch(2).as_numpy_iterator()


def torch_loader(path, batch_size):
  """Iterate over the batches of a plain PyTorch DataLoader."""
  import torch

  torch.set_num_threads(1)

  class Images(torch.utils.data.Dataset):
    def __init__(self):
      self._array = np.load(path, mmap_mode="r")

    def __len__(self):
      return len(self._array)

    def __getitem__(self, index):
      image = torch.from_numpy(np.array(self._array[index]))
      if torch.rand(()) < 0.5:
        image = image.flip(1)
      return image, index % _NUM_CLASSES

  loader = torch.utils.data.DataLoader(
    Images(), batch_size=batch_size, shuffle=True, drop_last=True
  )
  while True:
    yield from loader


def rate(iterator, batch_size, seconds):
  """Return images per second of the core's time, after a first batch."""
  next(iterator)
  start, batches = time.process_time(), 0
  while time.process_time() - start < seconds:
    next(iterator)
    batches += 1
  return batches * batch_size / (time.process_time() - start)


def _memory():
  """Return the MiB that this process holds now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _turn(iterator):
  return rate(iterator, _BATCH.value, _SECONDS.value)


def measure_batches(folder, size):
  """Return median images per second of each pipeline at one size."""
  batch_size, number = _BATCH.value, _IMAGES.value
  path, tfrecord, array = make_set(folder, size, number)
  before = _memory()
  iterators = {"cfgd": ours(path, batch_size)}
  _turn(iterators["cfgd"])
  growth = _memory() - before
  iterators["tf.data"] = tf_data(tfrecord, batch_size, size)
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    importlib.metadata.version("torch")
    iterators["PyTorch"] = torch_loader(array, batch_size)
  rounds = [
    {name: _turn(iterator) for name, iterator in iterators.items()}
    for _ in range(_REPEATS.value)
  ]
  return {
    "images_per_second": {
      name: statistics.median(one[name] for one in rounds) for name in iterators
    },
    "rounds": rounds,
    "memory_growth_mib": growth,
    "set_mib": number * size * size * 3 / 2**20,
  }


def _report_prepare(folder, sizes):
  encoded = jpegs(100)
  kilobytes = sum(map(len, encoded)) / len(encoded) / 1e3
  report = {}
  for size in sizes:
    report[size] = statistics.median(
      prepare_rate(encoded, size, folder) for _ in range(_REPEATS.value)
    )
    print(
      f"prepare {_JPEG[1]}x{_JPEG[0]} JPEG of {kilobytes:.0f} kB to {size}: "
      f"{report[size]:,.0f} images/s",
      flush=True,
    )
  return report


def _report_batches(folder, sizes):
  report = {}
  for size in sizes:
    report[size] = one = measure_batches(folder, size)
    rates = one["images_per_second"].items()
    print(
      f"batches of {_BATCH.value} at {size}: "
      + ", ".join(f"{name} {value:,.0f}" for name, value in rates)
      + f" images/s; cfgd took {one['memory_growth_mib']:.0f} MiB for a set of "
      f"{one['set_mib']:.0f} MiB",
      flush=True,
    )
  return report


def main():
  """Measure, print, write JSON."""
  core = None  # where the system cannot keep a process on one, as macOS
  if hasattr(os, "sched_setaffinity"):
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
  cv2.setNumThreads(1)
  sizes = list(map(int, _SIZES.value))
  report = machine.environment(*_PACKAGES) | {"core": core}
  print(", ".join(f"{key} {value}" for key, value in report.items()))
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    report["prepare"] = _report_prepare(folder, sizes)
    report["batches"] = _report_batches(folder, sizes)
  machine.write(report)


if __name__ == "__main__":
  launcher.run(main)
