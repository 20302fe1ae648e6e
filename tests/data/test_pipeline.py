"""Sources by name, and an order that hosts and resumes cannot change."""

import itertools
import os

import jax
import numpy as np
import pytest

from cfgd.data import crops
from cfgd.data import embedded
from cfgd.data import images
from cfgd.data import pipeline
from cfgd.data import sources
from cfgd.data import spec
from cfgd.runtime import errors

DIGITS = {"crop": 24, "image_size": 12, "channels": 1, "num_classes": 10}


def load(name, split, **changes):
  return sources.load(spec.Spec(name, **DIGITS | changes), split)


def test_embedded_data_is_split_evenly_and_without_overlap():
  (train, train_labels), (held, held_labels) = map(
    embedded.load, ("train", "heldout")
  )
  assert train.shape == (4000, 28, 28, 1)
  assert held.shape == (1000, 28, 28, 1)
  np.testing.assert_array_equal(np.bincount(train_labels), [400] * 10)
  np.testing.assert_array_equal(np.bincount(held_labels), [100] * 10)
  seen = {image.tobytes() for image in train}
  assert not any(image.tobytes() in seen for image in held)


def test_embedded_source_is_the_mean_of_2_by_2_pixels():
  source = load("embedded", "train")
  raw, labels = embedded.load("train")
  middle = raw[7, 2:26, 2:26, 0].reshape(12, 2, 12, 2).mean(axis=(1, 3))
  assert np.abs(source[7]["image"][:, :, 0] - middle).max() <= 0.5
  assert source[7]["label"] == labels[7]
  assert (len(source), source.num_classes) == (4000, 10)
  assert source.preprocessing == "mnist5k-crop24-area12"


@pytest.mark.parametrize(
  ("name", "changes", "words"),
  [
    ("nonesuch", {}, "data.source='nonesuch'.*known: embedded"),
    ("embedded", {"channels": 3}, "data.channels=3.*has 1"),
    ("embedded", {"num_classes": 9}, "data.num_classes=9.*has 10"),
    ("embedded", {"image_size": 32, "crop": 0}, "image_size=32.*28 pixels"),
    ("imagenet64", {}, "image_size=12.*'imagenet64' has 64"),
    ("imagenet12", {}, "not prepared.*prepare_data --dataset=imagenet12 --man"),
    ("tfds:nonesuch", {}, "not prepared.*--dataset=tfds:nonesuch --image_size"),
    ("folder:/none", {}, "'folder:/none': no such folder"),
    ("idx:/none", {}, "no train-images-idx3-ubyte"),
  ],
)
def test_mistakes_are_named(tmp_path, name, changes, words):
  with pytest.raises(errors.UserError, match=words):
    load(name, "train", data_dir=os.fspath(tmp_path), **changes)


def make_source(number=37):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (number, 2, 2, 1)).astype(np.uint8)
  return sources.Source(pixels, np.arange(number, dtype=np.int32), number, "x")


def take(hosts, steps, batch_size=8, first_step=0, source=None):
  """Return the global batches [steps] of {"image", "label", "row"}."""
  streams = [
    pipeline.stream(
      make_source() if source is None else source,
      seed=3,
      batch_size=batch_size,
      flip=True,
      process_index=host,
      process_count=hosts,
    )[first_step:]
    for host in range(hosts)
  ]
  batches = []
  for step in range(steps):
    parts = [stream[step] for stream in streams]
    merged = {
      key: np.concatenate([part[key] for part in parts]) for key in parts[0]
    }
    order = np.argsort(merged["row"])
    batches.append({key: value[order] for key, value in merged.items()})
  return batches


class Panorama:
  """Whole images of many shapes whose pixels are their own coordinates."""

  image_shape, num_classes, preprocessing = (8, 8, 3), 37, "x"

  def __len__(self):
    return 37

  def read_whole(self, indices):
    y, x = np.mgrid[:8, :30].astype(np.uint8)
    whole = [
      np.stack([y, x, np.full_like(y, i)], -1)[:, : 20 + i % 5] for i in indices
    ]
    return whole, np.asarray(indices, np.int32)


def make_crops():
  return crops.RandomCrops(Panorama(), 8)


MAKE = [make_source, make_crops]


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_do_not_change_the_global_batches(hosts, make):
  ones, many = (take(n, 12, source=make()) for n in (1, hosts))
  for one, other in zip(ones, many, strict=True):
    for key, value in one.items():
      np.testing.assert_array_equal(value, other[key])


@pytest.mark.parametrize("make", MAKE)
def test_resume_by_step_continues_exactly(make):
  for straight, resumed in zip(
    take(1, 12, source=make())[5:],
    take(1, 7, first_step=5, source=make()),
    strict=True,
  ):
    for key, value in straight.items():
      np.testing.assert_array_equal(value, resumed[key])


def test_an_epoch_has_every_image_once_and_epochs_differ():
  batches = take(1, 37, batch_size=2)
  labels = np.concatenate([batch["label"] for batch in batches])
  first, second = labels[:37], labels[37:]
  assert sorted(first) == sorted(second) == list(range(37))
  assert list(first) != list(second)


def test_flips_are_even_and_another_draw_in_each_epoch():
  pixels = np.tile(
    np.array([0, 1], np.uint8)[None, None, :, None], (64, 1, 1, 1)
  )
  source = sources.Source(pixels, np.arange(64, dtype=np.int32), 64, "x")
  flips = np.zeros((40, 64), bool)
  for epoch, batch in enumerate(take(1, 40, batch_size=64, source=source)):
    flips[epoch, batch["label"]] = batch["image"][:, 0, 0, 0] == 1
  assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(flips.size)
  again = (flips[1:] == flips[:-1]).mean()
  assert abs(again - 0.5) < 4 * 0.5 / np.sqrt(flips.size)


def test_crops_leave_order_and_flips_as_they_are():
  for squares, cropped in zip(
    take(1, 9), take(1, 9, source=make_crops()), strict=True
  ):
    np.testing.assert_array_equal(squares["label"], cropped["label"])


def test_crops_reach_every_place_and_are_drawn_anew_in_each_epoch():
  """Of 13 to 17 places in width, each equally often; chi squared."""
  number, epochs = 37, 120
  lefts = np.zeros((epochs, number), int)
  for epoch, batch in enumerate(
    take(1, epochs, batch_size=number, source=make_crops())
  ):
    corner = batch["image"][:, 0, :, 1].min(-1)  # flipped or not
    lefts[epoch, batch["label"]] = corner
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 2], batch["label"])
  places = 13 + np.arange(number) % 5
  statistic, freedom = 0.0, 0
  for many in range(13, 18):
    counts = np.bincount(lefts[:, places == many].ravel(), minlength=many)
    assert len(counts) == many
    statistic += ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    freedom += many - 1
  assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
  again = (lefts[1:] == lefts[:-1]).mean()
  assert abs(again - (1 / places).mean()) < 4 * np.sqrt(0.07 / lefts.size)


def test_sizes_of_crops_are_drawn_evenly():
  size, most, number = 8, 10, 6000  # sizes 8, 9, 10
  image = np.zeros((most, most, 1), np.uint8)
  image[0] = image[:, 0] = 255
  draws = np.random.default_rng(0).random((number, 3), np.float32)
  draws[:, 1:] = 0
  found = [images.random_crop(image, size, d)[0, 1, 0] for d in draws]
  # The first row holds 1 / size of the edge row's share: 255 * size / most.
  values, counts = np.unique(found, return_counts=True)
  assert len(values) == most - size + 1
  assert np.abs(counts - number / 3).max() < 4 * np.sqrt(number * 2 / 9)


def test_embedded_digits_are_cropped_out_of_the_larger_square():
  train = load("embedded", "train", random_crop=0.8)
  assert train.image_shape == (12, 12, 1)
  assert train.preprocessing == "mnist5k-crop24-whole15-randomcrop12"
  larger = load("embedded", "train", image_size=15)
  (batch,) = take(1, 1, batch_size=4000, source=train)
  squares = larger.images[:, :, :, 0]
  full = 0
  for image, label in zip(batch["image"], batch["label"], strict=True):
    assert image.shape == (12, 12, 1)
    full += image.any()
    assert 0 <= label < 10
  assert full == 4000
  # Without resizing and at the first corner it is that part of the square.
  last = np.nextafter(np.float32(1), np.float32(0))
  first = train.read([5], np.array([[last, 0, 0]], np.float32))["image"][0]
  np.testing.assert_array_equal(first[..., 0], squares[5, :12, :12])
  held, as_ever = (
    load("embedded", "heldout", random_crop=share) for share in (0.8, 0.0)
  )
  np.testing.assert_array_equal(held.images, as_ever.images)
  assert held.preprocessing == as_ever.preprocessing


def test_a_batch_may_span_epochs():
  (batch,) = take(1, 1, batch_size=16, source=make_source(3))
  assert sorted(batch["label"][:3]) == sorted(batch["label"][3:6]) == [0, 1, 2]


def test_rows_are_places_in_the_global_batch():
  for batch in take(4, 3):
    np.testing.assert_array_equal(batch["row"], np.arange(8))


def test_batches_are_split_over_the_devices():
  iterator = pipeline.batches(
    make_source(),
    seed=3,
    batch_size=8,
    flip=True,
    first_step=2,
    num_threads=2,
    prefetch=2,
  )
  devices = jax.local_device_count()
  for batch, desired in zip(
    itertools.islice(iterator, 3), take(1, 5)[2:], strict=True
  ):
    assert batch["image"].shape == (devices, 8 // devices, 2, 2, 1)
    np.testing.assert_array_equal(batch["label"].reshape(-1), desired["label"])
