"""Names of data sets: what `data.source` means and where it is prepared.

`imagenet64` (any size), `tfds:NAME`, `folder:PATH`, `idx:PATH`.
"""

import dataclasses
import os
import re
import shlex

from cfgd.data import imagenet_archives
from cfgd.data import originals
from cfgd.data import prepared
from cfgd.data import tfds_sets
from cfgd.runtime import errors

_IMAGENET = re.compile(r"imagenet([1-9]\d*)")
_FINDERS = {"idx": originals.find_idx}
_CONTENTS = "folder_contents"  # in the folder of data sets
_KNOWN = "embedded, imagenet64, imagenet128, tfds:NAME, folder:PATH, idx:PATH"


def _split(source):
  """Return (kind, rest): ("imagenet", side) or the parts around the colon."""
  match = _IMAGENET.fullmatch(source)
  if match:
    return "imagenet", int(match[1])
  kind, _, rest = source.partition(":")
  if kind not in ("tfds", "folder", *_FINDERS) or not rest:
    raise errors.UserError(
      f"data.source={source!r}: no such data set; known: {_KNOWN}"
    )
  return kind, rest


def _size_in_name(source):
  """Return the side of the images that a name contains, else 0."""
  kind, rest = _split(source)
  return rest if kind == "imagenet" else 0


def is_prepared_on_demand(source):
  """Return whether training prepares this data set if it is missing."""
  return source != "embedded" and _split(source)[0] != "imagenet"


def name_of(spec):
  """Return `Originals.name` without opening the originals.

  For ImageNet it is the beginning of the name: unofficial archives add to it.
  """
  kind, rest = _split(spec.source)
  if kind == "imagenet":
    return kind
  if kind == "tfds":
    return tfds_sets.name_of(rest, spec.rgb)
  return find_local(spec).name


def earlier_set(found, spec):
  """Return the path of a set prepared by an earlier version, or None.

  Its name has a hash of the files' names and sizes, not of their contents.
  """
  if not found.earlier:
    return None
  path = prepared.folder(found.earlier, spec)
  return path if path.exists() else None


def find_local(spec):
  """Return the Originals of a source that is files on a disk."""
  kind, path = _split(spec.source)
  if kind == "folder":
    remember = prepared.data_home(spec.data_dir) / _CONTENTS
    return originals.find_folder(path, background=spec.rgb, remember=remember)
  return _FINDERS[kind](path)


def find(spec, *, manual_dir, allow_other, verified):
  """Return the Originals of a data set.

  The keywords are those of imagenet_archives.find; TFDS's manual downloads are
  in `manual_dir`, too.
  """
  kind, rest = _split(spec.source)
  if kind == "imagenet":
    if not manual_dir:
      raise errors.UserError(
        f"--manual_dir: needed for {spec.source}: the folder of ImageNet's "
        "archives"
      )
    return imagenet_archives.find(
      manual_dir, allow_other=allow_other, verified=verified
    )
  if kind == "tfds":
    return tfds_sets.find(
      rest,
      data_dir=os.fspath(prepared.data_home(spec.data_dir)),
      background=spec.rgb,
      manual_dir=manual_dir,
    )
  return find_local(spec)


def command(spec):
  """Return the command that prepares a data set."""
  words = ["python", "-m", "experiments.prepare_data"]
  words.append(f"--dataset={spec.source}")
  if _size_in_name(spec.source):
    words.append("--manual_dir=FOLDER_OF_THE_ARCHIVES")
  else:
    words.append(f"--image_size={spec.image_size}")
  for field in ("crop", "background", "random_crop", "data_dir"):
    value = getattr(spec, field)
    if value != getattr(type(spec), field):  # the default
      words.append(f"--{field}={value}")
  return shlex.join(words)


def find_prepared(spec):
  """Return (path of the prepared set, its metadata or None if it is missing).

  Raises errors.UserError if it is damaged or was prepared differently.
  """
  name, again = name_of(spec), command(spec)
  path = prepared.folder(name, spec)
  if name.startswith("folder.") and not path.exists():
    path, name = _same_contents(spec, name) or (path, name)
  metadata = prepared.read_metadata(path, command=again)
  if metadata is not None:
    found, wanted = metadata["preprocessing"], spec.preprocessing(name)
    if not _same(found, wanted):
      raise errors.UserError(
        f"{path}: was prepared as {found!r}, needed is {wanted!r}; remove it "
        f"or choose another --data_dir, then: {again}"
      )
  return path, metadata


def _same_contents(spec, name):
  """Return (path, name) of another set with a folder's contents, or None.

  Either that of a copy of the folder under another name, or that of an earlier
  version, if its pixels have been compared.
  """
  any_name = re.sub(r"^folder\.\w+", "folder.*", name)
  home = prepared.data_home(spec.data_dir)
  pattern = prepared.folder(any_name, spec).relative_to(home)
  copy = min(home.glob(os.fspath(pattern)), default=None)
  if copy:
    return copy, name
  found = find_local(spec)
  earlier = earlier_set(found, spec)
  if earlier and prepared.read_contents(earlier) == found.fingerprint:
    return earlier, found.earlier
  return None


def _same(found, wanted):
  """Compare ids, up to parts that do not matter.

  Unofficial archives of ImageNet add a fingerprint to the name. A folder's own
  name does not matter, only its contents.
  """
  if wanted.startswith("imagenet-"):
    found = re.sub(r"^imagenet\.\w+", "imagenet", found)
  if wanted.startswith("folder."):
    found, wanted = (
      re.sub(r"^folder\.\w+", "folder", name) for name in (found, wanted)
    )
  return found == wanted


def open_part(spec, part):
  """Return a `prepared.Prepared`, "train" or "heldout" of a prepared set."""
  source, size = spec.source, _size_in_name(spec.source)
  if size not in (0, spec.image_size):
    raise errors.UserError(
      f"data.image_size={spec.image_size}: data.source={source!r} has {size}; "
      f"choose data.source='imagenet{spec.image_size}' or "
      f"data.image_size={size}"
    )
  path, metadata = find_prepared(spec)
  if metadata is None:
    begun = prepared.incomplete(path).exists()
    raise errors.UserError(
      f"data.source={source!r}: not prepared in {path}; "
      + ("it was begun and not finished, resume: " if begun else "do it once: ")
      + command(spec)
    )
  if part not in metadata["shards"]:
    raise errors.UserError(
      f"data.source={source!r}: has no part {part!r}, only "
      f"{', '.join(metadata['shards'])}; in a folder, put images to hold out "
      "into PATH/test/CLASS and the others into PATH/train/CLASS"
    )
  return prepared.Prepared(path, part, metadata)


def with_size(spec):
  """Return the Spec with the size in the source's name, if it has one."""
  source, size = spec.source, spec.image_size
  if source == "embedded":
    raise errors.UserError("--dataset=embedded: needs no preparation")
  named = _size_in_name(source)
  if not named and size < 1:
    raise errors.UserError(
      f"--image_size={size}: needed for {source}, e.g. --image_size=32"
    )
  if named and size not in (0, named):
    raise errors.UserError(
      f"--image_size={size}: --dataset={source} has {named}; leave it out"
    )
  return dataclasses.replace(spec, image_size=named or size)
