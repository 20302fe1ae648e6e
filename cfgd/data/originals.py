"""Original images before preparation: class folders, IDX files, TFDS sets.

A part of a data set is a sequence that can be sliced (`part[start:stop]`), sent
to another process, and iterated over, which decodes the images: (image
[H, W, C] uint8, label).
"""

import dataclasses
import functools
import gzip
import hashlib
import os
import re

from absl import logging
from etils import epath
import numpy as np

from cfgd.data import contents
from cfgd.data import images
from cfgd.runtime import errors

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm")
_PARTS = {
  "train": ("train", "training"),
  "heldout": ("heldout", "test", "val", "validation"),
}
_LOG_SECONDS = 15
_IDX_FILES = {"train": "train", "heldout": "t10k"}  # of MNIST and its kin
_IDX_KINDS = ("images-idx3", "labels-idx1")


@dataclasses.dataclass(frozen=True)
class Originals:
  """What a data set is made from.

  Attributes:
    name: begins the id of the preprocessing.
    class_names: in the order of the labels.
    channels: of the images.
    parts: {"train": sequence of images, and "heldout" if there is one}.
    fingerprint: changes with the images, so that preparations of different
      originals are not mixed.
    earlier: name given by versions before `contents`, or "".
  """

  name: str
  class_names: tuple
  channels: int
  parts: dict
  fingerprint: str
  earlier: str = ""


@dataclasses.dataclass(frozen=True)
class Members:
  """Encoded images: files of a folder, or members of an archive `root`.

  Attributes:
    names: [N] bytes; paths below a folder.
    offsets: [N] int64 in the archive; -1 for a file of its own.
    sizes: [N] int64 in bytes.
    labels: [N] int32.
    background: (R, G, B) behind transparent pixels; None drops alpha.
  """

  root: str
  names: np.ndarray
  offsets: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray
  background: tuple | None = None

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, rows):
    columns = ("names", "offsets", "sizes", "labels")
    return dataclasses.replace(
      self, **{name: getattr(self, name)[rows] for name in columns}
    )

  def __iter__(self):
    for row, label in enumerate(self.labels):
      name = os.fsdecode(self.names[row])
      offset, size = int(self.offsets[row]), int(self.sizes[row])
      data = self._read(name, offset, size)
      try:
        yield images.decode(data, self.background), int(label)
      except ValueError as error:
        remedy = (
          "replace or remove the file"
          if offset < 0
          else "download or pack the archive again"
        )
        raise errors.UserError(
          f"{self.root}: {name} is damaged or no image ({error}); {remedy}"
        ) from error

  def _read(self, name, offset, size):
    if offset < 0:
      return (epath.Path(self.root) / name).read_bytes()
    file = _opened(self.root)
    file.seek(offset)
    return file.read(size)


@functools.lru_cache(maxsize=2)
def _opened(path):
  return epath.Path(path).open("rb")


def members(root, rows):
  """Return `Members` of rows (name, offset or None, bytes, label)."""
  rows = list(_logged(root, rows))
  names, offsets, sizes, labels = zip(*rows, strict=True) if rows else [()] * 4
  return Members(
    root=os.fspath(root),
    names=np.array([os.fsencode(name) for name in names], np.bytes_),
    offsets=np.array([-1 if o is None else o for o in offsets], np.int64),
    sizes=np.array(sizes, np.int64),
    labels=np.array(labels, np.int32),
  )


def _logged(root, rows):
  for number, row in enumerate(rows, 1):
    if not number % 1000:  # The first call logs whatever the time.
      logging.log_every_n_seconds(
        logging.INFO, "Listing %s: %d images found.", _LOG_SECONDS, root, number
      )
    yield row


def fingerprint(parts):
  """Return 8 hexadecimal digits of the names and sizes of `Members`.

  Enough for archives, whose md5 is checked; files need `contents.read`.
  """
  digest = hashlib.sha256()
  for part, listed in sorted(parts.items()):
    contents.hash_names(digest, part, listed)
    digest.update(listed.sizes.tobytes())
  return digest.hexdigest()[:8]


def list_folder(folder, class_names):
  """Return the `Members` of a folder of class folders.

  `class_names` are in the order of the labels; a class may have no folder.
  """
  folder = epath.Path(folder)
  labels = {name: label for label, name in enumerate(class_names)}
  rows = []
  for path in _subfolders(folder):
    if path.name not in labels:
      raise errors.UserError(
        f"{path}: no such class; known are {', '.join(class_names[:3])}"
        f"{', ...' if len(class_names) > 3 else ''}"
      )
    before = len(rows)
    with os.scandir(path) as entries:
      rows += sorted(
        (f"{path.name}/{e.name}", None, e.stat().st_size, labels[path.name])
        for e in entries
        if e.name.lower().endswith(_SUFFIXES) and not e.name.startswith(".")
      )
    if len(rows) == before:
      raise errors.UserError(
        f"{path}: no images in this class folder; remove it or fill it "
        f"({', '.join(_SUFFIXES)})"
      )
  return members(folder, rows)


def _subfolders(folder):
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith(".")
  )


def find_folder(path, *, background, remember):
  """Open `folder:PATH`: PATH/CLASS/* or PATH/train/CLASS/*, PATH/test/CLASS/*.

  Classes are the folders' names, sorted. The name has a hash of the files'
  contents, see `contents.read`, and the (R, G, B) background if an image is
  transparent.
  """
  folder = epath.Path(path).expanduser()
  if not folder.is_dir():
    raise errors.UserError(
      f"data.source='folder:{path}': no such folder (from {os.getcwd()}); give "
      "--config.data.source=folder:PATH of PATH/CLASS/*.jpg or *.png"
    )
  places = _folder_parts(folder)
  class_names = tuple(p.name for p in _subfolders(places["train"]))
  if not class_names:
    raise errors.UserError(
      f"{places['train']}: no class folders; images are expected as "
      "PATH/CLASS/*.jpg or PATH/train/CLASS/*.jpg"
    )
  parts = {part: list_folder(p, class_names) for part, p in places.items()}
  held = contents.read(folder, parts, remember=remember)
  behind = on_background(background) if held.transparent else ""
  name = f"folder.{word(folder.name)}"
  return Originals(
    name=f"{name}.{held.fingerprint}{behind}",
    class_names=class_names,
    channels=3,
    parts={
      part: dataclasses.replace(of, background=background)
      for part, of in parts.items()
    },
    fingerprint=held.fingerprint + behind,
    # Earlier versions did not composite transparent images.
    earlier="" if behind else f"{name}.{fingerprint(parts)}",
  )


def on_background(background):
  """Return the suffix of a name whose images are on this background."""
  return ".on{:02x}{:02x}{:02x}".format(*background)


def _folder_parts(folder):
  """Return {"train": path, and "heldout" if there is one}."""
  found = {
    part: folder / name
    for part, names in _PARTS.items()
    for name in reversed(names)
    if (folder / name).is_dir()
  }
  return found if "train" in found else {"train": folder}


def word(name):
  """Return a name with only characters that paths and TFDS allow."""
  return re.sub(r"\W+", "_", name).strip("_") or "images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """Rows `start` to `stop` of something; slicing narrows them."""

  start: int
  stop: int

  def __len__(self):
    return self.stop - self.start

  def __getitem__(self, rows):
    start, stop, _ = rows.indices(len(self))
    return dataclasses.replace(
      self, start=self.start + start, stop=self.start + stop
    )


@dataclasses.dataclass(frozen=True)
class _IdxPart(Span):
  """Rows of a pair of IDX files; see `find_idx`."""

  images: str
  labels: str

  def __iter__(self):
    rows = slice(self.start, self.stop)
    pictures = _read_idx(self.images)[rows, ..., None]
    return zip(pictures, map(int, _read_idx(self.labels)[rows]), strict=True)


@functools.lru_cache(maxsize=4)
def _read_idx(path):
  """Return the array in an IDX file of bytes, gzipped or not."""
  data = epath.Path(path).read_bytes()
  try:
    data = gzip.decompress(data) if path.endswith(".gz") else data
    shape = np.frombuffer(data, ">u4", data[3], offset=4)
    pixels = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
    return pixels.reshape(shape)
  except (OSError, EOFError, ValueError, IndexError) as error:
    raise errors.UserError(
      f"{path}: not a complete IDX file ({error}); get it again"
    ) from error


def find_idx(path):
  """Open `idx:PATH`: a folder with MNIST's four files, gzipped or not.

  MNIST and Fashion-MNIST come in this form, the latter in Debian's package
  dataset-fashion-mnist.
  """
  folder = epath.Path(path).expanduser()
  parts, digest = {}, hashlib.sha256()
  for part, prefix in _IDX_FILES.items():
    pair = [_idx_file(folder, f"{prefix}-{kind}") for kind in _IDX_KINDS]
    pictures, labels = map(_read_idx, pair)
    if pictures.ndim != 3 or labels.shape != pictures.shape[:1]:
      raise errors.UserError(
        f"{pair[0]}, {pair[1]}: shapes {pictures.shape} and {labels.shape} are "
        "not those of images and their labels"
      )
    parts[part] = _IdxPart(*pair, start=0, stop=len(labels))
    digest.update(labels.tobytes())
    digest.update(pictures.tobytes())
  classes = int(_read_idx(parts["train"].labels).max()) + 1
  mark = digest.hexdigest()[:8]
  return Originals(
    name=f"idx.{word(folder.name)}.{mark}",
    class_names=tuple(map(str, range(classes))),
    channels=1,
    parts=parts,
    fingerprint=mark,
  )


def _idx_file(folder, name):
  for suffix in ("-ubyte.gz", "-ubyte"):
    path = folder / (name + suffix)
    if path.exists():
      return os.fspath(path)
  raise errors.UserError(
    f"data.source='idx:{folder}': no {name}-ubyte[.gz] there"
  )
