"""ImageNet's official archives, or the same files as folders.

`ILSVRC2012_img_train.tar` holds one tar per synset, `ILSVRC2012_img_val.tar`
the validation images. Their labels and the list of synsets come with TFDS. A
label is the index of its synset in sorted order.
"""

import functools
import hashlib
import json
import os
import re
import tarfile

from absl import logging
from etils import epath

from cfgd.data import originals
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import progress

# By part of the data: file name, bytes, md5 and number of images.
OFFICIAL = {
  "train": (
    "ILSVRC2012_img_train.tar",
    147_897_477_120,
    "1d675b47d978889d74fa0da5fadfb00e",
    1_281_167,
  ),
  "heldout": (
    "ILSVRC2012_img_val.tar",
    6_744_924_160,
    "29b22e2961454d5413ddabcf34fc5622",
    50_000,
  ),
}
_FOLDERS = {"train": "train", "heldout": "val"}
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_BLOCK = 512  # of a tar
_HASHED_AT_ONCE = 16 * 2**20
_OTHERWISE = "or use it as it is with --allow_other_archives"


@functools.cache
def _listed(name):
  """Return the lines of one of TFDS's lists for imagenet2012."""
  # Slow to import, and needed only here.
  import tensorflow_datasets as tfds

  folder = tfds.core.tfds_path("datasets/imagenet2012")
  return tuple((epath.Path(folder) / name).read_text().split())


def synsets():
  """Return the 1,000 synsets in the order of their labels."""
  return _listed("labels.txt")


def find(manual_dir, *, allow_other, verified):
  """Find, verify and list ImageNet's originals.

  Args:
    manual_dir: folder with the two archives, or with the folders train/SYNSET
      and val/SYNSET.
    allow_other: accept archives that are not the official ones.
    verified: file that records which archives have been checked.
  """
  folder = epath.Path(manual_dir).expanduser()
  places = {part: _place(folder, part) for part in OFFICIAL}
  archives = {p: path for p, path in places.items() if path.is_file()}
  if not allow_other:
    for part, path in archives.items():
      _check_size(part, path)
    for part, path in archives.items():
      _check_md5(part, path, epath.Path(verified))
  parts = {
    part: _list(part, path, allow_other) for part, path in places.items()
  }
  for part, members in parts.items():
    _check_count(part, places[part], len(members), allow_other)
  mark = originals.fingerprint(parts)
  return originals.Originals(
    name=f"imagenet.{mark}" if allow_other else "imagenet",
    class_names=synsets(),
    channels=3,
    parts=parts,
    fingerprint=mark,
  )


def _place(folder, part):
  """Return the archive of a part, or else its folder."""
  archive, unpacked = folder / OFFICIAL[part][0], folder / _FOLDERS[part]
  for path in (archive, unpacked):
    if path.exists():
      return path
  raise errors.UserError(
    f"{archive}: no such file, and no folder {_FOLDERS[part]}/ either; "
    "download it from https://image-net.org/download-images and point "
    "--manual_dir at it"
  )


def _check_size(part, path):
  size, official = path.stat().length, OFFICIAL[part][1]
  if size != official:
    raise errors.UserError(
      f"{path}: {size:,} bytes, the official archive has {official:,}; "
      f"download it again, {_OTHERWISE}"
    )


def _check_md5(part, path, verified):
  """Compare the md5, unless this very file has been checked before."""
  known = json.loads(verified.read_text()) if verified.exists() else {}
  stat = os.stat(path)
  found = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
  if known.get(part) == found:
    return
  md5, official = _md5(path), OFFICIAL[part][2]
  if md5 != official:
    raise errors.UserError(
      f"{path}: md5 {md5}, the official archive has {official}; download it "
      f"again, {_OTHERWISE}"
    )
  files.write_atomic(verified, json.dumps(known | {part: found}))


def _md5(path):
  total = path.stat().length
  checking = progress.Progress(f"Checking {path.name}", total, "GB", 1e9)
  md5 = hashlib.md5(usedforsecurity=False)
  with path.open("rb") as file:
    while data := file.read(_HASHED_AT_ONCE):
      md5.update(data)
      checking.add(len(data))
  return md5.hexdigest()


def _check_count(part, path, number, allow_other):
  official = OFFICIAL[part][3]
  if not number:
    raise errors.UserError(f"{path}: has no images")
  if number != official and not allow_other:
    raise errors.UserError(
      f"{path}: {number:,} images, the official part has {official:,}; unpack "
      f"the archive again, {_OTHERWISE}"
    )


def _list(part, path, allow_other):
  logging.info("Listing %s.", path)
  if path.is_file():
    read = _train_members if part == "train" else _validation_members
    return originals.members(path, read(path, whole=allow_other))
  if part == "heldout" and not any(p.is_dir() for p in path.iterdir()):
    rows = (
      (file.name, None, file.stat().length, _validation_label(path, file.name))
      for file in sorted(path.iterdir())
    )
    return originals.members(path, rows)
  return originals.list_folder(path, synsets())


def _train_members(path, *, whole):
  """Yield (name, offset, bytes, label) of the images of the train archive."""
  labels = {name: label for label, name in enumerate(synsets())}
  with path.open("rb") as file:
    for archive, synset in _members(file, path, path.stat().length, whole):
      name = os.path.basename(synset.name).removesuffix(".tar")
      if name not in labels:
        raise errors.UserError(
          f"{path}: {synset.name} is none of the 1,000 synsets; needed is the "
          "archive of ILSVRC2012's training images (task 1 & 2)"
        )
      where = f"{path}, {synset.name}"
      inner = archive.extractfile(synset)
      for _, image in _members(inner, where, synset.size, whole):
        yield (
          f"{synset.name}/{image.name}",
          synset.offset_data + image.offset_data,
          image.size,
          labels[name],
        )


def _validation_members(path, *, whole):
  """Yield (name, offset, bytes, label) of the validation archive."""
  with path.open("rb") as file:
    for _, image in _members(file, path, path.stat().length, whole):
      label = _validation_label(path, image.name)
      yield image.name, image.offset_data, image.size, label


def _validation_label(path, name):
  listed = _listed("validation_labels.txt")
  match = _VALIDATION_NAME.fullmatch(os.path.basename(name))
  if not match or not 1 <= int(match[1]) <= len(listed):
    raise errors.UserError(
      f"{path}: {name} is not a validation image's name; they are "
      "ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG"
    )
  return synsets().index(listed[int(match[1]) - 1])


def _members(file, where, size, whole):
  """Yield (archive, member) for the files of a tar, in its order.

  `where` names it in messages; `whole` checks the zeros after its `size` bytes'
  last member, for archives whose md5 is not checked.
  """
  cut = errors.UserError(
    f"{where}: the archive is truncated or damaged; download or pack it again"
  )
  end = 0
  try:
    with tarfile.open(fileobj=file, mode="r:") as archive:
      for member in archive:
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        if end > size:
          raise cut
        if member.isfile():
          yield archive, member
    file.seek(end)
    if whole and file.read(_BLOCK) != bytes(_BLOCK):
      raise cut
  except tarfile.TarError as error:
    raise cut from error
