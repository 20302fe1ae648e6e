"""From ImageNet's archives and other originals to prepared sets."""

import gzip
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from cfgd import build
from cfgd.data import catalog
from cfgd.data import contents
from cfgd.data import imagenet  # noqa: F401, makes its builder known
from cfgd.data import imagenet_archives
from cfgd.data import pipeline
from cfgd.data import prepare
from cfgd.data import prepared
from cfgd.data import sources
from cfgd.data import spec
from cfgd.runtime import errors
from cfgd.training import loop
from tests.data import imagenet_like
from tests.data.test_images import blend
from tests.data.test_images import weights

SIZE = 8
TRAIN, VALIDATION, SYNSETS = 70, 7, (0, 3, 999)


def run(source, data_dir, manual_dir="", **changes):
  how = {"allow_other": changes.pop("allow_other", True), "workers": 1}
  how["manual_dir"] = os.fspath(manual_dir)
  return pathlib.Path(
    prepare.prepare(spec_of(source, data_dir, **changes), **how)
  )


def run_imagenet(data_dir, manual_dir, **changes):
  return run(f"imagenet{SIZE}", data_dir, manual_dir, **changes)


def spec_of(source, data_dir, **changes):
  fields = {"image_size": SIZE, "data_dir": os.fspath(data_dir)}
  return spec.Spec(source, **fields | changes)


def load(source, data_dir, part="train", **changes):
  fields = {"channels": 3, "num_classes": 1000} | changes
  return sources.load(spec_of(source, data_dir, **fields), part)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
  return imagenet_like.write(
    tmp_path_factory.mktemp("archives"),
    train=TRAIN,
    validation=VALIDATION,
    synsets=SYNSETS,
  )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, archives):
  data_dir = tmp_path_factory.mktemp("data")
  run_imagenet(data_dir, archives)
  return data_dir


def box_mean(data):
  """Return what the pixels must be before rounding, float64."""
  image = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"), float)
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  square = image[top : top + side, left : left + side]
  matrix = weights(side, SIZE)
  return np.einsum("ai,bj,ijc->abc", matrix, matrix, square, optimize=True)


def test_every_pixel_is_the_mean_over_its_box(data_dir):
  source = load(f"imagenet{SIZE}", data_dir)
  dealt = imagenet_like.train_members(TRAIN, SYNSETS)
  expected = [
    (data, SYNSETS[list(dealt).index(synset)])
    for synset in list(dealt)[::-1]  # as the archive has them
    for _, data in dealt[synset]
  ]
  batch = source.read(range(TRAIN))
  assert len(source) == TRAIN
  for i, (data, label) in enumerate(expected):
    assert np.abs(batch["image"][i] - box_mean(data)).max() <= 0.5 + 1e-3
    assert batch["label"][i] == label


def test_validation_labels_are_by_number(data_dir):
  source = load(f"imagenet{SIZE}", data_dir, "heldout")
  folder = tfds.core.tfds_path("datasets/imagenet2012")
  names = (folder / "validation_labels.txt").read_text().split()
  synsets = sorted(set(names))
  for i, (_, data) in enumerate(imagenet_like.validation_members(VALIDATION)):
    example = source[i]
    assert synsets[example["label"]] == names[i]
    assert np.abs(example["image"] - box_mean(data)).max() <= 0.5 + 1e-3


def test_folders_make_the_same_set_as_archives(tmp_path, data_dir):
  for synset, members in imagenet_like.train_members(TRAIN, SYNSETS).items():
    for name, data in members:
      path = tmp_path / "train" / synset / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
  (tmp_path / "val").mkdir()
  for name, data in imagenet_like.validation_members(VALIDATION):
    (tmp_path / "val" / name).write_bytes(data)
  run_imagenet(tmp_path / "data", tmp_path)
  for part, number in (("train", TRAIN), ("heldout", VALIDATION)):
    archived, unpacked = (
      load(f"imagenet{SIZE}", home, part).read(range(number))
      for home in (data_dir, tmp_path / "data")
    )
    # In another order: the archive has its synsets in its own.
    assert examples(archived) == examples(unpacked)


def examples(batch):
  pairs = zip(batch["image"], batch["label"], strict=True)
  return sorted((int(label), image.tobytes()) for image, label in pairs)


def test_tfds_reads_the_set(data_dir):
  path = data_dir / f"imagenet_area/{SIZE}x{SIZE}/1.0.0"
  builder = tfds.builder_from_directory(path)
  theirs = builder.as_data_source("train")
  ours = load(f"imagenet{SIZE}", data_dir)
  assert len(theirs) == len(ours) == TRAIN
  for i in (0, 41, TRAIN - 1):
    np.testing.assert_array_equal(theirs[i]["image"], ours[i]["image"])
    assert theirs[i]["label"] == ours[i]["label"]
  assert builder.info.metadata["preprocessing"] == ours.preprocessing
  assert builder.info.features["label"].int2str(999) == "n15075141"


def test_the_builder_prepares_and_reads(tmp_path, archives, monkeypatch):
  official(monkeypatch, archives)
  builder = tfds.builder("imagenet_area/64x64", data_dir=tmp_path)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=archives)
  )
  theirs = tfds.data_source(
    "imagenet_area/64x64", split="heldout", data_dir=tmp_path
  )
  ours = load("imagenet64", tmp_path, "heldout", image_size=64)
  np.testing.assert_array_equal(theirs[3]["image"], ours[3]["image"])


WHOLE = 10  # of crops of 8 pixels with 0.8 of the shorter side


@pytest.fixture(scope="module")
def whole_dir(data_dir, archives):
  run_imagenet(data_dir, archives, random_crop=0.8)
  return data_dir


def whole_mean(data):
  """Return the whole image with a shorter side of WHOLE, before rounding."""
  image = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"), float)
  scale = WHOLE / min(image.shape[:2])
  matrices = [weights(n, int(n * scale + 0.5)) for n in image.shape[:2]]
  return np.einsum("ai,bj,ijc->abc", *matrices, image, optimize=True)


def test_whole_images_are_kept_for_random_crops(whole_dir):
  crops = load(f"imagenet{SIZE}", whole_dir, random_crop=0.8)
  assert crops.image_shape == (SIZE, SIZE, 3)
  assert re.fullmatch(
    r"imagenet\.\w{8}-whole10-randomcrop8", crops.preprocessing
  )
  dealt = imagenet_like.train_members(TRAIN, SYNSETS)
  members = [data for name in list(dealt)[::-1] for _, data in dealt[name]]
  whole, labels = crops._source.read_whole(np.arange(TRAIN))
  shapes = set()
  for image, data in zip(whole, members, strict=True):
    assert np.abs(image - whole_mean(data)).max() <= 0.5 + 1e-2
    shapes.add(image.shape)
  assert len(shapes) == 5  # two of the six are 10 by 13
  squares = load(f"imagenet{SIZE}", whole_dir)
  np.testing.assert_array_equal(labels, squares.read(range(TRAIN))["label"])
  # At the largest size and the last place: the lower right corner.
  last = np.full((TRAIN, 3), np.nextafter(np.float32(1), np.float32(0)))
  batch = crops.read(np.arange(TRAIN), last)
  for image, crop in zip(whole, batch["image"], strict=True):
    np.testing.assert_array_equal(crop, image[-SIZE:, -SIZE:])


def test_held_out_images_are_the_central_squares_as_ever(whole_dir):
  square, beside = (
    load(f"imagenet{SIZE}", whole_dir, "heldout", random_crop=share)
    for share in (0.0, 0.8)
  )
  for one, other in zip(square, beside, strict=True):
    np.testing.assert_array_equal(one["image"], other["image"])
    assert one["label"] == other["label"]


def test_tfds_reads_whole_images(whole_dir):
  path = whole_dir / f"imagenet_area/{SIZE}x{SIZE}_whole{WHOLE}/1.0.0"
  theirs = tfds.builder_from_directory(path).as_data_source("train")
  source = load(f"imagenet{SIZE}", whole_dir, random_crop=0.8)._source
  (ours,), (label,) = source.read_whole([3])
  np.testing.assert_array_equal(theirs[3]["image"], ours)
  assert theirs[3]["label"] == label


def test_hosts_and_resumes_see_the_same_crops_from_disk(whole_dir):
  source = load(f"imagenet{SIZE}", whole_dir, random_crop=0.8)
  how = {"seed": 3, "batch_size": 16, "flip": True}
  one = pipeline.stream(source, process_index=0, process_count=1, **how)
  two = [
    pipeline.stream(source, process_index=host, process_count=2, **how)
    for host in (0, 1)
  ]
  for step in (0, 11):
    whole, halves = one[step]["image"], [k[step]["image"] for k in two]
    np.testing.assert_array_equal(whole[0::2], halves[0])
    np.testing.assert_array_equal(whole[1::2], halves[1])
  iterator = pipeline.batches(
    source, first_step=4, num_threads=2, prefetch=2, **how
  )
  for step, batch in zip((4, 5, 6), iterator, strict=False):
    image = batch["image"].reshape(16, SIZE, SIZE, 3)
    np.testing.assert_array_equal(image, one[step]["image"])


def test_a_missing_set_of_whole_images_is_named(tmp_path, archives):
  run_imagenet(tmp_path, archives)
  words = "not prepared in .*whole10.*--dataset=imagenet8 .*--random_crop=0.8"
  with pytest.raises(errors.UserError, match=words):
    load(f"imagenet{SIZE}", tmp_path, random_crop=0.8)
  with pytest.raises(errors.UserError, match=r"random_crop=1.5: must be 0, or"):
    run_imagenet(tmp_path, archives, random_crop=1.5)


KILLED = """
import os, signal, sys
from cfgd.data import images, prepare, spec
crop, count = images.preprocess, iter(range({images}))
def preprocess(*args, **kwargs):
  if next(count, None) is None:
    os.kill(os.getpid(), signal.SIGKILL)
  return crop(*args, **kwargs)
images.preprocess = preprocess
prepare.prepare(
  spec.Spec("imagenet{size}", image_size=0, data_dir=sys.argv[1]),
  manual_dir=sys.argv[2], workers=1, allow_other=True,
)
"""


def test_a_killed_preparation_goes_on(tmp_path, archives, data_dir):
  script = KILLED.format(size=SIZE, images=50)  # in the second shard
  process = subprocess.run(
    [sys.executable, "-c", script, tmp_path, archives],
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert process.returncode == -signal.SIGKILL
  half = tmp_path / f"imagenet_area/{SIZE}x{SIZE}/1.0.0.incomplete"
  (done,) = half.glob("imagenet_area-train*")
  before = done.stat().st_mtime_ns
  with pytest.raises(errors.UserError, match=r"not finished, resume: python"):
    load(f"imagenet{SIZE}", tmp_path)
  path = run_imagenet(tmp_path, archives)
  assert (path / done.name).stat().st_mtime_ns == before
  assert not half.exists()
  assert not [p for p in path.iterdir() if "tmp" in p.name]
  mine, straight = (
    load(f"imagenet{SIZE}", home).read(range(TRAIN))
    for home in (tmp_path, data_dir)
  )
  np.testing.assert_array_equal(mine["image"], straight["image"])
  np.testing.assert_array_equal(mine["label"], straight["label"])


def official(monkeypatch, archives, **changes):
  """Make the archives the official ones, but for some of their facts."""
  numbers = {"train": TRAIN, "heldout": VALIDATION}
  for part, (name, *_) in imagenet_archives.OFFICIAL.items():
    data = (archives / name).read_bytes()
    facts = {
      "size": len(data),
      "md5": hashlib.md5(data).hexdigest(),
      "number": numbers[part],
    } | changes
    monkeypatch.setitem(
      imagenet_archives.OFFICIAL, part, (name, *facts.values())
    )


def test_official_archives_are_verified_once(tmp_path, archives, monkeypatch):
  official(monkeypatch, archives)
  hashed = []
  md5 = imagenet_archives._md5
  monkeypatch.setattr(
    imagenet_archives, "_md5", lambda path: hashed.append(path) or md5(path)
  )
  with monkeypatch.context() as patch:
    patch.setattr(prepare, "_check_space", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run_imagenet(tmp_path, archives, allow_other=False)
  run_imagenet(tmp_path, archives, allow_other=False)
  assert len(hashed) == 2
  source = load(f"imagenet{SIZE}", tmp_path)
  assert source.preprocessing == f"imagenet-cropshort-area{SIZE}"


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"size": 5}, "img_train.tar: [0-9,]+ bytes, the official archive has 5"),
    ({"md5": "abc"}, "img_train.tar: md5 .*, the official archive has abc"),
    ({"number": 71}, "img_train.tar: 70 images, the official part has 71"),
  ],
)
def test_what_is_not_official_is_refused(
  tmp_path, archives, monkeypatch, changes, words
):
  official(monkeypatch, archives, **changes)
  with pytest.raises(errors.UserError, match=words + ".*allow_other_archives"):
    run_imagenet(tmp_path, archives, allow_other=False)


def test_a_refused_archive_leaves_nothing_behind(tmp_path, archives):
  with pytest.raises(errors.UserError, match="allow_other_archives"):
    run_imagenet(tmp_path, archives, allow_other=False)
  assert not list(tmp_path.iterdir())


def test_missing_archives_are_named(tmp_path, archives):
  with pytest.raises(errors.UserError, match="--manual_dir: needed"):
    run_imagenet(tmp_path, "")
  shutil.copy(archives / "ILSVRC2012_img_train.tar", tmp_path)
  with pytest.raises(
    errors.UserError, match=r"img_val.tar: no such file.*down"
  ):
    run_imagenet(tmp_path / "data", tmp_path)


def damage(folder, archives, change):
  """Copy the archives, changing the bytes of the train one."""
  shutil.copytree(archives, folder, dirs_exist_ok=True)
  path = folder / "ILSVRC2012_img_train.tar"
  path.write_bytes(change(path.read_bytes()))


def damaged_jpeg(data):
  at = data.index(imagenet_like.encode(5 * 6)) + 200
  return data[:at] + bytes(range(256)) * 2 + data[at + 512 :]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda data: data[: len(data) // 2],
      "img_train.tar: the archive is trunc",
    ),
    (lambda data: data[:-12_000], "img_train.tar: the archive is trunc"),
    (lambda data: b"x" * 5000, "img_train.tar: the archive is trunc"),
    (
      lambda data: imagenet_like.tar([("n15075149.tar", b"")]),
      "n15075149.tar is none of the 1,000 synsets",
    ),
    (damaged_jpeg, r"n01440764.tar/n01440764_30.JPEG is damaged or no image"),
  ],
)
def test_damaged_archives_are_named(tmp_path, archives, change, words):
  damage(tmp_path / "damaged", archives, change)
  with pytest.raises(errors.UserError, match=words):
    run_imagenet(tmp_path / "data", tmp_path / "damaged")
  with pytest.raises(errors.UserError, match=r"not prepared|not finished"):
    load(f"imagenet{SIZE}", tmp_path / "data")


def test_a_set_of_other_archives_is_not_taken_for_these(
  tmp_path, archives, data_dir
):
  path = run_imagenet(data_dir, archives)  # the same: nothing to do
  assert path.exists()
  imagenet_like.write(tmp_path, train=64)
  for changes in ({}, {"allow_other": False}):
    with pytest.raises(errors.UserError, match="prepared from other archives"):
      run_imagenet(data_dir, tmp_path, **changes)


def test_other_originals_do_not_go_on(tmp_path, archives):
  damage(tmp_path / "damaged", archives, damaged_jpeg)
  with pytest.raises(errors.UserError, match="is damaged"):
    run_imagenet(tmp_path / "data", tmp_path / "damaged")
  imagenet_like.write(tmp_path / "other", train=64)
  with pytest.raises(errors.UserError, match="begun from other originals"):
    run_imagenet(tmp_path / "data", tmp_path / "other")


def test_too_little_space_is_said_before_writing(
  tmp_path, archives, monkeypatch
):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
  with pytest.raises(errors.UserError, match=r"GB are needed.*free; make room"):
    run_imagenet(tmp_path, archives)
  assert not list(tmp_path.rglob("*.array_record*"))


@pytest.fixture
def copied(tmp_path, data_dir):
  shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
  return tmp_path


def test_another_preprocessing_is_refused(copied, archives):
  path = copied / f"imagenet_area/{SIZE}x{SIZE}/1.0.0/metadata.json"
  path.write_text(path.read_text().replace("area8", "box8"))
  words = "was prepared as 'imagenet.*-box8', needed is 'imagenet-cropshort-ar"
  with pytest.raises(errors.UserError, match=words):
    load(f"imagenet{SIZE}", copied)
  with pytest.raises(errors.UserError, match=words):
    run_imagenet(copied, archives)


def test_a_shard_that_is_missing_or_cut_is_refused(copied):
  path = copied / f"imagenet_area/{SIZE}x{SIZE}/1.0.0"
  shard = sorted(path.glob("*train*"))[1]
  shard.write_bytes(shard.read_bytes()[:-100])
  with pytest.raises(
    errors.UserError, match="00001-of-00002: missing or trunc"
  ):
    load(f"imagenet{SIZE}", copied)
  shard.unlink()
  with pytest.raises(
    errors.UserError, match="00001-of-00002: missing or trunc"
  ):
    load(f"imagenet{SIZE}", copied)


def test_hosts_and_resumes_see_the_same_batches_from_disk(data_dir):
  source = load(f"imagenet{SIZE}", data_dir)
  how = {"seed": 3, "batch_size": 16, "flip": True}
  one = pipeline.stream(source, process_index=0, process_count=1, **how)
  two = [
    pipeline.stream(source, process_index=host, process_count=2, **how)
    for host in (0, 1)
  ]
  for step in (0, 4, 11):
    whole, halves = one[step], [stream[step] for stream in two]
    for key, rows in whole.items():
      np.testing.assert_array_equal(rows[0::2], halves[0][key])
      np.testing.assert_array_equal(rows[1::2], halves[1][key])
  iterator = pipeline.batches(
    source, first_step=4, num_threads=2, prefetch=2, **how
  )
  for step, batch in zip((4, 5, 6), iterator, strict=False):
    image = batch["image"].reshape(16, SIZE, SIZE, 3)
    np.testing.assert_array_equal(image, one[step]["image"])


def make_folder(folder, parts=("",), size=(20, 16)):
  """Write two classes of three images; return the pixels by class."""
  rng = np.random.default_rng(0)
  pixels = {}
  for part, name, i in itertools.product(parts, ("cat", "dog"), range(3)):
    path = folder / part / name / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels[name, i] = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels[name, i]).save(path)
  return pixels


def test_a_folder_of_class_folders(tmp_path):
  pixels = make_folder(tmp_path / "pets")
  source = f"folder:{tmp_path / 'pets'}"
  run(source, tmp_path / "data")
  train = load(source, tmp_path / "data", num_classes=2)
  assert list(train.read(range(6))["label"]) == [0, 0, 0, 1, 1, 1]
  middle = pixels["dog", 0][2:18].reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
  assert np.abs(train[3]["image"] - middle).max() <= 0.5
  name = r"folder\.pets\.\w{8}-cropshort-area8"
  assert re.fullmatch(name, train.preprocessing)
  with pytest.raises(errors.UserError, match="no part 'heldout', only train"):
    load(source, tmp_path / "data", "heldout", num_classes=2)
  # A folder that has changed is another data set.
  (tmp_path / "pets/dog/2.png").unlink()
  with pytest.raises(errors.UserError, match="not prepared"):
    load(source, tmp_path / "data", num_classes=2)


def stored(source, data_dir, **changes):
  """Prepare what is missing; return (path, images, id)."""
  how = {key: changes[key] for key in ("background",) if key in changes}
  path = run(source, data_dir, **how)
  found = load(source, data_dir, num_classes=2, **how)
  return path, found.read(range(len(found)))["image"], found.preprocessing


def test_a_replaced_file_of_equal_size_is_another_set(tmp_path):
  one, two = (
    PIL.Image.new("RGB", (SIZE, SIZE), color) for color in ("red", "lime")
  )
  for name in ("cat", "dog"):
    (tmp_path / "pets" / name).mkdir(parents=True)
    one.save(tmp_path / f"pets/{name}/0.bmp")
  source, path = f"folder:{tmp_path / 'pets'}", tmp_path / "pets/dog/0.bmp"
  before = path.stat()
  old, images, name = stored(source, tmp_path / "data")
  assert (images[1] == (255, 0, 0)).all()
  two.save(path)
  # As `cp -p` and archivers do.
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert path.stat().st_size == before.st_size
  new, images, other = stored(source, tmp_path / "data")
  assert (images[0] == (255, 0, 0)).all()
  assert (images[1] == (0, 255, 0)).all()
  assert (old, name) != (new, other)


def test_copied_and_touched_folders_stay_the_same_set(tmp_path, monkeypatch):
  make_folder(tmp_path / "pets", size=(SIZE, SIZE))
  source, data_dir = f"folder:{tmp_path / 'pets'}", tmp_path / "data"
  first = stored(source, data_dir)
  monkeypatch.setattr(prepare, "_make", None)  # no second preparation
  os.utime(tmp_path / "pets/dog/0.png", (1, 1))
  shutil.copytree(tmp_path / "pets", tmp_path / "elsewhere/pets")
  shutil.copytree(tmp_path / "pets", tmp_path / "animals")
  for name in ("pets", "elsewhere/pets", "animals"):
    again = stored(f"folder:{tmp_path / name}", data_dir)
    assert (again[0], again[2]) == (first[0], first[2])
    np.testing.assert_array_equal(again[1], first[1])


def test_files_are_read_again_only_where_they_may_have_changed(
  tmp_path, monkeypatch
):
  opened = []
  read_file = contents._read_file
  monkeypatch.setattr(
    contents, "_read_file", lambda path: opened.append(path) or read_file(path)
  )
  make_folder(tmp_path / "pets", size=(SIZE, SIZE))
  source, data_dir = f"folder:{tmp_path / 'pets'}", tmp_path / "data"
  run(source, data_dir)
  # So young, a file might change again within its time stamp.
  load(source, data_dir, num_classes=2)
  assert len(opened) > 6
  monkeypatch.setattr(contents, "_SETTLED_SECONDS", -1.0)
  load(source, data_dir, num_classes=2)
  opened.clear()
  load(source, data_dir, num_classes=2)
  assert not opened
  (tmp_path / "pets/dog/0.png").touch()
  load(source, data_dir, num_classes=2)
  assert len(opened) == 6
  # Where nothing can be written, training continues.
  shutil.rmtree(data_dir / "folder_contents")
  (data_dir / "folder_contents").write_text("in the way")
  load(source, data_dir, num_classes=2)


def make_earlier_set(source, data_dir):
  """Prepare a folder and rename the set as earlier versions named theirs."""
  wanted = spec_of(source, data_dir)
  found = catalog.find_local(wanted)
  path = run(source, data_dir)
  earlier = pathlib.Path(prepared.folder(found.earlier, wanted))
  old, new = (p.parent.parent.name for p in (path, earlier))
  path.parent.parent.rename(earlier.parent.parent)
  for file in earlier.iterdir():
    if file.suffix == ".json":
      text = file.read_text().replace(found.name, found.earlier)
      file.write_text(text.replace(old, new))
    else:
      file.rename(earlier / file.name.replace(old, new))
  return earlier, f"{found.earlier}-cropshort-area{SIZE}"


def test_an_earlier_set_with_the_same_pixels_keeps_its_name(
  tmp_path, monkeypatch
):
  make_folder(tmp_path / "pets", size=(SIZE, SIZE))
  source, data_dir = f"folder:{tmp_path / 'pets'}", tmp_path / "data"
  earlier, name = make_earlier_set(source, data_dir)
  with pytest.raises(errors.UserError, match="not prepared"):
    load(source, data_dir, num_classes=2)
  monkeypatch.setattr(prepare, "_make", None)  # no second preparation
  path, _, found = stored(source, data_dir)
  assert (path, found) == (earlier, name)
  monkeypatch.setattr(
    prepare, "_has_pixels_of", None
  )  # nor a second comparison
  (tmp_path / "pets/dog/0.png").touch()
  assert stored(source, data_dir)[2] == name
  assert not list(data_dir.glob("*/*/*.incomplete"))


def test_an_earlier_set_with_other_pixels_is_left_alone(tmp_path):
  for name in ("cat", "dog"):
    (tmp_path / "pets" / name).mkdir(parents=True)
    PIL.Image.new("RGB", (9, 9), "red").save(tmp_path / f"pets/{name}/0.bmp")
  source, data_dir = f"folder:{tmp_path / 'pets'}", tmp_path / "data"
  earlier, name = make_earlier_set(source, data_dir)
  PIL.Image.new("RGB", (9, 9), "lime").save(tmp_path / "pets/dog/0.bmp")
  path, images, found = stored(source, data_dir)
  assert path != earlier
  assert found != name
  assert (images[1] == (0, 255, 0)).all()


def test_images_that_change_meanwhile_are_not_a_set(tmp_path, monkeypatch):
  make_folder(tmp_path / "pets", size=(SIZE, SIZE))
  source, data_dir = f"folder:{tmp_path / 'pets'}", tmp_path / "data"
  make = prepare._make

  def change_and_make(*args):
    make(*args)
    image = PIL.Image.new("RGB", (SIZE, SIZE))
    image.save(tmp_path / "pets/dog/0.png")

  with monkeypatch.context() as patch:
    patch.setattr(prepare, "_make", change_and_make)
    with pytest.raises(errors.RunError, match="images changed meanwhile"):
      run(source, data_dir)
  _, images, _ = stored(source, data_dir)
  assert (images[3] == 0).all()


def emoji(seed):
  """Return [40, 40, 4]: a disc with a soft edge, and garbage outside."""
  y, x = np.mgrid[:40, :40] - 19.5
  rgba = np.random.default_rng(seed).integers(0, 256, (40, 40, 4), np.uint8)
  alpha = np.clip(16 - np.hypot(y, x), 0, 1)
  rgba[alpha > 0, :3] = (250, 200, 30)
  rgba[..., 3] = np.rint(alpha * 255)
  return rgba


def test_transparent_images_of_a_folder_get_the_background(tmp_path):
  for label, name in enumerate(("cat", "dog")):
    (tmp_path / "emoji" / name).mkdir(parents=True)
    picture = PIL.Image.fromarray(emoji(label))
    picture.save(tmp_path / f"emoji/{name}/0.png")
  source, data_dir = f"folder:{tmp_path / 'emoji'}", tmp_path / "data"
  matrix, paths, ids = weights(40, SIZE), set(), set()
  backgrounds = {
    "white": (255,) * 3,
    "black": (0,) * 3,
    "#123456": (18, 52, 86),
  }
  for background, color in backgrounds.items():
    path, small, name = stored(source, data_dir, background=background)
    for label in (0, 1):
      desired = np.einsum(
        "ai,bj,ijc->abc", matrix, matrix, blend(emoji(label), color)
      )
      assert np.abs(small[label] - desired).max() <= 1  # rounded twice
      assert (small[label][0, 0] == color).all()
    paths.add(path)
    ids.add(name)
  assert len(paths) == len(ids) == 3
  words = "not prepared.*--image_size=8 .*--background=#000001"
  with pytest.raises(errors.UserError, match=words):
    load(source, data_dir, num_classes=2, background="#000001")


def test_a_background_has_no_effect_on_opaque_images(tmp_path):
  make_folder(tmp_path / "pets", size=(SIZE, SIZE))
  rgb = PIL.Image.open(tmp_path / "pets/dog/0.png")
  rgb.convert("RGBA").save(tmp_path / "pets/dog/0.png")
  source = f"folder:{tmp_path / 'pets'}"
  white, _, name = stored(source, tmp_path / "data")
  black, _, other = stored(source, tmp_path / "data", background="black")
  assert (white, name) == (black, other)
  assert re.fullmatch(r"folder\.pets\.\w{8}-cropshort-area8", name)


def test_imagenet_keeps_its_name_on_any_background(data_dir):
  white, black = (
    load(f"imagenet{SIZE}", data_dir, background=background)
    for background in ("white", "black")
  )
  assert white.preprocessing == black.preprocessing


def test_a_folder_with_parts_and_tfds_on_top(tmp_path):
  make_folder(tmp_path / "pets", ("train", "test"))
  source = f"folder:{tmp_path / 'pets'}"
  path = run(source, tmp_path / "data")
  assert len(load(source, tmp_path / "data", "heldout", num_classes=2)) == 6
  # What was written is a TFDS set like any other.
  again = f"tfds:{path.parent.parent.name}/8x8"
  run(again, tmp_path / "data", image_size=4)
  source = load(
    again, tmp_path / "data", "heldout", image_size=4, num_classes=2
  )
  assert source[5]["label"] == 1
  assert len(source) == 6


@pytest.mark.parametrize("empty", ["cat", "train/cat"])
def test_a_class_folder_without_images_is_named(tmp_path, empty):
  parts = ("train",) if "/" in empty else ("",)
  make_folder(tmp_path / "pets", parts)
  for path in (tmp_path / "pets" / empty).iterdir():
    path.unlink()
  with pytest.raises(errors.UserError, match=f"{empty}: no images in this"):
    run(f"folder:{tmp_path / 'pets'}", tmp_path / "data")


def test_a_file_that_is_no_image_is_named(tmp_path):
  make_folder(tmp_path / "pets")
  (tmp_path / "pets/dog/1.png").write_bytes(b"no image")
  with pytest.raises(errors.UserError, match=r"dog/1.png is damaged.*remove"):
    run(f"folder:{tmp_path / 'pets'}", tmp_path / "data")


def test_idx_files(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    f"{part}-{kind}": rng.integers(0, 10, shape).astype(np.uint8)
    for part, number in (("train", 40), ("t10k", 5))
    for kind, shape in (
      ("images-idx3", (number, 6, 6)),
      ("labels-idx1", (number,)),
    )
  }
  folder = tmp_path / "tiny-set"
  folder.mkdir()
  for name, array in arrays.items():
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(
      f">{array.ndim}I", *array.shape
    )
    path = folder / f"{name}-ubyte.gz"
    path.write_bytes(gzip.compress(header + array.tobytes()))
  name = f"idx:{folder}"
  run(name, tmp_path / "data", crop=8)
  source = load(
    name, tmp_path / "data", "heldout", crop=8, channels=1, num_classes=10
  )
  batch = source.read(range(5))
  desired = np.pad(arrays["t10k-images-idx3"], ((0, 0), (1, 1), (1, 1)))
  np.testing.assert_array_equal(batch["image"][..., 0], desired)
  np.testing.assert_array_equal(batch["label"], arrays["t10k-labels-idx1"])


def test_metadata_says_what_was_done(data_dir):
  path = data_dir / f"imagenet_area/{SIZE}x{SIZE}/1.0.0/metadata.json"
  metadata = json.loads(path.read_text())
  assert metadata["preprocessing"].startswith("imagenet.")  # not official
  assert len(metadata["class_names"]) == 1000
  assert sum(n for n, _ in metadata["shards"]["train"]) == TRAIN


def test_training_prepares_what_needs_no_archives(tmp_path, tiny, monkeypatch):
  seen = []
  monkeypatch.setattr(
    loop, "_run", lambda config, workdir, source, _: seen.append(source)
  )
  make_folder(tmp_path / "pets")
  tiny.data.source = f"folder:{tmp_path / 'pets'}"
  tiny.data.dir = os.fspath(tmp_path / "data")
  tiny.data.crop = 0
  tiny.data.channels = 3
  tiny.data.num_classes = 2
  loop.train(tiny, tmp_path / "run")
  # Where the data is does not make a run another one.
  (tmp_path / "data").rename(tmp_path / "moved")
  tiny.data.dir = os.fspath(tmp_path / "moved")
  loop.train(tiny, tmp_path / "run")
  assert [len(source) for source in seen] == [6, 6]


def test_training_on_crops_needs_one_set_that_has_the_squares_too(
  tmp_path, tiny, monkeypatch
):
  seen = []
  monkeypatch.setattr(
    loop, "_run", lambda config, workdir, source, _: seen.append(source)
  )
  make_folder(tmp_path / "pets", ("train", "test"))
  tiny.data.source = f"folder:{tmp_path / 'pets'}"
  tiny.data.dir = os.fspath(tmp_path / "data")
  tiny.data.update(
    {"crop": 0, "channels": 3, "num_classes": 2, "random_crop": 0.8}
  )
  loop.train(tiny, tmp_path / "run")
  assert seen[0].preprocessing.endswith("-whole5-randomcrop4")
  held_out = sources.load(build.data_spec(tiny, training=True), "heldout")
  assert held_out.read([0, 5])["image"].shape == (2, 4, 4, 3)
  assert len(list((tmp_path / "data").glob("folder_pets*/*"))) == 1


def test_training_does_not_prepare_imagenet(tmp_path, tiny):
  tiny.data.source = "imagenet4"
  tiny.data.dir = os.fspath(tmp_path)
  tiny.data.crop = 0
  words = "not prepared in .*; do it once: .*--dataset=imagenet4 --manual_dir="
  with pytest.raises(errors.UserError, match=words):
    loop.train(tiny, tmp_path / "run")
  assert not list(tmp_path.iterdir())


PAUSED = """
import pathlib, sys, time
from absl import logging
from cfgd.data import images, prepare, spec

logging.set_verbosity(logging.INFO)
made, preprocess = [], images.preprocess

def paused(*args, **kwargs):
  made.append(1)
  waiting = pathlib.Path(sys.argv[3])
  while sys.argv[4] == "first" and not waiting.exists():
    time.sleep(0.05)
  return preprocess(*args, **kwargs)

images.preprocess = paused
pathlib.Path(sys.argv[3] + sys.argv[4]).touch()
prepare.prepare(
  spec.Spec("folder:" + sys.argv[1], image_size=4, data_dir=sys.argv[2]),
  workers=1,
)
print(len(made))
"""


@pytest.fixture
def preparing(tmp_path):
  """Return a function: start a job that prepares; the "first" one can pause."""
  make_folder(tmp_path / "pets")
  started = []

  def start(name):
    arguments = [tmp_path / "pets", tmp_path / "data", tmp_path / "go", name]
    process = subprocess.Popen(
      [sys.executable, "-c", PAUSED, *map(str, arguments)],
      cwd=pathlib.Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.wait()


def wait_for(found):
  deadline = time.monotonic() + 60
  while not found():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_a_second_job_waits_and_uses_the_set_of_the_first(tmp_path, preparing):
  first = preparing("first")
  wait_for(lambda: list(tmp_path.glob("data/*.lease*")))
  second = preparing("second")
  said = iter(second.stderr.readline, "")
  line = next(line for line in said if "Waiting for" in line)
  assert f"held by process {first.pid} on " in line
  (tmp_path / "go").touch()
  assert first.communicate(timeout=60)[0] == "6\n"
  assert second.communicate(timeout=60)[0] == "0\n"
  assert (first.returncode, second.returncode) == (0, 0)
  assert not list(tmp_path.glob("data/*.lease*"))


def test_a_killed_job_blocks_no_other(tmp_path, preparing):
  first = preparing("first")
  wait_for(lambda: list(tmp_path.glob("data/*/*/*.incomplete/plan.json")))
  first.kill()
  first.wait()
  assert list(tmp_path.glob("data/*.lease*"))
  out, err = preparing("second").communicate(timeout=60)
  assert out == "6\n", err
