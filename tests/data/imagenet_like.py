"""Archives in the structure of ImageNet's, with images of many kinds."""

import io
import tarfile

import numpy as np
import PIL.Image

from cfgd.data import imagenet_archives

SIZES = [(70, 90), (120, 64), (64, 64), (201, 133), (90, 300), (40, 50)]
MODES = ["RGB", "RGB", "L", "RGB", "CMYK", "PNG"]
ORIENTATION = 0x0112  # an EXIF tag


def picture(seed):
  """Return [H, W, 3] uint8, smooth enough for JPEG to keep."""
  rng = np.random.default_rng(seed)
  height, width = SIZES[seed % len(SIZES)]
  small = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
  return np.asarray(PIL.Image.fromarray(small).resize((width, height)))


def encode(seed):
  """Return the bytes of a file that calls itself JPEG."""
  mode = MODES[seed % len(MODES)]
  image = PIL.Image.fromarray(picture(seed))
  exif = PIL.Image.Exif()
  exif[ORIENTATION] = 1 + seed % 8
  buffer = io.BytesIO()
  if mode == "PNG":
    image.save(buffer, "PNG")
  else:
    image.convert(mode).save(buffer, "JPEG", exif=exif)
  return buffer.getvalue()


def tar(members):
  """Return the bytes of a tar of (name, bytes)."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return buffer.getvalue()


def train_members(number, synsets):
  """Return {synset: [(name, bytes)]}, `number` images dealt to the synsets."""
  chosen = [imagenet_archives.synsets()[i] for i in synsets]
  dealt = {name: [] for name in chosen}
  for seed in range(number):
    name = chosen[seed % len(chosen)]
    dealt[name].append((f"{name}_{seed}.JPEG", encode(seed)))
  return dealt


def validation_members(number):
  return [
    (f"ILSVRC2012_val_{i + 1:08d}.JPEG", encode(1000 + i))
    for i in range(number)
  ]


def write(folder, *, train=50, validation=7, synsets=(0, 3, 999)):
  """Write the two archives, the train one out of order as the official is."""
  folder.mkdir(parents=True, exist_ok=True)
  inner = [
    (f"{name}.tar", tar(members))
    for name, members in train_members(train, synsets).items()
  ]
  (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(inner[::-1]))
  (folder / "ILSVRC2012_img_val.tar").write_bytes(
    tar(validation_members(validation))
  )
  return folder
