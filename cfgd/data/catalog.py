"""Names of data sets: what `data.source` means and where it is prepared.

`imagenet64` (any size), `tfds:NAME`, `folder:PATH`, `idx:PATH`.
"""

import os
import re
import shlex

from cfgd.data import imagenet_archives
from cfgd.data import images
from cfgd.data import originals
from cfgd.data import prepared
from cfgd.data import tfds_sets
from cfgd.runtime import errors

_IMAGENET = re.compile(r"imagenet([1-9]\d*)")
_FINDERS = {"idx": originals.find_idx}
_CONTENTS = "folder_contents"  # in the folder of data sets
_KNOWN = "embedded, imagenet64, imagenet128, tfds:NAME, folder:PATH, idx:PATH"


def _split(source):
  """Return (kind, rest): ("imagenet", side) or what stands around the colon."""
  match = _IMAGENET.fullmatch(source)
  if match:
    return "imagenet", int(match[1])
  kind, colon, rest = source.partition(":")
  if kind not in ("tfds", "folder", *_FINDERS) or not colon or not rest:
    raise errors.UserError(
      f"data.source={source!r}: no such data set; known: {_KNOWN}"
    )
  return kind, rest


def image_size_of(source):
  """Return the side that a name says, 0 where it says none."""
  kind, rest = _split(source)
  return rest if kind == "imagenet" else 0


def is_prepared_on_demand(source):
  """Say whether training prepares this data set where it is missing."""
  return source != "embedded" and _split(source)[0] != "imagenet"


def name_of(source, *, data_dir, background):
  """Return the name of the originals, `Originals.name`, without opening them.

  Of ImageNet from other than the official archives it is the beginning.
  """
  kind, rest = _split(source)
  if kind == "imagenet":
    return kind
  if kind == "tfds":
    return tfds_sets.name_of(rest, images.rgb(background))
  return find_local(source, data_dir=data_dir, background=background).name


def earlier_set(found, *, image_size, crop, data_dir, whole=0):
  """Return the path of a set that an earlier version made, or None.

  Its name says of a folder's files how they are called and how large they are,
  and not what they hold.

  Args:
    found: originals.Originals.
    image_size: side of the images.
    crop: side of the central square; 0 is the shorter side.
    data_dir: folder of data sets; "" is TFDS's own.
    whole: see `images.whole_side`.
  """
  where = {"image_size": image_size, "crop": crop, "data_dir": data_dir}
  if not found.earlier:
    return None
  path = prepared.folder(found.earlier, **where, whole=whole)
  return path if path.exists() else None


def find_local(source, *, data_dir, background):
  """Open originals that are files on a disk."""
  kind, path = _split(source)
  if kind == "folder":
    return originals.find_folder(
      path,
      background=images.rgb(background),
      remember=prepared.data_home(data_dir) / _CONTENTS,
    )
  return _FINDERS[kind](path)


def find(source, *, data_dir, background, manual_dir, allow_other, verified):
  """Open the originals of a data set.

  Args:
    source: data.source of the config.
    data_dir: folder of data sets; "" is TFDS's own.
    background: colour behind what is transparent.
    manual_dir: see imagenet_archives.find and tfds_sets.find.
    allow_other: see imagenet_archives.find.
    verified: see imagenet_archives.find.

  Returns:
    originals.Originals.
  """
  kind, rest = _split(source)
  if kind == "imagenet":
    if not manual_dir:
      raise errors.UserError(
        f"--manual_dir: needed for {source}: the folder of ImageNet's archives"
      )
    return imagenet_archives.find(
      manual_dir, allow_other=allow_other, verified=verified
    )
  if kind == "tfds":
    return tfds_sets.find(
      rest,
      data_dir=os.fspath(prepared.data_home(data_dir)),
      background=images.rgb(background),
      manual_dir=manual_dir,
    )
  return find_local(source, data_dir=data_dir, background=background)


def command(source, *, image_size, crop, data_dir, background, random_crop):
  """Return the command that prepares a data set."""
  kind, _ = _split(source)
  words = ["python", "-m", "experiments.prepare_data", f"--dataset={source}"]
  if kind == "imagenet":
    words.append("--manual_dir=FOLDER_OF_THE_ARCHIVES")
  else:
    words.append(f"--image_size={image_size}")
  if crop:
    words.append(f"--crop={crop}")
  if images.rgb(background) != images.WHITE:
    words.append(f"--background={background}")
  if random_crop:
    words.append(f"--random_crop={random_crop:g}")
  if data_dir:
    words.append(f"--data_dir={data_dir}")
  return shlex.join(words)


def find_prepared(
  source, *, image_size, crop, data_dir, background, random_crop
):
  """Look for a prepared data set.

  Args:
    source: data.source of the config.
    image_size: side of the images.
    crop: side of the central square; 0 is the shorter side.
    data_dir: folder of data sets; "" is TFDS's own.
    background: colour behind what is transparent.
    random_crop: see `images.whole_side`.

  Returns:
    (its path, its metadata or None if it is not there).

  Raises:
    errors.UserError: it is damaged or was made in another way.
  """
  where = {
    **{"image_size": image_size, "crop": crop, "data_dir": data_dir},
    "whole": images.whole_side(image_size, random_crop),
  }
  name = name_of(source, data_dir=data_dir, background=background)
  how = command(
    source,
    image_size=image_size,
    crop=crop,
    data_dir=data_dir,
    background=background,
    random_crop=random_crop,
  )
  path = prepared.folder(name, **where)
  if name.startswith("folder.") and not path.exists():
    path = _of_a_copy(name, where) or path
  if name.startswith("folder.") and not path.exists():
    found = find_local(source, data_dir=data_dir, background=background)
    earlier = earlier_set(found, **where)
    if earlier and prepared.read_contents(earlier) == found.fingerprint:
      path, name = earlier, found.earlier
  metadata = prepared.read_metadata(path, command=how)
  if metadata is not None:
    wanted = images.preprocessing_id(
      name, crop=crop, size=image_size, whole=where["whole"]
    )
    found = metadata["preprocessing"]
    if not _same(found, wanted):
      raise errors.UserError(
        f"{path}: was prepared as {found!r}, needed is {wanted!r}; remove it "
        f"or choose another --data_dir, then: {how}"
      )
  return path, metadata


def _of_a_copy(name, where):
  """Find the set of a folder with the same contents and another name."""
  any_name = re.sub(r"^folder\.\w+", "folder.*", name)
  pattern = prepared.folder(any_name, **where)
  home = prepared.data_home(where["data_dir"])
  return min(home.glob(os.fspath(pattern.relative_to(home))), default=None)


def _same(found, wanted):
  """Compare ids up to what does not matter.

  Other archives of ImageNet add a fingerprint to the name; of a folder, its
  contents count and not what it is called.
  """
  if wanted.startswith("imagenet-"):
    found = re.sub(r"^imagenet\.\w+", "imagenet", found)
  if wanted.startswith("folder."):
    found, wanted = (
      re.sub(r"^folder\.\w+", "folder", name) for name in (found, wanted)
    )
  return found == wanted


def open_part(
  source, part, *, image_size, crop, data_dir, background, random_crop
):
  """Open a part of a prepared data set, "train" or "heldout".

  Args and Raises: as `find_prepared`; not being there is an error here.

  Returns:
    prepared.Prepared.
  """
  where = {
    **{"image_size": image_size, "crop": crop, "data_dir": data_dir},
    **{"background": background, "random_crop": random_crop},
  }
  _check_size(source, image_size)
  path, metadata = find_prepared(source, **where)
  if metadata is None:
    begun = prepared.incomplete(path).exists()
    raise errors.UserError(
      f"data.source={source!r}: not prepared in {path}; "
      + ("it was begun and not finished, go on: " if begun else "do it once: ")
      + command(source, **where)
    )
  if part not in metadata["shards"]:
    raise errors.UserError(
      f"data.source={source!r}: has no part {part!r}, only "
      f"{', '.join(metadata['shards'])}; for a folder, PATH/train and PATH/test"
    )
  return prepared.Prepared(path, part, metadata)


def _check_size(source, image_size):
  named = image_size_of(source)
  if named and named != image_size:
    raise errors.UserError(
      f"data.image_size={image_size}: data.source={source!r} has {named}; "
      f"choose data.source='imagenet{image_size}' or data.image_size={named}"
    )


def size_to_prepare(source, image_size):
  """Return the side of the images from what was asked for and the name."""
  if source == "embedded":
    raise errors.UserError("--dataset=embedded: needs no preparation")
  named = image_size_of(source)
  if not named and image_size < 1:
    raise errors.UserError(
      f"--image_size={image_size}: needed for {source}, e.g. --image_size=32"
    )
  if named and image_size not in (0, named):
    raise errors.UserError(
      f"--image_size={image_size}: --dataset={source} has {named}; leave it out"
    )
  return named or image_size
