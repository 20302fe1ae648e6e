"""Sets of images: what they give, and what they refuse."""

import numpy as np
import PIL.Image
import pytest

from cfgd.data import sources
from cfgd.data import spec
from cfgd.metrics import image_sets
from cfgd.runtime import errors
from cfgd.sampling import store

IMAGES = np.random.default_rng(0).integers(0, 256, (13, 5, 4, 3), np.uint8)


def npz(path):
  np.savez(path / "images.npz", IMAGES, np.arange(13))
  return path / "images.npz"


def compressed(path):
  np.savez_compressed(path / "images.npz", IMAGES)
  return path / "images.npz"


def chunks(path):
  folder = path / "chunks"
  for start, stop in ((0, 6), (0, 2), (6, 12), (12, 13)):
    store.write(folder, start, IMAGES[start:stop], np.arange(stop - start))
  # Neither a gap nor what is no chunk is part of the set.
  store.write(folder, 20, IMAGES[:2], np.arange(2))
  (folder / "samples_13.npz").write_bytes(b"")
  return folder


def files(path):
  folder = path / "files"
  (folder / "b").mkdir(parents=True)
  for index, image in enumerate(IMAGES):
    where = folder / ("b" if index > 6 else "") / f"{index:02d}.png"
    PIL.Image.fromarray(image).save(where)
  for path in sorted(folder.glob("*.png"))[:1]:
    path.rename(path.with_suffix(".PNG"))
  (folder / "notes.txt").write_text("no image")
  return folder


@pytest.mark.parametrize("make", [npz, compressed, chunks, files])
def test_slices(make, tmp_path):
  path = make(tmp_path)
  images = image_sets.open_images(path)
  assert len(images) == 13
  assert images.shape == (5, 4, 3)
  assert images.name == str(path)
  for rows in (slice(0, 5), slice(5, 13), slice(2, 9), slice(0, 13)):
    np.testing.assert_array_equal(images[rows], IMAGES[rows])
    assert images[rows].dtype == np.uint8


@pytest.mark.parametrize("make", [npz, chunks, files])
def test_fingerprints_are_of_the_content(make, tmp_path):
  first, second = tmp_path / "a", tmp_path / "b"
  first.mkdir()
  second.mkdir()
  path, same = make(first), make(second)
  one, two = map(image_sets.open_images, (path, same))
  assert one.fingerprint == two.fingerprint
  changed = IMAGES.copy()
  changed[3, 0, 0, 0] ^= 1
  if path.is_file():
    np.savez(path, changed)
  elif make is chunks:
    store.write(path, 0, changed[:6], np.arange(6))
  else:
    PIL.Image.fromarray(changed[3]).save(path / "03.png")
  assert image_sets.open_images(path).fingerprint != two.fingerprint


def test_grey_files_become_rgb(tmp_path):
  PIL.Image.fromarray(IMAGES[0, :, :, 0]).save(tmp_path / "grey.png")
  found = image_sets.open_images(tmp_path)[0:1]
  for channel in range(3):
    np.testing.assert_array_equal(found[0, :, :, channel], IMAGES[0, :, :, 0])


@pytest.mark.parametrize(
  ("images", "words"),
  [
    (
      IMAGES / np.float32(255),
      r"float32.*\[13, 5, 4, 3\].*from 0 to 1; needed",
    ),
    (IMAGES / 127.5 - 1, r"float64.*values from -1 to 1; needed: uint8"),
    (IMAGES.astype(np.int64), r"int64.*from 0 to 255; needed: uint8"),
    (IMAGES[0], r"uint8 \[5, 4, 3\]"),
    (np.asfortranarray(IMAGES), r"needed: uint8"),
    (IMAGES[:0], "no images"),
    (np.array([{}]), "object"),
  ],
)
def test_other_arrays_are_refused(tmp_path, images, words):
  np.savez(tmp_path / "bad.npz", images)
  with pytest.raises(errors.UserError, match=words):
    image_sets.open_images(tmp_path / "bad.npz")


def test_truncated_files_are_refused(tmp_path):
  whole = npz(tmp_path).read_bytes()
  (tmp_path / "half.npz").write_bytes(whole[:400])
  with pytest.raises(errors.UserError, match=r"not an \.npz with images"):
    image_sets.open_images(tmp_path / "half.npz")
  broken = bytearray(whole)
  broken[500] ^= 1
  (tmp_path / "broken.npz").write_bytes(broken)
  with pytest.raises(errors.UserError, match=r"not an \.npz.*CRC"):
    image_sets.open_images(tmp_path / "broken.npz")
  folder = chunks(tmp_path)
  path = folder / "chunk_0000006_0000012.npz"
  path.write_bytes(path.read_bytes()[:300])
  images = image_sets.open_images(folder)
  with pytest.raises(errors.UserError, match=rf"{path.name}: damaged"):
    _ = images[5:8]


def test_bad_folders_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match="no such file"):
    image_sets.open_images(tmp_path / "none")
  with pytest.raises(errors.UserError, match=r"neither chunk_\*\.npz"):
    image_sets.open_images(tmp_path)
  PIL.Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
  PIL.Image.fromarray(IMAGES[1, :4]).save(tmp_path / "1.png")
  with pytest.raises(errors.UserError, match=r"1\.png: 4x4 .*0\.png has 4x5"):
    image_sets.open_images(tmp_path)
  (tmp_path / "1.png").write_bytes(b"no image")
  with pytest.raises(errors.UserError, match=r"1\.png: not an image"):
    image_sets.open_images(tmp_path)
  whole = (tmp_path / "0.png").read_bytes()
  (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
  images = image_sets.open_images(tmp_path)
  with pytest.raises(errors.UserError, match=r"1\.png: a damaged image"):
    _ = images[0:2]
  PIL.Image.fromarray(np.ones((5, 4), np.uint16)).save(tmp_path / "1.png")
  with pytest.raises(errors.UserError, match=r"1\.png: an image of mode I;16"):
    image_sets.open_images(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_files_are_refused(tmp_path, mode):
  rgba = np.dstack([IMAGES[0], np.full((5, 4), 255, np.uint8)])
  opaque, transparent = (PIL.Image.fromarray(rgba).convert(mode) for _ in "ab")
  if mode == "P":
    opaque.info["transparency"] = bytes([255] * 256)
    transparent.info["transparency"] = bytes([200] * 256)
  else:
    transparent.putalpha(254)
  opaque.save(tmp_path / "0.png")
  found = image_sets.open_images(tmp_path)[0:1]
  desired = opaque.convert("RGBA").convert("RGB")
  np.testing.assert_array_equal(found[0], np.asarray(desired))
  transparent.save(tmp_path / "1.png")
  with pytest.raises(errors.UserError, match=r"1\.png: has transparent pixels"):
    image_sets.open_images(tmp_path)


def test_images_of_zeros_and_ones_are_refused():
  with pytest.raises(errors.UserError, match="no pixel above 1"):
    image_sets.check_pixels(IMAGES % 2, "cast")
  image_sets.check_pixels(IMAGES, "right")


def test_a_data_set_is_a_set_of_images():
  source = sources.load(spec.Spec("embedded", 4, crop=24), "heldout")
  images = image_sets.SourceImages(source)
  assert (len(images), images.shape) == (1000, (4, 4, 1))
  assert images.preprocessing == images.name == source.preprocessing
  np.testing.assert_array_equal(images[990:2000], source.images[990:])
